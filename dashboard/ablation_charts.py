"""The figures of the Ablation page and of the lesson: tables in, Plotly figures out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboard.charts import KIND_COLOURS, ORIGINAL, PLAIN, finish, shorten
from dashboard.roles_charts import ROLE_COLOURS

#: What a set's label is drawn in, by its first word; other sets get the last colour.
COLOURS: Mapping[str, str] = {
    **ROLE_COLOURS,
    "inactive": "#56B4E9",  # the roles' own grey is that of no ablation here
    "knowledge-general": KIND_COLOURS["general"],
    "knowledge-specific": KIND_COLOURS["specific"],
}
BY_HAND = "#E69F00"
LOST, KEPT, GAINED, WRONG = "#B2182B", "#009E73", "#2166AC", "#DDDDDD"
#: So many bars of a group carry their numbers.
_NUMBERED = 12


@dataclass(frozen=True)
class Scale:
    """How a score is drawn.

    Attributes:
        title: the axis' name with its unit.
        share: whether it goes from 0 to 1.
        chance: what guessing gives; None where there is no such thing.
    """

    title: str
    share: bool
    chance: float | None = None

    def say(self, value: float) -> str:
        """A value in the digits it deserves."""
        return f"{value:.1%}" if self.share else f"{value:.2f}"


def colour_of(kind: str, label: str) -> str:
    """The colour of a condition: grey for none, its role's for a set and for the random sets beside it."""
    if kind == "none":
        return ORIGINAL
    return COLOURS.get(label.partition(":")[0], BY_HAND)


