"""The lesson's texts, and the sentences of its first three steps; no Streamlit here.

Sentences are chosen from the numbers: nothing is claimed that they do not show.
"""

from collections.abc import Mapping
from math import exp
from typing import TYPE_CHECKING, Any

from dashboard.tokens_html import visible

if TYPE_CHECKING:
    from dashboard.lesson_parts import Found, Glimpse, Today

#: What each step is called.
TITLES: Mapping[int, str] = {
    1: "What a neuron is",
    2: "What the model says today",
    3: "Which neurons work for everything",
    4: "Switch the strongest off",
    5: "The control",
    6: "Dose and undo",
}
INTRO: Mapping[int, str] = {
    1: "A neuron is one number, its activation, and one fixed vector. Each layer adds every neuron's vector, times its "
    "activation, to what the model has worked out so far; the next word is read from the sum. Below is one layer at "
    "the last word of a sentence.",
    2: "Before anything is switched off: our own questions about biology and chemistry, four choices each. The model "
    "is asked in two ways. By letters, it reads the choices and names A, B, C or D. By cloze, it never sees the "
    "choices; the one it finds likeliest as the answer's words counts.",
    3: "A neuron counts as active on a question when its activation is among the top tenth of its layer, and as active "
    "in a subject when that happens on at least half of the subject's questions. In how many of the subjects is each "
    "neuron active?",
    4: "Now the strongest of them are held at zero, as if they were not there. Everything else stays as it was.",
    5: "A change alone proves little: any damage may do the same. So as many random neurons of the same layers are "
    "switched off too, and as many of one subject.",
    6: "Is it the number that matters, or which neurons they are? The same questions with more and more neurons "
    "switched off, and then with all of them switched on again.",
}
QUESTIONS: Mapping[int, str] = {
    1: "Is there one neuron that holds the answer?",
    2: "A die with four sides answers all the questions. How many does it get right, and is the model better?",
    3: "If every subject picked its neurons independently, how many would work for all of them?",
    4: "So few neurons of so many: how many of the right answers are lost?",
    5: "Why do we need the random neurons?",
    6: "What have we learned, and what does this not show?",
}
#: A push of this many nats is counted as one.
_PUSH = 0.01


# ---- step 1 ---------------------------------------------------------------------------------------------------------


def say_next(glimpse: "Glimpse") -> str:
    """What the model goes on with, and whether that is the fact's own answer."""
    token, probability = glimpse.following[0]
    said = f"“{glimpse.fact.prompt}” goes on with “{plain(token)}”, probability {probability:.0%}"
    if not glimpse.fact.target_true:
        return f"{said}."
    begins = bool(token.strip()) and glimpse.fact.target_true.startswith(token.strip())
    verdict = "which is right" if begins else f"and not with {glimpse.fact.target_true}"
    return f"{said}, {verdict}."


def say_pusher(glimpse: "Glimpse", layer: int) -> str:
    """The layer's neuron that pushes the next word most."""
    neuron, token = glimpse.strongest(layer), plain(glimpse.following[0][0])
    push, activation = float(glimpse.pushes[layer][neuron]), float(glimpse.activations[layer][neuron])
    if push <= 0:
        return f"In layer {layer} no neuron by itself makes “{token}” likelier."
    most = " No neuron of any layer adds more." if layer == glimpse.best_layer else ""
    among = glimpse.following[0][0] in glimpse.promoted[layer]
    return (
        f"In layer {layer}, neuron {neuron} (activation {activation:.2f}) pushes “{token}” most: were the next word "
        f"read off right there, adding its vector would make it {factor(push)} times as likely (+{push:.2f} nats)."
        f"{most} Yet these are the words it makes likelier whatever the text; “{token}” is "
        f"{'among' if among else 'not among'} the first {len(glimpse.promoted[layer])}:"
    )


def say_one_neuron(glimpse: "Glimpse") -> str:
    """Whether one neuron stands out."""
    pushes = sorted((float(value) for row in glimpse.pushes.values() for value in row), reverse=True)
    helping = sum(value > _PUSH for value in pushes)
    token = plain(glimpse.following[0][0])
    text = (
        f"The strongest of all {len(pushes):,} neurons adds {max(pushes[0], 0.0):.2f} nats to “{token}” by itself, the "
        f"tenth {max(pushes[min(9, len(pushes) - 1)], 0.0):.2f}; {helping:,} add more than {_PUSH} nats."
    )
    if helping > 1 and pushes[0] < 2 * sum(pushes[1:10]):
        return f"No. {text} Many neurons each do a little."
    if helping > 0:
        return f"Here one stands out: {text} That it pushes this word here does not make it hold the fact."
    return f"No. {text} No neuron alone makes a difference that one could see."


