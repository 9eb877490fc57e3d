"""Facts, settings and comparisons that the tests of lifelong runs share."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from nmke.errors import (
    Cancelled,
)
from nmke.facts import Consequence, Fact, Neighbor
from nmke.lifelong import Entrant, LifelongConfig, Results, read, run, start
from nmke.lifelong.results import FIGURES
from nmke.loading import LoadedModel
from nmke.methods.nmke import NMKEConfig
from nmke.progress import Progress

PLACES = ("France", "Italy", "Spain", "Germany", "England", "London", "Madrid", "Rome")


FACTS = tuple(
    Fact(
        "The capital of {} is",
        place,
        answer,
        target_true="Paris",
        paraphrases=(f"You and I take the boat. {place} has the capital",),
        neighborhood=(Neighbor("A cat says", "meow"), Neighbor("The river is")),
        portability=(Consequence(f"The boat that you take to {place} is in", answer),),
    )
    for place, answer in zip(
        PLACES, ("Rome", "Madrid", "the boat", "meow", "dog", "wide", "woof", "German"), strict=True
    )
)


TIMES = ("seconds", "preparation", "stages", "peak_memory", "versions")


def settings(text: str, **changed: Any) -> NMKEConfig:
    values = {
        "layers": (1, 2),
        "null_space_threshold": 1e6,
        "statistics": {"text": text, "tokens": 400, "window": 32},
        "target": {"steps": 3, "weight_decay": 0.0, "learning_rate": 0.1},
        "attribution": {"kind": "mpc"},
    }
    return NMKEConfig.make(**{**values, **changed})


def config(text: str, **changed: Any) -> LifelongConfig:
    values = {
        "edits": 5,
        "marks": (1, 3, 5),
        "checkpoint_every": 2,
        "perplexity_tokens": 64,
        "perplexity_text": text,
    }
    return LifelongConfig.make(**{**values, **changed})


def entrants(text: str) -> list[Entrant]:
    return [Entrant("nmke", "nmke", settings(text)), Entrant("timid", "nmke", settings(text, ridge=50.0))]


def go(
    folder: Path, model: LoadedModel, text: str, progress: Progress | None = None, **changed: Any
) -> Results:
    start(folder, model, FACTS, entrants(text)[:1], config(text, **changed), "here")
    run(folder, model, progress)
    return read(folder)


def timeless(value: Any) -> Any:
    """Without what differs between two runs of the same: seconds, memory, versions, and resumes."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not k.startswith(TIMES)}
    if isinstance(value, list):
        return [
            timeless(v)
            for v in value
            if not (isinstance(v, dict) and v.get("event") in ("resume", "stopped"))
        ]
    return value


def same(one: Results, other: Results) -> None:
    drop = [name for name in FIGURES if name.startswith(TIMES)]
    pd.testing.assert_frame_equal(
        one.table().drop(columns=drop), other.table().drop(columns=drop), check_exact=True
    )
    for row in one.table().itertuples():
        pd.testing.assert_frame_equal(
            one.predictions(row.label, row.seed, row.T), other.predictions(row.label, row.seed, row.T)
        )
    for label, seed in {(row["label"], row["seed"]) for row in one.status}:
        assert timeless(one.events(label, seed)) == timeless(other.events(label, seed))
    summaries = [json.loads((results.folder / "summary.json").read_text()) for results in (one, other)]
    assert timeless(summaries[0]) == timeless(summaries[1])


class StopsAt(Progress):
    """Cancels at one of its updates."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.count, self.stages = at, 0, []

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        assert total is None or 0 <= done <= total
        if stage not in self.stages:
            self.stages.append(stage)
        self.count += 1
        if self.count == self.at:
            raise Cancelled


def whole_updates(llama: LoadedModel, text: str, tmp_path: Path) -> int:
    """How many times a whole run tells its progress."""
    count = StopsAt()
    go(tmp_path / "counted", llama, text, count)
    return count.count
