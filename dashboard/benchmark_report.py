"""The Benchmark page's files: the paper's table for LaTeX, and one HTML page that works without a network."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from dashboard.benchmark_tables import INTERVALS, headings, one_heading

_SIGNS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "·": r"$\cdot$",
    "∞": r"$\infty$",
    "–": "--",
    "×": r"$\times$",
}

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1b1f24;background:#fff}
body{max-width:1180px;margin:2rem auto;padding:0 1.5rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem}
table{border-collapse:collapse;font-size:13px}
th,td{padding:.25rem .7rem;text-align:left;border-bottom:1px solid #d8dde3}
thead th{border-bottom:2px solid #7f7f7f}
figure{margin:1rem 0}figcaption{color:#4a525b;font-size:13px}
pre{background:#f3f5f7;padding:1rem;overflow:auto;font-size:12px}.wide{overflow-x:auto}
"""


@dataclass(frozen=True)
class Figure:
    """One figure of the report: its heading, its specification (``to_dict``) and the sentence under it."""

    title: str
    spec: Mapping[str, Any]
    caption: str


@dataclass(frozen=True)
class Report:
    """Everything the HTML report tells.

    Attributes:
        title: the runs' names.
        facts: short statements for the top, name to value (facts, seeds, model, ...).
        paper: the paper's table (two levels of columns).
        figures: in their order.
        table: every measured number, one row a label, seed and T.
        status: one row a label and seed.
        specs: run name to its specification.
        formulas: measure to how it is computed.
        versions: name to version of what made this report.
    """

    title: str
    facts: Mapping[str, str]
    paper: pd.DataFrame
    figures: Sequence[Figure]
    table: pd.DataFrame
    status: pd.DataFrame
    specs: Mapping[str, Mapping[str, Any]]
    formulas: Mapping[str, str]
    versions: Mapping[str, str] = field(default_factory=dict)


def escape_latex(text: str) -> str:
    """Text in which LaTeX reads no sign as markup."""
    return "".join(_SIGNS.get(sign, sign) for sign in text)


def latex_table(paper: pd.DataFrame, caption: str) -> str:
    """The paper's table in booktabs rules.

    Args:
        paper: index of methods, columns (T, measure), cells as text such as ``0.94 [0.90, 0.97]``.
        caption: plain text under the table.
    """
    groups: list[tuple[str, int]] = []
    for mark, _ in headings(paper):
        if groups and groups[-1][0] == mark:
            groups[-1] = (mark, groups[-1][1] + 1)
        else:
            groups.append((mark, 1))
    heads, rules, start = [], [], 2
    for mark, width in groups:
        heads.append(rf"\multicolumn{{{width}}}{{c}}{{${escape_latex(mark)}$}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    names = [escape_latex(str(name)) for _, name in headings(paper)]
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{l{'c' * len(names)}}}",
        r"\toprule",
        " & ".join(["", *heads]) + r" \\",
        " ".join(rules),
        " & ".join(["Method", *names]) + r" \\",
        r"\midrule",
    ]
    for name, row in zip(paper.index, paper.itertuples(index=False, name=None), strict=True):
        lines.append(
            " & ".join([escape_latex(str(name)), *(_latex_cell(str(cell)) for cell in row)]) + r" \\"
        )
    lines += [
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{escape_latex(caption)}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(cell: str) -> str:
    value, bracket, interval = cell.partition(" [")
    if not bracket:
        return escape_latex(cell)
    return rf"{escape_latex(value)} {{\scriptsize [{escape_latex(interval)}}}"


def html_report(report: Report) -> str:
    """One HTML page with everything in it: it asks no server for anything."""
    body = [f"<h1>{html.escape(report.title)}</h1>", _pairs(report.facts)]
    body += ["<h2>Table</h2>", _table(one_heading(report.paper))]
    body.append(f"<p>Means over the seeds; in brackets {INTERVALS}.</p>")
    for number, figure in enumerate(report.figures):
        body.append(f"<h2>{html.escape(figure.title)}</h2><figure>{_figure(figure, number)}")
        body.append(f"<figcaption>{html.escape(figure.caption)}</figcaption></figure>")
    body += ["<h2>How each measure is computed</h2>", _pairs(report.formulas)]
    body += ["<h2>Editors and seeds</h2>", _table(report.status)]
    body += ["<h2>Every measured number</h2>", _table(report.table)]
    for name, spec in report.specs.items():
        told = json.dumps(spec, indent=1, ensure_ascii=False, default=str)
        body.append(f"<h2>Specification of {html.escape(name)}</h2><pre>{html.escape(told)}</pre>")
    body += ["<h2>Versions</h2>", _pairs(report.versions)]
    head = (
        f'<meta charset="utf-8"><title>{html.escape(report.title)}</title><style>{_STYLE}</style>'
        f"<script>{get_plotlyjs()}</script>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{"".join(body)}\n</body></html>\n'


def _figure(figure: Figure, number: int) -> str:
    drawn = go.Figure(figure.spec)
    drawn.update_layout(template="plotly_white")
    text: str = drawn.to_html(
        full_html=False, include_plotlyjs=False, div_id=f"figure-{number}", config={"displaylogo": False}
    )
    return text


def _table(table: pd.DataFrame) -> str:
    text: str = table.to_html(
        index=False, border=0, escape=True, na_rep="–", float_format=lambda value: f"{value:.4g}"
    )
    return f'<div class="wide">{text}</div>'


def _pairs(pairs: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in pairs.items()
    )
    return f"<table>{rows}</table>"
