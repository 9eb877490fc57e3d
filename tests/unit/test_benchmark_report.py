"""The Benchmark page's files: LaTeX that compiles and an HTML page that asks no server for anything."""

import re
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest

from dashboard import benchmark_charts as drawing
from dashboard import benchmark_looks
from dashboard import benchmark_tables as tables
from dashboard.benchmark_report import Figure, Report, escape_latex, html_report, latex_table
from tests.unit.test_benchmark_charts import METHODS, one_run

NASTY = '50% of $x_1 & {y} #2 ~^\\ </script><script src="https://example.org/x.js">'


def report(**changes: Any) -> Report:
    table = one_run()
    figure = drawing.curves(
        table.assign(line=NASTY),
        drawing.measures_named(("reliability",)),
        {NASTY: benchmark_looks.used_lines(table, METHODS)["NMKE"]},
        log=True,
    )
    made: dict[str, Any] = {
        "title": f"Benchmark: {NASTY}",
        "facts": {"seeds": "0, 1"},
        "paper": tables.paper_table(table, ["reliability", "locality"], [1, 100]),
        "figures": [Figure("Curves", figure.to_dict(), "How to read it.")],
        "table": table,
        "status": pd.DataFrame([{"label": NASTY, "seed": 0, "state": "done"}]),
        "specs": {"a": {"model": {"name": NASTY}, "seeds": [0, 1]}},
        "formulas": {"reliability": "share of target tokens"},
        "versions": {"nmke": "1.2.3"},
    }
    return Report(**{**made, **changes})


class Links(HTMLParser):
    """Collects the tags that would fetch something, and the text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.scripts = 0
        self.text: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.scripts += tag == "script"
        self.links += [
            f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href", "data", "action")
        ]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text.append(data)


def parsed(text: str) -> Links:
    links = Links()
    links.feed(text)
    return links


def test_the_report_is_one_file_that_asks_no_server_for_anything() -> None:
    text = html_report(report())
    found = parsed(text)
    assert found.links == []
    assert "@import" not in text.split("<script>")[0]
    assert text.count("plotly.js v") == 1, "the drawing library is there once"


def test_the_report_has_its_tables_settings_formulas_seeds_and_versions() -> None:
    words = "\n".join(parsed(html_report(report())).text)
    for wanted in (
        "0, 1",
        "reliability, T = 100",
        "0.90 [0.80, 1.00]",
        "share of target tokens",
        "1.2.3",
        '"seeds"',
    ):
        assert wanted in words
    assert "How to read it." in words


def test_text_of_a_run_cannot_become_markup_in_the_report() -> None:
    harmless = parsed(html_report(report(title="x", status=pd.DataFrame(), specs={}))).scripts
    assert parsed(html_report(report())).scripts == harmless
    assert NASTY in "".join(parsed(html_report(report())).text)


def test_a_figures_own_text_cannot_end_its_script() -> None:
    assert '</script><script src="https://example.org' not in html_report(report())


def test_every_sign_that_latex_reads_as_markup_is_escaped() -> None:
    assert escape_latex("50% & $x_1 #2 {y}") == r"50\% \& \$x\_1 \#2 \{y\}"
    assert escape_latex("a\\b~c^d") == r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d"
    assert escape_latex("NMKE · run ∞ –") == r"NMKE $\cdot$ run $\infty$ --"


def test_the_latex_table_has_booktabs_rules_and_as_many_cells_in_every_row() -> None:
    text = latex_table(tables.paper_table(one_run(), ["reliability", "locality"], [1, 100]), "50% of all")
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert r"\begin{tabular}{lcccc}" in text
    assert r"\multicolumn{2}{c}{$T = 1$} & \multicolumn{2}{c}{$T = 100$}" in text
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}" in text
    assert r"\caption{50\% of all}" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    rows = [row for row in body.split(r"\\") if row.strip()]
    assert [row.count("&") for row in rows] == [4, 4]
    assert r"NMKE & 0.90 {\scriptsize [0.80, 1.00]} & 1.00 &" in body
    assert body.count("--") == 2, "what was not reached"


@pytest.mark.parametrize("name", ["a_b", "50%", "A & B", "{x}"])
def test_method_names_are_escaped_in_the_latex_table(name: str) -> None:
    table = one_run().assign(line=name, label=name)
    text = latex_table(tables.paper_table(table, ["locality"], [1]), "")
    row = text.split("\\midrule\n")[1].split("\n")[0]
    assert row.startswith(escape_latex(name) + " & ")
    assert not re.search(r"(?<!\\)[%#_]", row)
