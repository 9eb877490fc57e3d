"""Sweeps on disk for the Benchmark page, without drawing anything: which there are, what they hold, their tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dashboard import benchmark_work, jobs, state
from nmke.errors import NmkeError, ResourceError
from nmke.storage import home

if TYPE_CHECKING:
    from nmke.sweep import SweepResults

MANIFEST = "sweep.json"
#: Measures of what an edit should do, and of what it should leave alone; the title of each.
QUALITY = "edit_quality"
KEPT: Mapping[str, str] = {
    "perplexity_kept": "perplexity kept (unedited / edited)",
    "locality": "locality",
    "ability": "ability (mean of the benchmarks)",
}
_STATES = ("running", "waiting", "failed", "collapsed", "done")


def sweeps_folder() -> Path:
    """Where the page looks for sweeps by itself."""
    return home() / "sweeps"


def list_sweeps() -> list[str]:
    """Folders of the sweeps there, the newest first."""

    def made(path: Path) -> float:
        try:
            return path.stat().st_mtime
        except OSError:
            return 0.0

    manifests = sorted(sweeps_folder().glob(f"*/{MANIFEST}"), key=made, reverse=True)
    return [str(path.parent) for path in manifests]


def is_sweep(folder: Path) -> bool:
    """Whether a sweep wrote the folder."""
    return (folder / MANIFEST).is_file()


def open_sweep(name: str) -> "SweepResults":
    """A sweep as it stands on disk; read again only when one of its files changed.

    Raises:
        NmkeError: it is no sweep, or its files are damaged.
    """
    from nmke import sweep
    from nmke.lifelong.files import is_held

    folder = Path(name)
    if not is_sweep(folder):
        raise ResourceError(
            f"The folder {folder} is no sweep: it holds no {MANIFEST}.",
            "Name the folder that `nmke sweep --out` wrote.",
        )
    try:
        key = (*benchmark_work.fingerprint(folder), is_held(folder))
        kept, called = state.get().kept, f"benchmark.sweep.{folder}"
        found: SweepResults = kept.get(called, key, lambda: sweep.read(folder, kept.newest(called)))
        return found
    except NmkeError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as problem:
        raise ResourceError(
            f"The sweep in {folder} cannot be read: {type(problem).__name__}: {problem}.",
            "Its files are damaged or of another version. Restore them from a copy, or start it again.",
        ) from problem


def say_states(results: "SweepResults") -> str:
    """One line over the runs: how many are in which state, and about how long the rest takes."""
    states = [entry["state"] for entry in results.status]
    counted = ", ".join(f"{states.count(name)} {name}" for name in _STATES if name in states)
    done = sum(entry["edits_done"] for entry in results.status)
    total = sum(entry["edits"] for entry in results.status)
    return f"{len(states)} runs: {counted}. {done:,} of {total:,} edits.{_left(results)}"


def _left(results: "SweepResults") -> str:
    """The rest at the pace of the runs so far, as many at a time as are at work now."""
    at_work = sum(entry["state"] == "running" for entry in results.status)
    table = results.table()
    if not at_work or table.empty:
        return ""
    pace = table.groupby("run")["seconds_per_edit"].last()
    usual = float(pace.mean())
    rest = sum(
        (entry["edits"] - entry["edits_done"]) * float(pace.get(entry["name"], usual))
        for entry in results.status
        if entry["state"] in ("running", "waiting")
    )
    return f" About {jobs.say_seconds(rest / at_work)} of editing left with {at_work} at work; measuring comes on top."


def progress_of(results: "SweepResults") -> pd.DataFrame:
    """One row a run: how far it is and its last figures."""
    table = results.table()
    last = table.sort_values("T").groupby("run").tail(1).set_index("run") if len(table) else table
    rows = []
    for entry in results.status:
        there = entry["name"] in last.index
        figures = {
            title: float(last.loc[entry["name"], name]) if there else float("nan")
            for title, name in (("T", "T"), ("quality", "quality"), ("perplexity ratio", "perplexity_ratio"))
        }
        ended = entry["state"] in ("done", "collapsed")
        rows.append(
            {
                "configuration": entry["label"],
                "progress": 1.0 if ended else entry["edits_done"] / entry["edits"],
                "edits": entry["edits_done"],
                "state": entry["state"],
                **figures,
                "seed": entry["seed"],
                "model": Path(entry["model"]).name,
                "data": Path(entry["data"]).name,
                "message": entry["message"],
            }
        )
    return pd.DataFrame(rows)


def points_of(table: pd.DataFrame, mark: int) -> pd.DataFrame:
    """One row per configuration at a mark, means over its seeds: quality of the edits, what was kept, seconds.

    The quality of the edits is the mean of reliability and generalisation: what an edit should do. Locality is what it
    should leave alone.
    """
    at = table[table["T"] == mark]
    at = at.assign(
        **{
            QUALITY: at[["reliability", "generalization"]].mean(axis=1),
            "perplexity_kept": 1 / at["perplexity_ratio"],
        }
    )
    names = [QUALITY, *KEPT, "seconds_per_edit", "quality", "perplexity_ratio"]
    grouped = at.groupby(["label", "method"], sort=False)
    found = grouped[names].mean().reset_index()
    return found.assign(seeds=grouped["run"].count().to_numpy())


def kept_measures(points: pd.DataFrame) -> list[str]:
    """Which measures of what was kept there are."""
    return [name for name in KEPT if points[name].notna().any()]


def front_of(points: pd.DataFrame, x: str, y: str, *, lower_x: bool) -> list[str]:
    """The labels that no other one beats in both: at least as good in each and better in one.

    Args:
        lower_x: whether lower is better along ``x``; along ``y`` higher is.
    """
    known = points[points[x].notna() & points[y].notna()]
    sign = -1.0 if lower_x else 1.0
    pairs = {row["label"]: (sign * row[x], row[y]) for row in known.to_dict("records")}

    def beaten(label: str) -> bool:
        mine = pairs[label]
        return any(other[0] >= mine[0] and other[1] >= mine[1] and other != mine for other in pairs.values())

    return [label for label in pairs if not beaten(label)]


def best_table(best: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The best configuration of each method, for the screen."""
    rows = [
        {
            "method": one["method"],
            "best configuration": one["label"],
            "of": one["of"],
            "quality": one["quality"],
            "reliability": one["reliability"],
            "generalization": one["generalization"],
            "locality": one["locality"],
            "perplexity": one["perplexity"],
            "seconds per edit": one["seconds_per_edit"],
            "seeds": one["seeds"],
            "chosen on half the facts": one.get("chosen_on_half"),
            "its quality on the other half": one.get("other_half"),
        }
        for one in best
    ]
    found = pd.DataFrame(rows)
    return found.dropna(axis="columns", how="all")


def pairs_of(results: "SweepResults") -> list[tuple[str, str]]:
    """Model and data of the sweep's comparisons; figures of different ones are not compared."""
    return list(dict.fromkeys((run["model"], run["data"]) for run in results.runs))