def bars(table: pd.DataFrame, scale: Scale) -> go.Figure:
    """Groups of bars with intervals: none, each set, and beside each the mean of its random sets as a hatched bar.

    Args:
        table: rows of ``AblationResults.table`` with a column ``group``, in the order they are drawn.
    """
    figure = go.Figure()
    groups = list(dict.fromkeys(table["group"]))
    names = list(dict.fromkeys(table["name"]))
    strengths = _strengths(table)
    for name in names:
        mine = table[table["name"] == name]
        first = mine.iloc[0]
        random = first["kind"] == "random"
        colour = colour_of(first["kind"], first["label"])
        figure.add_bar(
            x=[groups.index(group) for group in mine["group"]],
            y=mine["value"].tolist(),
            name=shorten(name, 44),
            marker={
                "color": colour,
                "opacity": strengths[name],
                "pattern": {
                    "shape": "/" if random else "",
                    "fillmode": "replace",
                    "fgcolor": colour,
                    "size": 6,
                },
                "line": {"color": colour, "width": 1},
            },
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (mine["high"] - mine["value"]).tolist(),
                "arrayminus": (mine["value"] - mine["low"]).tolist(),
                "color": PLAIN,
                "thickness": 1.5,
                "width": 4,
            },
            text=[scale.say(value) for value in mine["value"]]
            if len(names) * len(groups) <= _NUMBERED
            else None,
            textposition="inside",
            insidetextanchor="start",
            # On hatched bars there is no ground of one colour to be read against.
            insidetextfont={"size": 12, "color": PLAIN} if random else {"size": 12},
            textangle=0,
            customdata=[_told(row, scale) for row in mine.to_dict("records")],
            hovertemplate=f"{name}<br>%{{customdata}}<extra></extra>",
        )
    if scale.chance is not None:
        figure.add_hline(
            y=scale.chance,
            line={"dash": "dot", "color": PLAIN, "width": 1.5},
            annotation={"text": "chance", "font": {"size": 12, "color": PLAIN}},
            annotation_position="top right",
        )
    finish(figure, height=330)
    figure.update_layout(
        barmode="group", bargap=0.18, bargroupgap=0.04, margin={"t": 26 + 22 * -(-len(names) // 3)}
    )
    figure.update_xaxes(
        tickvals=list(range(len(groups))), ticktext=[shorten(group, 30) for group in groups], showgrid=False
    )
    figure.update_yaxes(title=scale.title, rangemode="tozero", tickformat=".0%" if scale.share else "")
    return figure


def dose(curve: pd.DataFrame, scale: Scale) -> go.Figure:
    """A score against k, a line a role with its interval, and dashed the random sets beside it.

    Args:
        curve: rows of ``AblationResults.curve``: label, kind, k, value, low, high.
    """
    figure = go.Figure()
    ks = sorted(set(curve["k"]))
    for (label, kind), line in curve.groupby(["label", "kind"], sort=False):
        colour = colour_of(str(kind), str(label))
        places = [ks.index(k) for k in line["k"]]
        random = kind == "random"
        figure.add_scatter(
            x=[*places, *places[::-1]],
            y=[*line["high"], *line["low"][::-1]],
            fill="toself",
            mode="lines",
            line={"width": 0},
            fillcolor=_see_through(colour, 0.08 if random else 0.18),
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=places,
            y=line["value"].tolist(),
            mode="lines+markers",
            name=f"random like {label}" if random else str(label),
            line={"color": colour, "dash": "dash" if random else "solid", "width": 2},
            marker={"color": colour, "size": 8, "symbol": "circle-open" if random else "circle"},
            customdata=[f"k = {row['k']}: {_told(row, scale)}" for row in line.to_dict("records")],
            hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
        )
    if scale.chance is not None:
        figure.add_hline(y=scale.chance, line={"dash": "dot", "color": PLAIN, "width": 1.5})
    labels = curve["label"].nunique()
    finish(figure, height=330)
    figure.update_layout(margin={"t": 26 + 22 * max(1, -(-2 * labels // 4))})
    figure.update_xaxes(
        title="k: neurons switched off",
        tickvals=list(range(len(ks))),
        ticktext=[str(k) for k in ks],
        showgrid=False,
    )
    figure.update_yaxes(title=scale.title, rangemode="tozero", tickformat=".0%" if scale.share else "")
    return figure


def changes(counts: pd.DataFrame) -> go.Figure:
    """How many questions each condition lost, kept, gained and left wrong: one stacked bar a condition.

    Args:
        counts: columns name, kept, lost, gained, wrong.
    """
    figure = go.Figure()
    looks = (
        ("kept", "still right", KEPT),
        ("lost", "lost", LOST),
        ("gained", "gained", GAINED),
        ("wrong", "still wrong", WRONG),
    )
    for column, title, colour in looks:
        figure.add_bar(
            x=counts[column].tolist(),
            y=list(range(len(counts))),
            orientation="h",
            name=title,
            marker={"color": colour},
            text=[str(count) if count else "" for count in counts[column]],
            textposition="inside",
            customdata=counts["name"].tolist(),
            hovertemplate=f"%{{customdata}}: %{{x}} {title}<extra></extra>",
        )
    finish(figure, height=100 + 30 * max(len(counts), 2))
    figure.update_layout(barmode="stack", bargap=0.25, legend={"traceorder": "normal"})
    figure.update_xaxes(title="questions", showgrid=False)
    figure.update_yaxes(
        tickvals=list(range(len(counts))),
        ticktext=[shorten(name, 34) for name in counts["name"]],
        range=[len(counts) - 0.5, -0.5],
        showgrid=False,
    )
    return figure


def loss_changes(table: pd.DataFrame) -> go.Figure:
    """Each question's change of a loss, sorted, one line a condition: above zero the ablation hurt.

    Args:
        table: columns name, kind, label, change (nats); one row a condition and question.
    """
    figure = go.Figure()
    for name, mine in table.groupby("name", sort=False):
        first, ordered = mine.iloc[0], sorted(mine["change"])
        share = [100 * (place + 0.5) / len(ordered) for place in range(len(ordered))]
        figure.add_scatter(
            x=share,
            y=ordered,
            mode="lines",
            name=shorten(str(name), 44),
            line={
                "color": colour_of(first["kind"], first["label"]),
                "dash": "dash" if first["kind"] == "random" else "solid",
            },
            hovertemplate="%{y:+.2f} nats<extra>%{fullData.name}</extra>",
        )
    figure.add_hline(y=0, line={"color": PLAIN, "width": 1})
    finish(figure, height=300)
    figure.update_layout(margin={"t": 26 + 22 * -(-table["name"].nunique() // 3)})
    figure.update_xaxes(title="questions, the least hurt first (%)", showgrid=False)
    figure.update_yaxes(title="change of the loss (nats per token)")
    return figure


def _told(row: Mapping[Any, Any], scale: Scale) -> str:
    text = f"{scale.say(row['value'])} [{scale.say(row['low'])}, {scale.say(row['high'])}]"
    seeds = row.get("seeds")
    if isinstance(seeds, Sequence) and len(seeds) > 1:
        text += f"<br>each random set: {', '.join(scale.say(seed) for seed in seeds)}"
    return f"{text}<br>{row['n']} questions"


def _strengths(table: pd.DataFrame) -> dict[str, float]:
    """How strong each condition's colour is: of one role's several k the largest is the strongest."""
    found: dict[str, float] = {}
    for _, mine in table.groupby(["kind", "label"], sort=False):
        ks = sorted(set(mine["k"]))
        for name, k in zip(mine["name"], mine["k"], strict=True):
            found[str(name)] = 1.0 if len(ks) == 1 else 0.45 + 0.55 * ks.index(k) / (len(ks) - 1)
    return found


def _see_through(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
