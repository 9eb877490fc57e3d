"""The parts of the lesson and how each is made; no Streamlit here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nmke.facts import Fact
from nmke.progress import Progress

if TYPE_CHECKING:
    from nmke.ablation import AblationResults, Condition, NeuronSet
    from nmke.answers import Answered, AnswersConfig
    from nmke.model import EditableModel
    from nmke.questions import Question, QuestionSet
    from nmke.roles import Roles

#: The parts in the order in which they can be made; "again" is made by the last step's own button.
PARTS = ("glimpse", "today", "roles", "off", "controls", "doses")
#: Neurons that are switched off, and how many random sets beside them.
STRENGTH, SEEDS = 10, 3
DOSES = (1, 10, 30, 100, 300)
#: Questions of each subject that the model answers in writing.
WRITTEN_EACH, WRITTEN_TOKENS = 1, 24
#: The role that is switched off: the first of these that the model has neurons of.
_MAIN_ROLES = ("general", "mixed", "domain", "task", "inactive")


@dataclass(frozen=True)
class Glimpse:
    """One fact's prompt, read at its last token.

    Attributes:
        following: the likeliest next tokens with their probabilities, the likeliest first.
        activations, pushes: per layer, every neuron's activation, and how much it alone adds to the log-probability
            of the likeliest next token (LPS), in nats.
        promoted: per layer, the tokens promoted by the neuron that pushes most.
    """

    fact: Fact
    following: tuple[tuple[str, float], ...]
    activations: Mapping[int, NDArray[np.float32]]
    pushes: Mapping[int, NDArray[np.float32]]
    promoted: Mapping[int, tuple[str, ...]]

    def strongest(self, layer: int) -> int:
        """The layer's neuron that pushes most."""
        return int(self.pushes[layer].argmax())

    @property
    def best_layer(self) -> int:
        """Where the neuron that pushes most of all is."""
        return max(self.pushes, key=lambda layer: float(self.pushes[layer].max()))


@dataclass(frozen=True)
class Today:
    """What the model answers with everything on.

    Attributes:
        left_out: built-in questions that do not fit the model's context.
        few: some questions with every score and the written answer.
        answers: all questions, without the written answer.
        texts: per written question its text with the right answer, as tokens, and each token's loss in nats.
    """

    questions: "QuestionSet"
    left_out: int
    few: "tuple[Answered, ...]"
    answers: "tuple[Answered, ...]"
    texts: "Mapping[str, tuple[tuple[str, ...], tuple[float, ...]]]"


@dataclass(frozen=True)
class Found:
    """Who works for what.

    Attributes:
        main: neurons of the role that is switched off, the strongest first, as many as the largest dose.
        subject: the strongest of one domain or task; None where there are too few.
        promoted: what the first neurons of ``main`` promote.
    """

    roles: "Roles"
    main: "NeuronSet"
    subject: "NeuronSet | None"
    promoted: tuple[tuple[str, ...], ...]

    @property
    def k(self) -> int:
        """How many are switched off."""
        return min(STRENGTH, self.main.count)


@dataclass(frozen=True)
class Off:
    """The same as :class:`Today` without the strongest neurons."""

    condition: "Condition"
    few: "tuple[Answered, ...]"
    answers: "tuple[Answered, ...]"
    texts: "Mapping[str, tuple[tuple[str, ...], tuple[float, ...]]]"


@dataclass(frozen=True)
class Under:
    """All questions under several conditions, none first."""

    conditions: "tuple[Condition, ...]"
    answers: "Mapping[str, tuple[Answered, ...]]"


# ---- making a part --------------------------------------------------------------------------------------------------


def make(
    part: str,
    model: "EditableModel",
    questions: "QuestionSet",
    known: Mapping[str, Any],
    progress: Progress,
) -> Any:
    """Make one part from those before it, by whatever weights are active.

    Raises:
        QuestionError: too few questions fit the model's context.
        Cancelled: from ``progress``.
    """
    if part == "glimpse":
        return look_at_fact(model, progress)
    if part == "today":
        return answer_today(model, questions, progress)
    if part == "roles":
        return find_roles(model, questions, progress)
    today: Today = known["today"]
    if part == "again":
        return answer(model, few_of(today.questions), _all_scores(), progress, "answering once more")
    found: Found = known["roles"]
    if part == "off":
        return switch_off(model, today, found, progress)
    off: Off = known["off"]
    if part == "controls":
        sets = [found.main.first(found.k), *([found.subject] if found.subject else [])]
        return answer_under(model, today, off, control_conditions(model, sets), progress)
    return answer_under(model, today, off, dose_conditions(model, found.main), progress)


