"""What a run's folder tells at any time, also while the run goes on: states, the table of scores, predictions, events.

Reads files only; no torch.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from nmke.errors import ResourceError
from nmke.lifelong.files import (
    EVENTS,
    SPEC,
    SUMMARY,
    UNEDITED,
    EventLog,
    is_held,
    predictions_file,
    read_json,
    run_folder,
    state_of,
)
from nmke.store import write_json

#: Scores with an interval; :data:`nmke.metrics.FORMULAS` says how each is computed.
SCORES = (
    "reliability",
    "reliability_probability",
    "generalization",
    "generalization_probability",
    "locality",
    "locality_probability",
    "portability",
)
#: Columns of the table after label, method, seed and T.
FIGURES = (
    *SCORES,
    "drift",
    "drift_cosine",
    "perplexity",
    "seconds_per_edit",
    "peak_memory_mb",
    "n",
    *(f"{name}_{end}" for name in SCORES for end in ("low", "high")),
)


class Results:
    """A run as it stands on the disk; see :func:`read`.

    Attributes:
        spec: ``spec.json``: config, entrants, model, data, versions.
        complete: every entrant is done, or has collapsed.
        status: one entry per label and seed, with ``label``, ``method``, ``seed``, ``edits_done`` (facts written),
            ``state`` (waiting, running, done, collapsed or failed) and ``message``.
        unedited: the unedited model's scores and perplexity; empty until they are measured.
        at_work: somebody was working on the run when it was read.
    """

    def __init__(self, folder: Path, before: "Results | None" = None) -> None:
        self.folder = folder
        self.spec: dict[str, Any] = read_json(folder / SPEC)
        self.unedited: dict[str, Any] = read_json(folder / UNEDITED) if (folder / UNEDITED).is_file() else {}
        self._methods = {entrant["label"]: entrant["method"] for entrant in self.spec["entrants"]}
        self._stamps: dict[tuple[str, int], tuple[int, int]] = {}
        self._events: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for seed in self.spec["config"]["seeds"]:
            for label in self._methods:
                self._read_events(label, seed, before)
        self.at_work: bool = is_held(folder)
        self.status = [self._status(label, seed, self.at_work) for label, seed in self._events]
        self.complete: bool = all(entry["state"] in ("done", "collapsed") for entry in self.status)

    def table(self) -> pd.DataFrame:
        """One row per label, seed and mark ``T``, the marks rising; what was not measured is missing.

        Scores are means over the ``n`` facts written so far, ``_low`` and ``_high`` the 95% bootstrap interval over
        facts, ``drift`` and ``drift_cosine`` means over the changed matrices, ``seconds_per_edit`` the median per fact
        since the mark before.
        """
        rows = [
            {
                "label": label,
                "method": self._methods[label],
                "seed": seed,
                "T": mark["position"],
                **{name: mark.get(name) for name in FIGURES},
                "perplexity": _perplexity(mark),
            }
            for (label, seed), events in self._events.items()
            for mark in _marks(events)
        ]
        table = pd.DataFrame(rows, columns=["label", "method", "seed", "T", *FIGURES])
        return table.astype(dict.fromkeys((name for name in FIGURES if name != "n"), "float64"))

    def predictions(self, label: str, seed: int, T: int) -> pd.DataFrame:
        """What the model said at a mark: one row per fact and prompt.

        ``fact`` counts from 0 in the order of writing, ``position`` is the edit that wrote it, from 1, and
        ``file_index`` its line of facts.jsonl; see :func:`nmke.lifelong.measures.rows_of` for the others.

        Raises:
            ResourceError: not measured, or damaged.
        """
        self._require(label, seed)
        path = predictions_file(self.folder, label, seed, T)
        if not path.is_file():
            known = (
                ", ".join(str(mark["position"]) for mark in _marks(self._events[label, seed])) or "none yet"
            )
            raise ResourceError(
                f"{label}, seed {seed}, was not measured at {T}.", f"Measured so far: {known}."
            )
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as problem:
            raise ResourceError(
                f"{path.name} is damaged ({type(problem).__name__}).", "Run it again in a new folder."
            ) from problem

    def events(self, label: str, seed: int) -> list[dict[str, Any]]:
        """Every edit, mark, resume, stop and failure, the oldest first.

        Raises:
            ResourceError: no such entrant or seed.
        """
        self._require(label, seed)
        return list(self._events[label, seed])

    def _read_events(self, label: str, seed: int, before: "Results | None") -> None:
        log, key = EventLog(run_folder(self.folder, label, seed) / EVENTS), (label, seed)
        self._stamps[key] = log.stamp()  # before reading: what comes meanwhile is read the next time
        if before is not None and before._stamps.get(key) == self._stamps[key]:
            self._events[key] = before._events[key]
        else:
            self._events[key] = log.read()

    def _require(self, label: str, seed: int) -> None:
        if (label, seed) not in self._events:
            known = ", ".join(f"{label} (seed {seed})" for label, seed in self._events)
            raise ResourceError(f"The run has no {label} with seed {seed}.", f"It has {known}.")

    def _status(self, label: str, seed: int, at_work: bool) -> dict[str, Any]:
        events = self._events[label, seed]
        state, message = state_of(events)
        if state in ("", "stopped"):
            state = "running" if at_work and events and state == "" else "waiting"
        return {
            "label": label,
            "method": self._methods[label],
            "seed": seed,
            "edits_done": max((e["position"] for e in events if e["event"] == "edit"), default=0),
            "state": state,
            "message": message,
        }


def read(folder: Path, before: Results | None = None) -> Results:
    """What a run's folder holds.

    Args:
        before: what was read of the same folder earlier; event files that have not changed since are not read again.

    Raises:
        ResourceError: it is no run's folder, or a file in it is damaged.
    """
    folder = Path(folder)
    return Results(folder, before if before is not None and before.folder == folder else None)


def write_summary(folder: Path) -> None:
    """Write ``summary.json``: means over seeds of every mark's figures, and each seed's own.

    An interval of several seeds reaches from the lowest of theirs to the highest. Peak memory is the largest.

    Raises:
        ResourceError: the folder cannot be written.
    """
    results = Results(folder)
    spec = results.spec
    write_json(
        folder / SUMMARY,
        {
            "complete": results.complete,
            "model": spec["model"],
            "data": spec["data"],
            "config": spec["config"],
            "methods": {
                entrant["label"]: _method(entrant, results, spec["config"]["seeds"])
                for entrant in spec["entrants"]
            },
            "unedited": results.unedited,
        },
    )


def _method(entrant: Mapping[str, Any], results: Results, seeds: Sequence[int]) -> dict[str, Any]:
    label = entrant["label"]
    marks: dict[int, dict[str, Any]] = {}
    for seed in seeds:
        for event in _marks(results.events(label, seed)):
            figures = {name: value for name, value in event.items() if name not in ("event", "position")}
            marks.setdefault(event["position"], {})[str(seed)] = figures
    # "running" would be out of date as soon as it is written.
    states = {
        str(entry["seed"]): {
            "state": "waiting" if entry["state"] == "running" else entry["state"],
            "message": entry["message"],
        }
        for entry in results.status
        if entry["label"] == label
    }
    return {
        "method": entrant["method"],
        "config": entrant["config"],
        "states": states,
        "marks": {
            str(mark): {**_over_seeds(list(own.values())), "seeds": own}
            for mark, own in sorted(marks.items())
        },
    }


def _over_seeds(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (*FIGURES, "perplexity_nll", "seconds_per_edit_mean"):
        values = [value for one in seeds if (value := one.get(name)) is not None]
        # A perplexity of null was measured and was no number: the mean has none either.
        if not values or (name.startswith("perplexity") and len(values) < len(seeds)):
            found[name] = None
        elif name.endswith("_low"):
            found[name] = min(values)
        elif name.endswith("_high") or name == "peak_memory_mb":
            found[name] = max(values)
        else:
            found[name] = values[0] if len(values) == 1 else fmean(values)
    judged = [one["ability"] for one in seeds if "ability" in one]
    if len(judged) == len(seeds):
        names = dict.fromkeys(name for one in judged for name in one)
        found["ability"] = {name: _whole_mean([one.get(name) for one in judged]) for name in names}
    return found


def _whole_mean(values: Sequence[float | None]) -> float | None:
    """The mean, where every value is a number."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _perplexity(mark: Mapping[str, Any]) -> float | None:
    """A mark's perplexity; infinite where its logarithm is known and it was too large for a number."""
    told: float | None = mark.get("perplexity")
    return math.inf if told is None and mark.get("perplexity_nll") is not None else told


def _marks(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [event for event in events if event["event"] == "mark"]
