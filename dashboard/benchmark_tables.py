"""The Benchmark page's numbers: runs side by side, means over seeds, the paper's table. No Streamlit, no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

#: What a point of every chart stands for; a click hands it back.
IDENTITY = ("line", "seed", "T")


@dataclass(frozen=True)
class Measure:
    """One measured quantity as it is shown.

    Attributes:
        column: its column in a run's table.
        title: its name on the screen, with its unit where it has one.
        better: which way is better.
        share: whether it lies between 0 and 1.
        meaning: what it is, in one sentence.
    """

    column: str
    title: str
    better: Literal["higher", "lower"]
    share: bool
    meaning: str


MEASURES: Mapping[str, Measure] = {
    measure.column: measure
    for measure in (
        Measure(
            "reliability",
            "reliability",
            "higher",
            True,
            "Does the model give the new answers of all edits so far, also of the earliest?",
        ),
        Measure(
            "generalization",
            "generalization",
            "higher",
            True,
            "Does it give them when the prompt is worded differently?",
        ),
        Measure(
            "locality",
            "locality",
            "higher",
            True,
            "Does it answer neighbouring prompts about other subjects as before?",
        ),
        Measure(
            "perplexity",
            "perplexity",
            "lower",
            False,
            "How surprised is the edited model by ordinary text? One token in so many, on average.",
        ),
        Measure(
            "drift",
            "drift",
            "lower",
            False,
            "How far did the edited matrices move, against their own size? A mean over those that changed; 0 for "
            "methods that leave the weights and put modules beside them.",
        ),
        Measure(
            "portability",
            "portability",
            "higher",
            True,
            "Does it draw the conclusions that follow from the new answers?",
        ),
        Measure(
            "reliability_probability",
            "reliability (probability)",
            "higher",
            True,
            "Is the new answer likelier than the true one on the edit prompt?",
        ),
        Measure(
            "generalization_probability",
            "generalization (probability)",
            "higher",
            True,
            "Is the new answer likelier than the true one on the paraphrases?",
        ),
        Measure(
            "locality_probability",
            "locality (probability)",
            "higher",
            True,
            "Is the neighbours' own answer likelier than the new one?",
        ),
        Measure(
            "drift_cosine",
            "cosine of the weights",
            "higher",
            False,
            "The cosine between the edited matrices and what they were; 1 is unchanged.",
        ),
    )
}
#: What bands and brackets are.
INTERVALS = (
    "95% bootstrap intervals over the facts (the widest of the seeds), and of measures without facts the lowest and "
    "the highest seed"
)
CURVES = ("reliability", "generalization", "locality", "perplexity", "drift", "portability")
TABLED = ("reliability", "generalization", "locality", "perplexity", "portability")


def side_by_side(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The runs' tables under each other, with columns ``run`` and ``line``.

    A line is what a chart draws: a label, followed by its run's name when there are several runs.

    Args:
        tables: run name to its table.
    """
    several = len(tables) > 1
    parts = []
    for run, table in tables.items():
        if table.empty:
            continue
        named = table.assign(run=run)
        named["line"] = [line_name(label, run, several) for label in table["label"]]
        parts.append(named)
    if not parts:
        return pd.DataFrame(columns=["run", "line", "label", "method", "seed", "T"])
    return pd.concat(parts, ignore_index=True).sort_values(["T"], kind="stable", ignore_index=True)


def line_name(label: str, run: str, several: bool) -> str:
    """What a chart calls a label of a run."""
    return f"{label} · {run}" if several else str(label)


def with_abilities(
    table: pd.DataFrame, measured: Mapping[tuple[str, int, int], Mapping[str, Any]]
) -> pd.DataFrame:
    """The table with a column ``ability_NAME`` for every ability that some mark has.

    Args:
        measured: (label, seed, T) to that mark's abilities.
    """
    names = sorted({name for found in measured.values() for name in found})
    points = list(zip(table["label"], table["seed"], table["T"], strict=True))
    columns = {
        f"ability_{name}": [_number(measured.get(point, {}).get(name)) for point in points] for name in names
    }
    return table.assign(**columns)


def known_measures(table: pd.DataFrame, wanted: Sequence[str] = tuple(MEASURES)) -> list[Measure]:
    """The measures that have at least one finite number in the table."""
    return [
        MEASURES[name]
        for name in wanted
        if name in table and np.isfinite(pd.to_numeric(table[name], errors="coerce")).any()
    ]