def look_at_fact(model: "EditableModel", progress: Progress) -> Glimpse:
    """Read one built-in fact's prompt."""
    from nmke.attribution import AttributionConfig, Prompt, attribute
    from nmke.examples import builtin_facts
    from nmke.forcing import next_token_table
    from nmke.roles import promoted_tokens

    fact = builtin_facts()[0]
    config = AttributionConfig(kind="lps", tolerance=1e-2)
    found = attribute(model, [Prompt(fact.prompt)], config=config, progress=progress)
    activations = {layer: found.activations[layer][0].numpy() for layer in found.layers}
    pushes = {layer: found.scores[layer][0].numpy() for layer in found.layers}
    strongest = [(layer, int(pushes[layer].argmax())) for layer in found.layers]
    signs = [float(activations[layer][neuron]) for layer, neuron in strongest]
    promoted = promoted_tokens(model, strongest, 6, signs)
    following = tuple(next_token_table(model, fact.prompt, 5))
    return Glimpse(fact, following, activations, pushes, dict(zip(found.layers, promoted, strict=True)))


def answer_today(model: "EditableModel", questions: "QuestionSet", progress: Progress) -> Today:
    """Answer the questions with everything on; those that do not fit the model's context are left out.

    Raises:
        QuestionError: so few fit that no two subjects are left.
    """
    from nmke.answers import AnswersConfig

    asked = fitting(model, questions)
    few = few_of(asked)
    config = AnswersConfig(scores=("letters", "cloze", "loss"))
    written = answer(model, few, _all_scores(), progress, "answering a few in writing")
    answers = answer(model, asked.questions, config, progress, "answering all questions")
    texts = {question.id: token_losses(model, question) for question in few}
    return Today(asked, len(questions) - len(asked), written, answers, texts)


def find_roles(model: "EditableModel", questions: "QuestionSet", progress: Progress) -> Found:
    """Roles by activations over the built-in questions, and the neurons that will be switched off."""
    from nmke.ablation import of_role
    from nmke.attribution import AttributionConfig
    from nmke.roles import RolesConfig, assign_roles, promoted_tokens, score_questions

    config = RolesConfig(attribution=AttributionConfig(kind="mpc"), resamples=0)
    roles = assign_roles(score_questions(model, fitting(model, questions), config=config, progress=progress))
    totals = roles.totals()
    role = next(role for role in _MAIN_ROLES if totals[role])
    main = of_role(roles, role, min(max(DOSES), totals[role]))
    # A layer must have as many others for the random controls.
    while any(2 * len(found) > model.d_mlp for found in main.neurons.values()):
        main = main.first(main.count - 1)
    first = main.ranked[: min(STRENGTH, main.count)]
    signs = [float(roles.activation[layer][:, neuron].mean()) for layer, neuron in first]
    promoted = tuple(promoted_tokens(model, first, 5, signs))
    return Found(roles, main, _subject_set(roles, min(STRENGTH, main.count)), promoted)


def _subject_set(roles: "Roles", k: int) -> "NeuronSet | None":
    """The k strongest neurons of one domain, or else of one task: of the one that has most of them."""
    from nmke.ablation import of_role
    from nmke.roles import strongest

    every = sum(len(codes) for codes in roles.codes.values())
    domains: dict[str, dict[str, Any]] = {
        domain: {"domain": domain} for domain in dict.fromkeys(roles.domains.values())
    }
    tasks: dict[str, dict[str, Any]] = {task: {"task": task} for task in roles.tasks}
    for role, choices in (("domain", domains), ("task", tasks)):
        counts = {name: len(strongest(roles, role, every, **which)) for name, which in choices.items()}
        most = max(counts, key=lambda name: counts[name])
        if counts[most] >= k:
            return of_role(roles, role, k, **choices[most])
    return None


def switch_off(model: "EditableModel", today: Today, found: Found, progress: Progress) -> Off:
    """Answer the same questions without the strongest neurons."""
    from nmke.ablation import AblationConfig, conditions_of

    chosen = found.main.first(found.k)
    condition = conditions_of(model, [chosen], AblationConfig(controls=0))[1]
    few_asked = few_of(today.questions)
    with model.holding(_held(condition)):
        few = answer(model, few_asked, _all_scores(), progress, "answering a few without them")
        answers = answer(
            model, today.questions.questions, _measured(), progress, "answering all without them"
        )
        texts = {question.id: token_losses(model, question) for question in few_asked}
    return Off(condition, few, answers, texts)


