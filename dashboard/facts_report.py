"""Reports of facts as tables and panels; no Streamlit here."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from nmke.facts import Fact

if TYPE_CHECKING:
    from nmke.metrics import FactReport

Panels = dict[str, tuple[list[float | None], list[float | None]]]


@dataclass(frozen=True)
class Score:
    """One score as it is shown: its name, its value in words, its formula."""

    name: str
    value: str
    formula: str


def probabilities(reports: "Sequence[FactReport]") -> Panels:
    """Probability of each answer's first token before and after; the true answer only where some fact has one."""
    panels: Panels = {
        "P(new answer)": (
            [report.before.target_probability for report in reports],
            [report.after.target_probability for report in reports],
        )
    }
    if any(report.before.true is not None for report in reports):
        panels["P(true answer)"] = (
            [report.before.true_probability for report in reports],
            [report.after.true_probability for report in reports],
        )
    return panels


def say_score(value: float | None) -> str:
    """A share with the digits it deserves."""
    return "–" if value is None else f"{value:.0%}" if value in (0.0, 1.0) else f"{value:.2f}"


def scores_of(report: "FactReport") -> list[Score]:
    """The scores that the fact has prompts for; each in both forms, with the formulas of both."""
    from nmke.metrics import FORMULAS

    found = []
    for name in ("reliability", "generalization", "locality", "portability"):
        other = f"{name}_probability"
        tokens, probability = report.scores[name], report.scores.get(other)
        if tokens is None:
            continue
        value, formula = f"**{say_score(tokens)}**", f"{name.capitalize()}: {FORMULAS[name]}."
        if probability is not None:
            value += f", by probability **{say_score(probability)}**"
            formula += f"\n\nBy probability: {FORMULAS[other]}."
        found.append(Score(name.capitalize(), value, formula))
    return found


def answer_table(report: "FactReport") -> pd.DataFrame:
    """What the model says to the prompt, its paraphrases, neighbours and conclusions, before and after."""
    fact, before, after = report.fact, report.before, report.after
    rows = [("edit prompt", fact.prompt, fact.target_new, before.continuation, after.continuation)]
    rows += [
        ("paraphrase", text, fact.target_new, old, new)
        for text, old, new in zip(
            fact.paraphrases, before.paraphrase_continuations, after.paraphrase_continuations, strict=True
        )
    ]
    rows += [
        ("neighbour", neighbor.prompt, neighbor.answer or "as before", old, new)
        for neighbor, old, new in zip(
            fact.neighborhood, before.neighbor_continuations, after.neighbor_continuations, strict=True
        )
    ]
    rows += [
        ("conclusion", one.prompt, one.answer, old, new)
        for one, old, new in zip(
            fact.portability, before.portability_continuations, after.portability_continuations, strict=True
        )
    ]
    return pd.DataFrame(rows, columns=["what", "prompt", "wanted", "answer before", "answer after"])


def answer_html(table: pd.DataFrame) -> str:
    """The answers as an HTML table whose long texts wrap; everything in it is escaped."""
    cell = "padding:0.35em 0.6em;vertical-align:top;border-bottom:1px solid rgba(128,128,128,0.25);text-align:left"
    head = "".join(
        f"<th style='{cell};opacity:0.7;font-weight:400'>{html.escape(str(name))}</th>" for name in table
    )
    rows = "".join(
        "<tr>"
        + "".join(f"<td style='{cell}'><bdi>{html.escape(str(text))}</bdi></td>" for text in row)
        + "</tr>"
        for row in table.itertuples(index=False)
    )
    return (
        "<div style='overflow-x:auto'><table style='width:100%;border-collapse:collapse;font-size:0.85rem'>"
        f"<tr>{head}</tr>{rows}</table></div>"
    )


def fact_table(reports: "Sequence[FactReport]") -> pd.DataFrame:
    """One row a fact: probabilities and scores."""
    return pd.DataFrame([_row(report) for report in reports])


def _row(report: "FactReport") -> dict[str, object]:
    fact: Fact = report.fact
    return {
        "prompt": fact.prompt,
        "subject": fact.subject,
        "target_new": fact.target_new,
        "target_true": fact.target_true,
        "P(new) before": report.before.target_probability,
        "P(new) after": report.after.target_probability,
        "P(true) before": report.before.true_probability,
        "P(true) after": report.after.true_probability,
        **report.scores,
        "answer before": report.before.continuation,
        "answer after": report.after.continuation,
    }