def lines_of(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Each line with its method, in the order of the runs and their labels."""
    pairs = table[["run", "label", "line", "method"]].drop_duplicates("line")
    return [(str(line), str(method)) for line, method in zip(pairs["line"], pairs["method"], strict=True)]


def over_seeds(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean over the seeds per line and T, with the widest interval the seeds give.

    The band goes from the lowest to the highest end of the seeds' own 95% intervals; a measure without intervals has
    the lowest and the highest seed instead.

    Returns:
        Columns line, T, value, low, high, seeds, sorted by line and T.
    """
    numbers = pd.DataFrame(
        {
            "line": table["line"],
            "T": table["T"],
            "value": _numbers(table, column),
            "low": _numbers(table, f"{column}_low", column),
            "high": _numbers(table, f"{column}_high", column),
        }
    )
    numbers = numbers[numbers["value"].notna()]
    grouped = numbers.groupby(["line", "T"], sort=True)
    found = grouped.agg(
        value=("value", "mean"), low=("low", "min"), high=("high", "max"), seeds=("value", "size")
    )
    return found.reset_index()


def _numbers(table: pd.DataFrame, column: str, otherwise: str = "") -> "pd.Series[float]":
    if column in table:
        found = pd.to_numeric(table[column], errors="coerce")
        if otherwise and otherwise in table:
            return found.fillna(pd.to_numeric(table[otherwise], errors="coerce"))
        return found
    if otherwise:
        return _numbers(table, otherwise)
    return pd.Series(np.nan, index=table.index)


def say_number(value: Any, share: bool) -> str:
    """A number with the digits it deserves."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if math.isinf(value):
        return "∞"
    if share:
        return f"{value:.2f}"
    if abs(value) >= 1e7:
        return f"{value:.1e}".replace("e+", "e")  # a ruined model's perplexity may have fifty digits
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def say_interval(value: Any, low: Any, high: Any, share: bool) -> str:
    """``0.94 [0.90, 0.97]``; the bracket only where there is an interval."""
    shown = say_number(value, share)
    if shown == "–" or low is None or high is None or (low == high == value) or pd.isna(low) or pd.isna(high):
        return shown
    return f"{shown} [{say_number(low, share)}, {say_number(high, share)}]"


def paper_table(table: pd.DataFrame, columns: Sequence[str], marks: Sequence[int]) -> pd.DataFrame:
    """The paper's table: a row a line, a column a measure at each T, cells with intervals.

    Returns:
        Index: lines. Columns: a two-level index (T, measure). A mark that a line never reached is ``–``.
    """
    lines = [line for line, _ in lines_of(table)]
    cells: dict[tuple[int, str], dict[str, str]] = {}
    for name in columns:
        measure = MEASURES[name]
        for row in over_seeds(table, name).to_dict("records"):
            cells.setdefault((int(row["T"]), name), {})[row["line"]] = say_interval(
                row["value"], row["low"], row["high"], measure.share
            )
    keys = [(int(mark), name) for mark in marks for name in columns]
    data = [[cells.get(key, {}).get(line, "–") for key in keys] for line in lines]
    titled = pd.MultiIndex.from_tuples(
        [(f"T = {mark}", MEASURES[name].title) for mark, name in keys], names=["T", "measure"]
    )
    return pd.DataFrame(data, index=pd.Index(lines, name="method"), columns=titled)


def headings(paper: pd.DataFrame) -> list[tuple[str, str]]:
    """(T, measure) of each column of the paper's table."""
    return [(str(column[0]), str(column[1])) for column in paper.columns.to_list()]


def one_heading(paper: pd.DataFrame) -> pd.DataFrame:
    """The paper's table with one line of headings and the methods as its first column."""
    flat = paper.copy()
    flat.columns = pd.Index([f"{name}, {mark}" for mark, name in headings(paper)])
    return flat.reset_index()


def uneven_lines(table: pd.DataFrame) -> list[str]:
    """The lines that have fewer seeds at some T than at another."""
    seeds = table.groupby(["line", "T"])["seed"].nunique().groupby("line")
    uneven = seeds.min() < seeds.max()
    return [line for line, _ in lines_of(table) if uneven[line]]


def marks_of(table: pd.DataFrame) -> list[int]:
    """The numbers of edits at which something was measured."""
    return sorted({int(mark) for mark in table["T"]}) if "T" in table else []


def seeds_of(table: pd.DataFrame) -> list[int]:
    """The seeds of the table."""
    return sorted({int(seed) for seed in table["seed"]}) if "seed" in table else []


def last_marks(marks: Sequence[int], most: int = 3) -> list[int]:
    """The marks a table opens with: first, middle and last."""
    if len(marks) <= most:
        return list(marks)
    return [marks[0], marks[len(marks) // 2], marks[-1]]


def cost_at(table: pd.DataFrame, mark: int) -> pd.DataFrame:
    """Seconds per edit and peak memory per line at one T: mean, least and most over the seeds."""
    here = table[table["T"] == mark]
    parts = {}
    for column in ("seconds_per_edit", "peak_memory_mb"):
        found = over_seeds(here, column).set_index("line")
        parts[column], parts[f"{column}_low"], parts[f"{column}_high"] = (
            found["value"],
            found["low"],
            found["high"],
        )
    order = [line for line, _ in lines_of(here)]
    return pd.DataFrame(parts).reindex(order).rename_axis("line").reset_index()


def radar_at(
    table: pd.DataFrame, mark: int, unedited: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], pd.DataFrame]:
    """Edit quality against what was kept, every axis from 0 (bad) to 1 (good).

    Axes: reliability, generalization and portability as measured; then every ability where the run has measured some,
    else locality, 1 - drift (0 where the matrices moved by their own size or more) and perplexity kept, which is the
    unedited model's perplexity divided by the edited one's, at most 1.

    Args:
        unedited: run name to the numbers of its unedited model.

    Returns:
        The axes that at least one line has, and a row a line with a column an axis.
    """
    here = table[table["T"] == mark].copy()
    abilities = [
        name for name in here if str(name).startswith("ability") and not str(name).endswith(("_low", "_high"))
    ]
    axes: dict[str, Any] = {
        name: _numbers(here, name) for name in ("reliability", "generalization", "portability")
    }
    if abilities:
        axes |= {str(name).removeprefix("ability_").replace("_", " "): here[name] for name in abilities}
    else:
        before = pd.Series(
            [
                _number(unedited.get(run, {}).get("perplexity"))
                for run in here.get("run", pd.Series([""] * len(here)))
            ],
            index=here.index,
        )
        axes["locality"] = _numbers(here, "locality")
        axes["1 - drift"] = (1 - _numbers(here, "drift")).clip(0, 1)
        axes["perplexity kept"] = (before / _numbers(here, "perplexity")).clip(0, 1)
    values = pd.DataFrame({"line": here["line"], **axes})
    means = values.groupby("line", sort=False).mean(numeric_only=True)
    means = means.dropna(axis="columns", how="all")
    return list(means.columns), means.reset_index()


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def find_texts(predictions: pd.DataFrame, kinds: Sequence[str], words: str) -> pd.DataFrame:
    """The predictions of some kinds in which the words occur anywhere, whatever their case."""
    found = predictions
    if kinds and "kind" in found:
        found = found[found["kind"].isin(list(kinds))]
    words = words.strip().lower()
    if words and not found.empty:
        there = pd.Series(False, index=found.index)
        for name in found.select_dtypes(include=["object", "string"]):
            there |= (
                found[name].map(lambda text: isinstance(text, str) and words in text.lower()).astype(bool)
            )
        found = found[there]
    return found.reset_index(drop=True)


def picked_point(event: Any) -> tuple[str, int, int] | None:
    """The first clicked point whose ``customdata`` is (line, seed, T), else None."""
    points = _get(_get(event, "selection"), "points")
    if not isinstance(points, Sequence) or isinstance(points, str):
        return None
    for point in points:
        data = _get(point, "customdata")
        # Plotly hands back arrays as dicts of their indices when they went through its binary form.
        if isinstance(data, Mapping):
            data = [data[key] for key in sorted(data, key=lambda key: int(key))]
        if isinstance(data, Sequence) and not isinstance(data, str) and len(data) >= len(IDENTITY):
            try:
                return str(data[0]), int(data[1]), int(data[2])
            except (TypeError, ValueError):
                continue
    return None


def _get(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)
