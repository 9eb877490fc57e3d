"""Tables and sentences made of ablation results, for the page and the lesson; no Streamlit here."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from dashboard.ablation_charts import Scale
from dashboard.ablation_work import SCORE_TITLES
from nmke.questions import LETTERS, Question, title_of

if TYPE_CHECKING:
    from nmke.ablation import AblationResults, Condition
    from nmke.answers import Answered
    from nmke.intervals import Interval

ALL = "all questions"
LOSSES = ("loss", "text_loss")
_AXES: Mapping[str, str] = {
    "letters": "right by letters (%)",
    "cloze": "right by cloze (%)",
    "written": "right as written (%)",
    "loss": "loss of the answer (nats per token)",
    "text_loss": "loss of the question (nats per token)",
}


def scale_of(results: "AblationResults", score: str) -> Scale:
    """How a score is drawn; chance from the questions' own numbers of choices."""
    if score in LOSSES:
        return Scale(_AXES[score], False)
    asked = results.questions.questions
    return Scale(_AXES[score], True, sum(1 / len(one.choices) for one in asked) / len(asked))


def bar_table(shown: "Mapping[str, AblationResults]", score: str, *, subjects: bool = True) -> pd.DataFrame:
    """Rows for ``ablation_charts.bars``: all questions, then each subject; several results' conditions side by side.

    Args:
        shown: results by title; with several, titles go in front of what differs. No ablation is drawn once where two
            results have the same.
    """
    parts, seen = [], set()
    for number, results in enumerate(shown.values(), 1):
        tables = [results.table(score).assign(group=ALL)]
        if subjects and len(results.questions.subjects) > 1:
            tables += [
                results.table(score, subject).assign(group=title_of(subject))
                for subject in results.questions.subjects
            ]
        table = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
        if len(shown) > 1:
            plain = table["kind"] == "none"
            whose = (
                results.questions.sha256,
                results.about.get("session", {}).get("digest"),
                str(results.about["config"]["answers"]),
            )
            if whose in seen:
                table = table[~plain]
            table = table.assign(
                name=[
                    name if none and whose not in seen else f"{number}: {name}"
                    for name, none in zip(table["name"], table["kind"] == "none", strict=True)
                ]
            )
            seen.add(whose)
        parts.append(table)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def chance_rows(results: "AblationResults", formulas: Mapping[str, str]) -> pd.DataFrame:
    """One row a score: what the unablated model reaches, whether it beats chance, and the score's formula."""
    rows = []
    for score in results.scores:
        found = results.estimate("none", score)
        if found is None:
            continue
        told, scale = results.chance(score), scale_of(results, score)
        rows.append(
            {
                "score": SCORE_TITLES[score],
                "unablated": scale.say(found.value) if scale.share else f"{found.value:.2f} nats",
                "95% interval": f"{scale.say(found.low)} to {scale.say(found.high)}",
                "chance": scale.say(told["chance"]) if told else "",
                "p": f"{told['p_value']:.2g}" if told else "",
                "beats chance": ("yes" if told["beats"] else "no") if told else "",
                "formula": formulas[score],
            }
        )
    return pd.DataFrame(rows)


def say_unablated(results: "AblationResults", score: str) -> str:
    """The unablated model's score in a sentence, and whether it beats chance."""
    found, told, scale = results.estimate("none", score), results.chance(score), scale_of(results, score)
    if found is None:
        return "Nothing is answered yet."
    text = f"Without ablation: **{scale.say(found.value)}** [{scale.say(found.low)}, {scale.say(found.high)}]"
    if told is None:
        return f"{text} nats per token on {found.n} questions."
    verdict = "beats" if told["beats"] else "**does not beat**"
    text += f" on {found.n} questions; it {verdict} chance ({scale.say(told['chance'])}, exact binomial "
    text += f"p = {told['p_value']:.2g})."
    if told["one_answer"] > 0.9:
        text += f" It gives one and the same answer to {told['one_answer']:.0%} of them."
    return text


