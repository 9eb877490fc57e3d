"""Accuracies and losses over questions, with intervals, and whether an accuracy is more than chance."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from nmke.answers.items import FORMULAS, Answered
from nmke.errors import QuestionError
from nmke.intervals import Interval, at_least_p, bootstrap_mean, wilson

ACCURACIES = ("letters", "cloze", "written")
LOSSES = ("loss", "text_loss")
#: A p-value under this is called more than chance.
SIGNIFICANT = 0.05


def accuracy(answered: Sequence[Answered], score: str) -> Interval:
    """The share of right answers by letters, cloze or written, with Wilson's interval.

    Raises:
        QuestionError: no question was answered by this score.
    """
    right = [one.right(score) for one in _asked(answered, score)]
    return wilson(sum(map(bool, right)), len(right))


def mean_loss(answered: Sequence[Answered], score: str = "loss", seed: int = 0) -> Interval:
    """The mean over questions of loss or text_loss, in nats per token, with a bootstrap interval over questions.

    Raises:
        QuestionError: no question has this loss.
    """
    return bootstrap_mean([float(one.value(score) or 0.0) for one in _asked(answered, score)], seed)


def beats_chance(answered: Sequence[Answered], score: str) -> dict[str, Any]:
    """Whether an accuracy is more than guessing among the choices.

    ``p_value`` is exact and one-sided: how likely guessing is to be right as often or more. ``beats`` is
    ``p_value < 0.05``. A model that always gives the same letter is not guessing, and can do better than chance
    where that letter is often right: ``one_answer`` is the share of questions it gave its favourite choice to (what
    names no choice is none), and ``best_constant`` the accuracy of the best constant answer.

    Raises:
        QuestionError: no question was answered by this score.
    """
    asked = _asked(answered, score)
    share = accuracy(asked, score)
    right = sum(bool(one.right(score)) for one in asked)
    chances = [1 / one.choices for one in asked]
    given = Counter(chosen for one in asked if (chosen := one.chosen(score)) is not None)
    p_value = at_least_p(right, chances)
    return {
        "score": score,
        "right": right,
        **share.to_dict(),
        "chance": sum(chances) / len(chances),
        "p_value": p_value,
        "beats": p_value < SIGNIFICANT,
        "one_answer": max(given.values(), default=0) / len(asked),
        "best_constant": max(Counter(one.answer for one in asked).values()) / len(asked),
    }


def summarise(answered: Sequence[Answered]) -> dict[str, Any]:
    """Every score that was taken, over all questions and for each subject; plain values for JSON.

    Returns:
        ``n``; ``scores``: score name to what :func:`beats_chance` says, or to the mean loss and its interval;
        ``subjects``: the same for each subject's questions; ``formulas``: of the scores.
    """
    subjects = dict.fromkeys(one.subject for one in answered)
    scores = _scores(answered)
    return {
        "n": len(answered),
        "scores": scores,
        "subjects": {
            subject: _scores([one for one in answered if one.subject == subject]) for subject in subjects
        },
        "formulas": {name: FORMULAS[name] for name in scores},
    }


def _scores(answered: Sequence[Answered]) -> dict[str, dict[str, Any]]:
    taken = [score for score in FORMULAS if any(one.value(score) is not None for one in answered)]
    return {
        score: beats_chance(answered, score) if score in ACCURACIES else mean_loss(answered, score).to_dict()
        for score in taken
    }


def _asked(answered: Sequence[Answered], score: str) -> list[Answered]:
    found = [one for one in answered if one.value(score) is not None]
    if not found:
        raise QuestionError(
            f"No question was answered by the score {score!r}.", "Ask for this score.", "scores"
        )
    return found
