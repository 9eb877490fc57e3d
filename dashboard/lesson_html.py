"""Questions with what the model wrote to each, as HTML that wraps; for ``st.html``."""

import html
from collections.abc import Mapping, Sequence

_CELL = (
    "overflow-wrap:anywhere;padding:0.35rem 0.6rem 0.35rem 0;vertical-align:top;"
    "border-bottom:1px solid rgba(128,128,128,0.25)"
)


def written(questions: Sequence[tuple[str, str]], answers: Mapping[str, Sequence[str]]) -> str:
    """A table with a row a question.

    Args:
        questions: text and right answer of each.
        answers: by column's title, what was written to each question; everything is escaped.
    """
    names = ["question (right answer)", *answers]
    head = "".join(
        f"<th style='{_CELL};text-align:left;font-weight:400;opacity:0.7'>{html.escape(name)}</th>"
        for name in names
    )
    rows = []
    for place, (text, right) in enumerate(questions):
        asked = f"{html.escape(text)} <span style='opacity:0.7'>({html.escape(right)})</span>"
        said = [html.escape(" ".join(column[place].split()) or "(nothing)") for column in answers.values()]
        cells = "".join(f"<td style='{_CELL}'>{cell}</td>" for cell in (asked, *said))
        rows.append(f"<tr>{cells}</tr>")
    return (
        "<table style='border-collapse:collapse;width:100%;font-size:0.85rem;line-height:1.45;table-layout:fixed'>"
        f"<tr>{head}</tr>{''.join(rows)}</table>"
    )
