"""The sentences of the lesson's last three steps, chosen from the numbers of the ablations; no Streamlit here."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dashboard.lesson_words import say_p, say_role

if TYPE_CHECKING:
    from dashboard.lesson_parts import Found
    from nmke.ablation import AblationResults
    from nmke.answers import Answered
    from nmke.intervals import Interval

#: The measures of steps 5 and 6; the first is shown first.
SCORES: Mapping[str, str] = {
    "text_loss": "Loss of the question",
    "loss": "Loss of the answer",
    "cloze": "Right by cloze",
}


# ---- steps 4 and 5 --------------------------------------------------------------------------------------------------


def say_off(results: "AblationResults", found: "Found") -> str:
    """What switching off the strongest did to losses."""
    name = results.conditions[1].name
    every = sum(len(codes) for codes in found.roles.codes.values())
    lines = [
        f"{found.k} of {every:,} neurons ({100 * found.k / every:.2g}%) are off: the strongest "
        f"{say_role(found.main.label)} ones, in {say_layers(found, found.k)}."
    ]
    for score, what in (("text_loss", "the questions' own words"), ("loss", "the right answers")):
        change = results.change(name, score)
        before = results.estimate("none", score)
        after = results.estimate(name, score)
        if change and before and after:
            lines.append(
                f"Loss of {what}: {before.value:.2f} to {after.value:.2f} nats per token, {verdict(change, score)} "
                f"({say_change(change, score)})."
            )
    return " ".join(lines)


def say_written(before: "Sequence[Answered]", after: "Sequence[Answered]") -> str:
    """How many of the written answers changed."""
    changed = sum(a.written != b.written for a, b in zip(before, after, strict=True))
    if not changed:
        return f"All {len(before)} written answers are word for word the same."
    return f"{changed} of {len(before)} written answers changed. Read them: are they wrong, or no language any more?"


def say_lost(results: "AblationResults") -> str:
    """Right answers before and after, and whether the change is more than noise."""
    name = results.conditions[1].name
    change = results.change(name, "cloze")
    if change is None:
        return "Nothing is answered yet."
    before = sum(bool(one.right("cloze")) for one in results.of("none"))
    after = sum(bool(one.right("cloze")) for one in results.of(name))
    text = f"By cloze {before} of {change['n']} were right, now {after}: "
    text += f"{change['lost']} lost, {change['gained']} gained."
    if change["p_value"] >= 0.05:
        return (
            f"{text} That is no more than chance makes of it (McNemar p = {say_p(change['p_value'])}), so by right "
            "and wrong nothing is shown. The losses above are finer."
        )
    direction = "fewer" if after < before else "more"
    return f"{text} {direction.capitalize()} than chance explains (McNemar p = {say_p(change['p_value'])})."


def say_control(results: "AblationResults", found: "Found", score: str) -> str:
    """Whether the strongest do more than as many random ones, and what those of one subject do."""
    main = results.conditions[1]
    against = results.against_random(main.name, score)
    lines = []
    if against is not None:
        label = say_role(found.main.label)
        size = say_size(against, score)
        if against.low > 0 or against.high < 0:
            harm = "more harm" if (against.value > 0) == (score != "cloze") else "less harm"
            lines.append(f"The {found.k} {label} neurons do **{harm} than random ones**: {size}.")
        else:
            lines.append(
                f"By this measure the {found.k} {label} neurons do **no more than random ones**: {size}."
            )
    if found.subject is not None and len(results.conditions) > 2:
        change = results.change(results.conditions[2].name, score)
        if change is not None:
            said = f"{say_change(change, score)}, {verdict(change, score)}"
            lines.append(f"Those of {say_subject(found.subject.label)} alone: {said}.")
    elif found.subject is None:
        lines.append(f"No subject has {found.k} neurons of its own here, so that bar is missing.")
    return " ".join(lines)


def control_changes(results: "AblationResults", score: str) -> list[dict[str, Any]]:
    """Rows for ``lesson_charts.changes``: each condition's paired change against everything on."""
    rows = []
    for one in results.conditions[1:]:
        change = results.change(one.name, score)
        if change is not None:
            name = f"random set {one.seed}" if one.kind == "random" else one.label
            rows.append({"name": name, "kind": one.kind, "label": one.label, **change})
    return rows


def say_why_random(results: "AblationResults", score: str) -> str:
    """What one would have believed without the control."""
    main = results.conditions[1]
    change, against = results.change(main.name, score), results.against_random(main.name, score)
    random, none = results.random_estimate(main.name, score), results.estimate("none", score)
    if change is None or against is None or random is None or none is None:
        return "The control is not computed yet."
    moved = random.value - none.value
    unit = 100.0 if score == "cloze" else 1.0
    name = "points" if score == "cloze" else "nats"
    text = (
        f"Without the chosen neurons the score moves by {signed(unit * change['value'])} {name}, without as many "
        f"random ones by {signed(unit * moved)}. Only the difference is due to which neurons they are."
    )
    if against.low <= 0 <= against.high:
        return f"{text} Here the difference may be zero: the change alone would have fooled us."
    return f"{text} Here it is not zero."