def say_effects(results: "AblationResults", score: str) -> list[str]:
    """A sentence for each set: its change against none, and against its random sets.

    A verdict waits until all questions are answered: over a few of them an interval says little. The interval minds
    which questions were drawn but not which random sets, so the set must also lie outside all of these.
    """
    said, whole = [], len(results.questions)
    for one in results.conditions:
        change = results.change(one.name, score) if one.kind == "set" else None
        if change is None:
            continue
        text = f"**{one.name}**: {_signed(change, score)}"
        if "p_value" in change:
            text += f", {change['lost']} questions lost and {change['gained']} gained "
            text += f"(McNemar p = {change['p_value']:.2g})"
        random = results.against_random(one.name, score)
        if random is not None:
            text += f"; against random neurons {_signed(random.to_dict(), score)}"
            if random.n == whole:
                text += f", {_verdict(results, one, score, random)}"
        if change["n"] < whole:
            text += f" (so far, {change['n']} of {whole} questions)"
        said.append(f"{text}.")
    return said


def _verdict(results: "AblationResults", one: "Condition", score: str, random: "Interval") -> str:
    names = [one.name, *(control.name for control in results.controls(one.name))]
    own, *others = (found.value for name in names if (found := results.estimate(name, score)) is not None)
    outside = own < min(others) or own > max(others)
    if outside and (random.low > 0 or random.high < 0):
        return f"**outside the random sets** ({len(others)})"
    return f"not told apart from the random sets ({len(others)})"


def _signed(found: Mapping[str, Any], score: str) -> str:
    if score in LOSSES:
        return f"{found['value']:+.2f} nats [{found['low']:+.2f}, {found['high']:+.2f}]"
    return f"{100 * found['value']:+.1f} points [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"


def change_counts(results: "AblationResults", score: str) -> pd.DataFrame:
    """Rows for ``ablation_charts.changes``: per condition questions kept, lost, gained, still wrong."""
    rows = []
    for one in _ablated(results):
        table = results.changed_questions(one.name, score)
        if table.empty:
            continue
        before, after = table["before"] > 0, table["after"] > 0
        rows.append(
            {
                "name": one.name,
                "kept": int((before & after).sum()),
                "lost": int((before & ~after).sum()),
                "gained": int((~before & after).sum()),
                "wrong": int((~before & ~after).sum()),
            }
        )
    return pd.DataFrame(rows, columns=["name", "kept", "lost", "gained", "wrong"])


def loss_rows(results: "AblationResults", score: str) -> pd.DataFrame:
    """Rows for ``ablation_charts.loss_changes``."""
    parts = [
        results.changed_questions(one.name, score).assign(name=one.name, kind=one.kind, label=one.label)
        for one in _ablated(results)
    ]
    parts = [part for part in parts if len(part)]
    return (
        pd.concat(parts, ignore_index=True)
        if parts
        else pd.DataFrame(columns=["name", "kind", "label", "change"])
    )


def _ablated(results: "AblationResults") -> "list[Condition]":
    return [one for one in results.conditions if one.kind != "none"]


def order_questions(results: "AblationResults", name: str) -> list[str]:
    """Question ids both conditions have answered, those that the ablation changed most first."""
    score = next(
        (score for score in ("loss", "text_loss", "written", "cloze", "letters") if score in results.scores),
        "",
    )
    table = results.changed_questions(name, score) if score else pd.DataFrame(columns=["question", "change"])
    order = table["change"].abs().sort_values(ascending=False, kind="stable").index
    return [str(id) for id in table.loc[order, "question"]]


def answer_lines(question: Question, answered: "Answered") -> list[tuple[str, str]]:
    """What one condition answered to a question: (how it was asked, what came), right ones with a tick."""
    lines: list[tuple[str, str]] = []

    def choice(index: int | None) -> str:
        if index is None:
            return "none recognised ✗"
        tick = "✓" if index == answered.answer else "✗"
        return f"{LETTERS[index]}. {question.choices[index]} {tick}"

    if answered.letters is not None:
        lines.append(("by letters", choice(answered.letters)))
    if answered.cloze is not None:
        lines.append(("by cloze", choice(answered.cloze)))
    if answered.written is not None:
        lines.append(("as written", choice(answered.written_choice)))
    if answered.loss is not None:
        lines.append(("loss of the right answer", f"{answered.loss:.2f} nats per token"))
    if answered.text_loss is not None:
        lines.append(("loss of the question", f"{answered.text_loss:.2f} nats per token"))
    return lines


def neuron_rows(results: "AblationResults", names: Sequence[str]) -> pd.DataFrame:
    """One row a neuron of some conditions: condition, layer, neuron."""
    rows = [
        {"condition": name, "layer": layer, "neuron": neuron}
        for name in names
        for layer, found in results.condition(name).neurons.items()
        for neuron in found
    ]
    return pd.DataFrame(rows, columns=["condition", "layer", "neuron"])
