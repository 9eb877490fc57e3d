"""What a sweep's folder tells at any time: states, figures, and the best configuration of each method. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from nmke.errors import NmkeError
from nmke.lifelong.files import EVENTS, SPEC, EventLog, is_held, read_json, run_folder
from nmke.lifelong.results import FIGURES, Results
from nmke.lifelong.results import read as read_run
from nmke.sweep.files import RUNS, SUMMARY, read_manifest

QUALITY = ("reliability", "generalization", "locality")
CRITERION = (
    "the mean of reliability, generalisation and locality over all facts and seeds, at the last mark that all "
    "runs on the same model and data share; of equal ones the lower perplexity. Configurations of which a run "
    "collapsed or failed are left out"
)
#: Fewer facts cannot be halved.
LEAST_HALVED = 4


class SweepResults:
    """A sweep as it stands on the disk; see :func:`read`.

    Attributes:
        runs: what the manifest says of each: name, model, data, label, method, changes, seed, config, command.
        status: per run ``name``, ``label``, ``method``, ``model``, ``data``, ``seed``, ``state`` (waiting, running,
            done, collapsed or failed), ``message``, ``edits_done`` and ``edits``.
        complete: every run is done or has collapsed.
    """

    def __init__(
        self,
        folder: Path,
        before: "SweepResults | None" = None,
        messages: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.runs: list[dict[str, Any]] = read_manifest(folder)["runs"]
        self.at_work: bool = is_held(folder)
        told = messages if messages is not None else _messages(folder)
        self._stamps: dict[str, tuple[Any, ...]] = {}
        self._read: dict[str, Results] = {}
        problems: dict[str, str] = {}
        for run in self.runs:
            self._read_run(run, before, problems)
        self.status = [self._status(run, {**told, **problems}) for run in self.runs]
        self.complete: bool = all(entry["state"] in ("done", "collapsed") for entry in self.status)

    def run_folder(self, name: str) -> Path:
        """Where a run lies."""
        return self.folder / RUNS / name

    def run(self, name: str) -> Results | None:
        """A run's own results; None where it was not begun."""
        return self._read.get(name)

    def table(self) -> pd.DataFrame:
        """One row per run and mark: what the run is, ``T``, its figures, ``quality`` (the mean of reliability,
        generalisation and locality), ``perplexity_ratio`` to the unedited model, and ``ability``, the mean of the
        public benchmarks that were judged."""
        columns = [
            "run",
            "model",
            "data",
            "label",
            "method",
            "seed",
            "T",
            *FIGURES,
            "quality",
            "perplexity_ratio",
            "ability",
        ]
        parts = []
        for run in self.runs:
            found = self._read.get(run["name"])
            if found is None or (own := found.table()).empty:
                continue
            before = found.unedited.get("perplexity")
            about = {"run": run["name"], "model": run["model"], "data": run["data"]}
            parts.append(
                own.assign(
                    **about,
                    quality=own[list(QUALITY)].mean(axis=1),
                    perplexity_ratio=own["perplexity"] / before if before else float("nan"),
                    ability=[_ability(found, run, mark) for mark in own["T"]],
                )[columns]
            )
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def best(self) -> list[dict[str, Any]]:
        """The best configuration of each method on each model and data: see :data:`CRITERION`.

        ``chosen_on_half`` says which one the facts of even place alone would choose, and ``other_half`` its quality on
        the others, which took no part in the choice.
        """
        table, found = self.table(), []
        fallen = {entry["name"] for entry in self.status if entry["state"] in ("collapsed", "failed")}
        for (model, data), everything in table.groupby(["model", "data"], sort=False):
            out = set(everything.loc[everything["run"].isin(fallen), "label"])
            mine = everything[~everything["label"].isin(out)]
            mark = last_common_mark(mine)
            if mark is None:
                continue
            at = mine[mine["T"] == mark]
            for method, rows in at.groupby("method", sort=False):
                found.append(
                    {"model": model, "data": data, "method": method, "T": mark, **self._best(rows, mark)}
                )
        return found

    def _best(self, rows: pd.DataFrame, mark: int) -> dict[str, Any]:
        means: dict[str, dict[str, Any]] = {
            str(label): {
                "quality": _mean(own["quality"]),
                "perplexity": _mean(own["perplexity"]),
                **{name: _mean(own[name]) for name in QUALITY},
                "seconds_per_edit": _mean(own["seconds_per_edit"]),
                "seeds": len(own),
                "runs": list(own["run"]),
            }
            for label, own in rows.groupby("label", sort=False)
        }
        best = choose({label: (own["quality"], own["perplexity"]) for label, own in means.items()})
        found: dict[str, Any] = {"label": best, "of": len(means), **means[best]}
        found["changes"] = next(run["changes"] for run in self.runs if run["name"] == found["runs"][0])
        halves = {label: self._halves(own["runs"], mark) for label, own in means.items()}
        if len(means) > 1 and all(half is not None for half in halves.values()):
            scored = {label: (half[0], means[label]["perplexity"]) for label, half in halves.items() if half}
            chosen = choose(scored)
            found |= {"chosen_on_half": chosen, "other_half": (halves[chosen] or (None, None))[1]}
        return found

    def _halves(self, runs: Sequence[str], mark: int) -> tuple[float, float] | None:
        """Quality on facts of even and of odd place in the file, the mean over runs; None where it is not known."""
        parts = []
        for name in runs:
            entry = next(run for run in self.runs if run["name"] == name)
            try:
                said = self._read[name].predictions(entry["label"], entry["seed"], mark)
            except NmkeError:
                return None
            if said["file_index"].nunique() < LEAST_HALVED:
                return None
            parts.append([quality_of(said[said["file_index"] % 2 == half]) for half in (0, 1)])
        return fmean(part[0] for part in parts), fmean(part[1] for part in parts)

    def _read_run(
        self, run: Mapping[str, Any], before: "SweepResults | None", problems: dict[str, str]
    ) -> None:
        name, folder = run["name"], self.run_folder(run["name"])
        if not (folder / SPEC).is_file():
            return
        log = EventLog(run_folder(folder, run["label"], run["seed"]) / EVENTS)
        self._stamps[name] = (*log.stamp(), is_held(folder))
        known = before._read.get(name) if before is not None and before.folder == self.folder else None
        if known is not None and before is not None and before._stamps.get(name) == self._stamps[name]:
            self._read[name] = known
            return
        try:
            self._read[name] = read_run(folder, known)
        except NmkeError as error:
            problems[name] = str(error)

    def _status(self, run: Mapping[str, Any], messages: Mapping[str, str]) -> dict[str, Any]:
        entry: dict[str, Any] = {
            key: run[key] for key in ("name", "label", "method", "model", "data", "seed")
        }
        found = self._read.get(run["name"])
        own = found.status[0] if found is not None and found.status else {}
        state, message = own.get("state", "waiting"), own.get("message", "")
        if state not in ("done", "collapsed", "running") and run["name"] in messages:
            state, message = "failed", messages[run["name"]]
        return {
            **entry,
            "state": state,
            "message": message,
            "edits_done": own.get("edits_done", 0),
            "edits": run["config"]["edits"],
        }