# ---- step 6 ---------------------------------------------------------------------------------------------------------


def say_dose(results: "AblationResults", k: int, score: str) -> str:
    """What k neurons do, beside as many random ones."""
    one = next((one for one in results.conditions if one.kind == "set" and one.k == k), None)
    if one is None:
        return ""
    change, against = results.change(one.name, score), results.against_random(one.name, score)
    if change is None:
        return ""
    text = f"With {k} off: {say_change(change, score)}, {verdict(change, score)}"
    if against is None:
        return f"{text}."
    more = "differs from" if against.low > 0 or against.high < 0 else "does not measurably differ from"
    return f"{text}. That {more} what as many random ones do."


def count_equal(before: "Sequence[Answered]", after: "Sequence[Answered]") -> tuple[int, int]:
    """How many numbers and texts of the answers are equal to the bit, of how many."""
    equal = total = 0
    for one, other in zip(before, after, strict=True):
        for name in ("letters_logp", "cloze_logp", "loss", "text_loss", "written"):
            a, b = getattr(one, name), getattr(other, name)
            pairs = list(zip(a, b, strict=True)) if isinstance(a, tuple) else [(a, b)]
            total += len(pairs)
            equal += sum(x == y for x, y in pairs)
    return equal, total


def say_again(before: "Sequence[Answered]", after: "Sequence[Answered]") -> str:
    """Whether switching on again gives step 2's answers."""
    equal, total = count_equal(before, after)
    if equal == total:
        return (
            f"All {total} numbers and texts are equal to the last bit with those of step 2: nothing was written into "
            "the model."
        )
    return (
        f"{total - equal} of {total} numbers and texts differ from those of step 2. On some devices sums are not made "
        "in the same order twice; the weights themselves were never written."
    )


def say_learned(results: "AblationResults", found: "Found") -> list[str]:
    """What the numbers of this model support."""
    totals = found.roles.totals()
    active = sum(totals.values()) - totals["inactive"]
    lines = []
    if active:
        most = "most" if totals["general"] > active / 2 else "not most"
        lines.append(f"On this model {most} of the active neurons work for all the subjects.")
    sets = [one for one in results.conditions if one.kind == "set"]
    beyond = [one.k for one in sets if _harms_more(results.against_random(one.name, "text_loss"))]
    label = say_role(found.main.label)
    if beyond:
        lines.append(
            f"Already with {min(beyond)} of the {label} neurons off, the questions are read worse than with as many "
            "random ones off."
        )
    else:
        lines.append(
            f"With up to {max(one.k for one in sets)} of the {label} neurons off, the questions are not measurably "
            "read worse than with as many random ones off."
        )
    lost = [one.k for one in sets if _fewer(results.change(one.name, "cloze"))]
    if lost:
        lines.append(f"Right answers are measurably lost with {min(lost)} of them off.")
    else:
        lines.append("The number of right answers does not measurably fall at any of these sizes.")
    return lines


LIMITS = (
    "This is one model and 48 questions or fewer; a larger model may do otherwise.",
    "Holding a neuron at zero is a strong intervention: the layers above get values they never met. Harm shows that a "
    "neuron is needed there, not what it stands for.",
    "Neurons were chosen by their activation on the questions that they are tested on.",
    "The role depends on the rule; the Roles page shows how far.",
)


def _harms_more(found: "Interval | None") -> bool:
    return found is not None and found.low > 0


def _fewer(change: Mapping[str, Any] | None) -> bool:
    return change is not None and change["p_value"] < 0.05 and change["lost"] > change["gained"]


# ---- words ----------------------------------------------------------------------------------------------------------


def verdict(change: Mapping[str, Any], score: str) -> str:
    """Whether an interval of a change leaves out zero, and on which side it lies."""
    if change["low"] <= 0 <= change["high"]:
        return "no measurable change"
    return "measurably worse" if (change["low"] > 0) == (score != "cloze") else "measurably better"


def signed(value: float) -> str:
    """A change with its sign and two digits; what rounds to zero has no minus."""
    return f"{round(value, 2) + 0.0:+.2f}"


def say_change(change: Mapping[str, Any], score: str) -> str:
    """A change with its interval and unit."""
    unit, name = (100.0, "points") if score == "cloze" else (1.0, "nats per token")
    value, low, high = (signed(unit * change[end]) for end in ("value", "low", "high"))
    return f"{value} {name} [{low}, {high}]"


def say_size(found: "Interval", score: str) -> str:
    """A difference with its interval."""
    return f"{say_change(found.to_dict(), score)} between them"


def say_subject(label: str) -> str:
    """``domain: biology`` as “biology”."""
    return label.partition(": ")[2] or label


def say_layers(found: "Found", k: int) -> str:
    """In which layers the first k are."""
    layers = sorted({layer for layer, _ in found.main.ranked[:k]})
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"
