"""How a method's line looks on every chart of the Benchmark page: colour, dash and symbol, and text made safe."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from dashboard.benchmark_tables import lines_of
from dashboard.edit_charts import SEQUENCE

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
#: Plotly's symbols, and the characters that stand for them in a label.
SYMBOLS = (
    ("circle", "●"),
    ("square", "■"),
    ("diamond", "◆"),
    ("triangle-up", "▲"),
    ("triangle-down", "▼"),
    ("cross", "✚"),
    ("x", "✖"),
    ("star", "★"),
    ("hexagon", "⬢"),
)


@dataclass(frozen=True)
class Look:
    """How one line is drawn: colour and symbol say the method, the dash tells its lines apart."""

    colour: str
    dash: str
    symbol: str
    sign: str


def looks(lines: Sequence[tuple[str, str]], methods: Sequence[str] = ()) -> dict[str, Look]:
    """The look of every line; a method keeps its colour and symbol whatever else is drawn.

    Args:
        lines: (line, method) of each line.
        methods: all methods in their fixed order; others follow in the order they come.
    """
    order = list(dict.fromkeys([*methods, *(method for _, method in lines)]))
    found, seen = {}, dict.fromkeys(order, 0)
    for line, method in lines:
        place = order.index(method)
        symbol, sign = SYMBOLS[place % len(SYMBOLS)]
        found[line] = Look(SEQUENCE[place % len(SEQUENCE)], DASHES[seen[method] % len(DASHES)], symbol, sign)
        seen[method] += 1
    return found


def used_lines(table: pd.DataFrame, methods: Sequence[str]) -> dict[str, Look]:
    """The looks of the table's lines."""
    return looks(lines_of(table), methods)


def see_through(colour: str, opacity: float) -> str:
    """A colour of the form ``#rrggbb`` with that opacity, as Plotly writes it."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def escape(text: str) -> str:
    """Text that Plotly must not read as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