def read(folder: Path, before: SweepResults | None = None) -> SweepResults:
    """What a sweep's folder holds.

    Args:
        before: what was read of it earlier; runs that have not changed since are not read again.

    Raises:
        NmkeError: it is no sweep's folder, or its manifest is damaged.
    """
    return SweepResults(Path(folder), before)


def last_common_mark(table: pd.DataFrame) -> int | None:
    """The last mark that every run of a table has; None where there is none."""
    marks = [set(own["T"]) for _, own in table.groupby("run")]
    common = set.intersection(*marks) if marks else set()
    return int(max(common)) if common else None


def choose(scores: Mapping[str, tuple[float | None, float | None]]) -> str:
    """The label with the highest quality; of equal ones that with the lowest perplexity, then the first.

    Args:
        scores: quality and perplexity of each label; what is not known counts as worst.
    """

    def rank(label: str) -> tuple[float, float]:
        quality, perplexity = scores[label]
        return (
            -quality if quality is not None else float("inf"),
            perplexity if perplexity is not None else float("inf"),
        )

    return min(scores, key=rank)


def quality_of(said: pd.DataFrame) -> float:
    """The mean of reliability, generalisation and locality of a table of predictions; the mean of those it has."""
    per_fact = said.groupby(["kind", "fact"])["share"].mean()
    kinds = ("prompt", "paraphrase", "neighborhood")
    return fmean(per_fact[kind].mean() for kind in kinds if kind in per_fact.index.get_level_values(0))


def summary_of(results: SweepResults) -> dict[str, Any]:
    """What ``summary.json`` holds: per run its state, settings, command and last figures; the best configurations."""
    table = results.table()
    last = table.sort_values("T").groupby("run").tail(1).set_index("run") if len(table) else table
    figures = ("T", "n", "quality", *(name for name in FIGURES if name != "n"), "perplexity_ratio")
    runs = {}
    for run, entry in zip(results.runs, results.status, strict=True):
        state = (
            "waiting" if entry["state"] == "running" else entry["state"]
        )  # out of date as soon as it is written
        measures = (
            {name: _number(last.loc[run["name"], name]) for name in figures}
            if run["name"] in last.index
            else None
        )
        told = {key: run[key] for key in ("label", "method", "model", "data", "seed", "changes", "command")}
        runs[run["name"]] = {
            "state": state,
            "message": entry["message"],
            "edits_done": entry["edits_done"],
            **told,
            "last": measures,
        }
    return {"complete": results.complete, "criterion": CRITERION, "best": results.best(), "runs": runs}


def _messages(folder: Path) -> dict[str, str]:
    """What the last driver said about runs that could not be begun; their own folders do not tell it."""
    if not (folder / SUMMARY).is_file():
        return {}
    runs = read_json(folder / SUMMARY).get("runs", {})
    return {name: run["message"] for name, run in runs.items() if run["state"] == "failed"}


def _ability(found: Results, run: Mapping[str, Any], mark: int) -> float:
    """The mean of a mark's abilities; no number where none was judged."""
    marks = (event for event in found.events(run["label"], run["seed"]) if event["event"] == "mark")
    judged = next((event.get("ability") for event in marks if event["position"] == mark), None) or {}
    known = [float(value) for value in judged.values() if isinstance(value, int | float)]
    return fmean(known) if known else float("nan")


def _mean(values: pd.Series) -> float | None:
    known = values.dropna()
    return float(known.mean()) if len(known) == len(values) and len(values) else None


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