def control_conditions(model: "EditableModel", sets: "Sequence[NeuronSet]") -> "tuple[Condition, ...]":
    """None, each set, and beside the first one random sets."""
    from nmke.ablation import AblationConfig, conditions_of

    named = conditions_of(model, sets, AblationConfig(controls=0))
    return (*named, *conditions_of(model, sets[:1], AblationConfig(controls=SEEDS))[2:])


def dose_conditions(model: "EditableModel", main: "NeuronSet") -> "tuple[Condition, ...]":
    """None, and for every dose the strongest and one random set."""
    from nmke.ablation import AblationConfig, conditions_of

    doses = sorted({min(dose, main.count) for dose in DOSES})
    return conditions_of(model, [main.first(dose) for dose in doses], AblationConfig(controls=1))


def answer_under(
    model: "EditableModel",
    today: Today,
    off: Off,
    conditions: "Sequence[Condition]",
    progress: Progress,
) -> Under:
    """All questions under each condition; what step 4 answered already is not answered again."""
    known = {conditions[0].key: today.answers, off.condition.key: off.answers}
    missing = [condition for condition in conditions if condition.key not in known]
    total = len(missing) * len(today.questions)
    for number, condition in enumerate(missing):
        part = _Part(progress, number * len(today.questions), total, f"switched off: {condition.name}")
        with model.holding(_held(condition)):
            known[condition.key] = answer(
                model, today.questions.questions, _measured(), part, "answering the questions"
            )
    return Under(tuple(conditions), {condition.name: known[condition.key] for condition in conditions})


def results_of(today: Today, under: Under) -> "AblationResults":
    """As the Ablation page has them: every table and test of theirs serves the lesson too."""
    from nmke.ablation import AblationResults

    about = {"config": {"answers": {"scores": ["cloze", "loss"]}}}
    return AblationResults(today.questions, under.conditions, under.answers, about)


def before_after(today: Today, off: Off) -> Under:
    """Step 4 as conditions: none and without the strongest."""
    from nmke.ablation import Condition

    none = Condition("none", "none", "none", 0)
    return Under((none, off.condition), {"none": today.answers, off.condition.name: off.answers})


# ---- asking ---------------------------------------------------------------------------------------------------------


def answer(
    model: "EditableModel",
    questions: "Sequence[Question]",
    config: "AnswersConfig",
    progress: Progress,
    stage: str,
) -> "tuple[Answered, ...]":
    """Answers by whatever is switched off around this."""
    from nmke.answers import answer_questions

    return tuple(answer_questions(model, questions, config, progress, stage=stage))


def fitting(model: "EditableModel", questions: "QuestionSet") -> "QuestionSet":
    """The questions that the model's context has room for."""
    from nmke.answers import too_long

    long = set(too_long(model, questions.questions))
    kept = tuple(question for question in questions.questions if question.id not in long)
    return replace(questions, questions=kept)


def few_of(questions: "QuestionSet") -> "tuple[Question, ...]":
    """The questions answered in writing: the first of each subject."""
    return tuple(
        question for subject in questions.subjects for question in questions.of(subject)[:WRITTEN_EACH]
    )


def token_losses(model: "EditableModel", question: "Question") -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The question with its right answer as tokens, and the loss of each after the first, in nats."""
    from nmke.answers.reading import nats_of
    from nmke.questions import options_of, prompt_of
    from nmke.sites import FINAL
    from nmke.tokens import encode, pad, pad_id, token_texts

    ids = encode(
        model.tokenizer, prompt_of(question, "cloze") + options_of(question, "cloze")[question.answer]
    )
    final = model.run(pad([ids], pad_id(model.tokenizer)), [FINAL])[FINAL][0]
    return tuple(token_texts(model.tokenizer, ids)), tuple(nats_of(model, final[:-1], ids[1:]))


def _all_scores() -> "AnswersConfig":
    from nmke.answers import AnswersConfig

    return AnswersConfig(written_tokens=WRITTEN_TOKENS)


def _measured() -> "AnswersConfig":
    from nmke.answers import AnswersConfig

    return AnswersConfig(scores=("cloze", "loss"))


def _held(condition: "Condition") -> dict[int, tuple[tuple[int, ...], float]]:
    return {layer: (neurons, 0.0) for layer, neurons in condition.neurons.items()}


class _Part(Progress):
    """One condition's progress as a part of that of all, so that the time left is that of everything."""

    def __init__(self, progress: Progress, before: int, total: int, note: str) -> None:
        self._progress, self._before, self._total, self._note = progress, before, total, note

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        self._progress.update(stage, self._before + done, self._total, self._note)
