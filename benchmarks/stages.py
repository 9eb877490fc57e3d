"""Seconds and peak memory of every stage on the default model.

    python benchmarks/stages.py [--model smollm2-135m] [--facts 3] [--out benchmarks/results/stages.json]

Each stage runs in this one process, in order; medians where a stage repeats. Peak memory is the process's high-water
mark after the stage. Statistics that are already on disk are read, and the table says so.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from nmke.attribution import AttributionConfig, attribute, prompts_of
from nmke.contexts import context_templates
from nmke.examples import builtin_facts
from nmke.loading import load_model
from nmke.masks import build_masks
from nmke.methods import get_method
from nmke.metrics import measure_fact
from nmke.moments import collect_statistics, find_statistics
from nmke.presets import preset_for
from nmke.progress import Silent
from nmke.session import EditSession
from nmke.versions import library_versions

T = TypeVar("T")


class Table:
    """Rows of (stage, median seconds, repeats, peak memory)."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def time(self, stage: str, work: Callable[[], T], repeats: int = 1) -> T:
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            result = work()
            seconds.append(time.perf_counter() - started)
        self.add(stage, statistics.median(seconds), repeats)
        return result

    def add(self, stage: str, seconds: float, repeats: int) -> None:
        row = {"stage": stage, "seconds": round(seconds, 4), "repeats": repeats, "peak_mb": peak_mb()}
        self.rows.append(row)
        print(f"{stage:<58} {seconds:>9.3f} s  x{repeats:<3} peak {row['peak_mb']:>6.0f} MB", flush=True)


def peak_mb() -> float:
    """High-water mark of resident memory in MB (ru_maxrss is bytes on macOS, KiB elsewhere)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--facts", type=int, default=3, help="built-in facts to edit, one after the other")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/stages.json"))
    chosen = parser.parse_args()

    table = Table()
    model = table.time("load", lambda: load_model(chosen.model))
    table.time("weight hash", lambda: model.weight_hash)
    facts = builtin_facts()[: max(8, chosen.facts)]
    method = get_method("nmke")
    preset = preset_for(model, "nmke")
    config: Any = preset.config
    templates = table.time(
        "context templates (read from disk after the first time)", lambda: context_templates(model)
    )
    cached = find_statistics(model, config.statistics, config.layers) is not None
    name = f"second moments, layers {config.layers[0]}-{config.layers[-1]}, {config.statistics.tokens} tokens"
    found = table.time(
        f"{name}{' (from disk)' if cached else ''}",
        lambda: collect_statistics(model, config.statistics, config.layers),
    )
    table.time(
        "null spaces of these layers",
        lambda: [found.null_space(layer, config.null_space_threshold) for layer in config.layers],
    )
    prompts = prompts_of(facts[:8])
    for kind in ("mpc", "psa", "lps"):
        layers = None if kind == "mpc" else config.layers
        where = "all layers" if layers is None else f"{len(config.layers)} layers"
        scored = table.time(
            f"{kind.upper()}, 8 prompts, {where}",
            lambda kind=kind, layers=layers: attribute(
                model, prompts, layers, AttributionConfig.make(kind=kind)
            ),  # type: ignore[misc]
            repeats=3 if kind == "mpc" else 1,
        )
        if kind == "mpc":
            table.time("masks of all layers from cached scores", lambda s=scored: build_masks(s), repeats=5)  # type: ignore[misc]
    edit_facts(table, model, method, config, facts[: chosen.facts], templates)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "command": " ".join(["python", "benchmarks/stages.py", *sys.argv[1:]]),
        "model": model.name,
        "device": model.device,
        "threads": torch.get_num_threads(),
        "libraries": library_versions(),
        "preset": f"{preset.status}: {preset.figures}",
        "stages": table.rows,
    }
    chosen.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written to {chosen.out}")


def edit_facts(table: Table, model: Any, method: Any, config: Any, facts: Any, templates: Any) -> None:
    """Plan, apply, measure and undo each fact alone; medians over facts."""
    session = EditSession(model)
    seconds: dict[str, list[float]] = {}
    for fact in facts:
        edit = method.plan(session, [fact], config, Silent())
        for stage, spent in edit.seconds.items():
            seconds.setdefault(f"edit: {stage}", []).append(spent)
        for stage, work in (
            ("edit: apply", lambda edit=edit: session.apply(edit)),
            ("edit: measure without continuations", lambda fact=fact: _measured(session, model, fact)),
            ("edit: undo", session.undo),
        ):
            started = time.perf_counter()
            work()
            seconds.setdefault(stage, []).append(time.perf_counter() - started)
    for stage, spent in seconds.items():
        table.add(f"{stage} ({len(templates)} contexts)", statistics.median(spent), len(spent))


def _measured(session: EditSession, model: Any, fact: Any) -> None:
    with session.active():
        measure_fact(model, fact)


if __name__ == "__main__":
    main()