# ---- step 2 ---------------------------------------------------------------------------------------------------------


def say_today(letters: Mapping[str, Any], cloze: Mapping[str, Any]) -> str:
    """Both accuracies, and which of them is better than guessing."""
    text = f"By letters **{letters['right']}** of {letters['n']} are right, by cloze **{cloze['right']}**. "
    if letters["beats"] and cloze["beats"]:
        return text + "Both are better than guessing."
    if cloze["beats"]:
        return text + (
            "By letters the model is **not measurably better than guessing**; by cloze it is. So what follows is "
            "measured by cloze, and by losses, which are finer."
        )
    if letters["beats"]:
        return text + (
            "By letters the model is better than guessing, by cloze not measurably. The loss is the finer measure in "
            "what follows."
        )
    return text + (
        "**Neither is measurably better than guessing**: there is hardly an accuracy that could fall. Only the losses "
        "can show an effect in what follows."
    )


def say_die(letters: Mapping[str, Any], cloze: Mapping[str, Any]) -> str:
    """What guessing gives, and each way of asking against it."""
    lines = [f"The die gets {letters['chance'] * letters['n']:.0f} of {letters['n']} right on average."]
    for name, told in (("By letters", letters), ("By cloze", cloze)):
        verdict = "better than that" if told["beats"] else "not measurably better"
        lines.append(
            f"{name} the model gets {told['right']}: {verdict} (guessing does as well or better with probability "
            f"{say_p(told['p_value'])})."
        )
    if letters["one_answer"] > 0.9:
        lines.append(f"By letters it says the same letter to {letters['one_answer']:.0%} of the questions.")
    if letters["beats"] != cloze["beats"]:
        lines.append(
            "Same model, same questions: what it seems to know depends on how it is asked. Measure where there is "
            "something to measure."
        )
    return " ".join(lines)


# ---- step 3 ---------------------------------------------------------------------------------------------------------


def say_roles(found: "Found") -> str:
    """How many neurons have which role, and whether general ones are the most."""
    totals = found.roles.totals()
    every = sum(totals.values())
    active = every - totals["inactive"]
    if not active:
        return f"By this rule none of the {every:,} neurons is active in any subject."
    text = (
        f"Of {every:,} neurons {active:,} are active in some subject. {totals['general']:,} of them "
        f"({totals['general'] / active:.0%}) work in all {len(found.roles.tasks)} subjects (general), "
        f"{totals['domain']:,} for one field, {totals['task']:,} for one subject, {totals['mixed']:,} in other "
        "combinations."
    )
    if totals["general"] > active / 2:
        return f"{text} **Most active neurons are general here.**"
    return f"{text} **Most active neurons are not general here.**"


def expected_general(found: "Found") -> float:
    """How many neurons would be active in every subject if the subjects chose independently, layer by layer."""
    total = 0.0
    for active in found.roles.active.values():
        share = 1.0
        for row in active:
            share *= float(row.sum()) / len(row)
        total += share * active.shape[1]
    return total


def say_chance_of_general(found: "Found") -> str:
    """The count against that of independent subjects."""
    general, expected = found.roles.totals()["general"], expected_general(found)
    text = f"About {expected:.0f}; there are {general:,}."
    if general > 2 * expected:
        return (
            f"{text} So the subjects share neurons. Whether these serve all knowledge, or just reading English "
            "questions, this cannot tell: all subjects are asked in the same form."
        )
    return f"{text} So on this model the subjects share hardly more neurons than chance would."


# ---- words ----------------------------------------------------------------------------------------------------------


def say_p(value: float) -> str:
    """A p-value in the digits it deserves."""
    return "below 0.0001" if value < 1e-4 else f"{value:.2g}"


def say_role(label: str) -> str:
    """A role as an adjective."""
    return {"domain": "field's", "task": "subject's"}.get(label, label)


def say_questions(today: "Today") -> str:
    """How many questions there are, and how many were left out."""
    text = f"{len(today.questions)} questions"
    return (
        text if not today.left_out else f"{text}; {today.left_out} are too long for this model and left out"
    )


def factor(nats: float) -> str:
    """Nats as a factor of a probability, in two digits."""
    times = exp(min(nats, 50.0))
    if times < 10:
        return f"{times:.1f}"
    digits = 10 ** (len(str(int(times))) - 2)
    return f"{round(times / digits) * digits:,}"


def plain(token: str) -> str:
    """A token within a sentence of markdown, none of which it may become."""
    text = visible(token.strip() or token)
    for sign in "\\`*_[]$#<>~":
        text = text.replace(sign, "\\" + sign)
    return text
