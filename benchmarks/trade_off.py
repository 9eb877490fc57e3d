"""Which settings of NMKE gain most for what they cost: sequential edits under many settings, screened.

    python benchmarks/trade_off.py --facts choose.jsonl --limit 50 --out trade-off.jsonl

All facts are edited one after the other and judged once at the end: reliability, generalization, locality, their mean,
and perplexity on 4096 held-out tokens as a multiple of the unedited model's. To screen many settings, z is optimised on
the unedited model, once per fact for all settings that share its layer, contexts and settings; a real run optimises it
on the edited model, so what is chosen here is run again by `nmke lifelong` on facts that chose nothing (trade_off.md).
Settings that --out already has are not run again.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nmke.contexts import context_templates
from nmke.facts import Fact
from nmke.loading import load_model
from nmke.methods.closed_form import Stopwatch, edit_of, write_layers
from nmke.methods.nmke import NMKEConfig, kept_neurons, protection_of, solver_of
from nmke.metrics import compare, mean_scores, measure_facts
from nmke.model import EditableModel
from nmke.perplexity import hold_out, mean_nll, perplexity
from nmke.progress import Silent
from nmke.readers import read_facts
from nmke.session import EditSession
from nmke.store import content_key
from nmke.target import Target, optimise_targets

#: Sums of the edits' factors are folded into the weights after so many, for speed.
SETTLE = 8


def shares(low: float, high: float) -> dict[str, float]:
    return {"general_low": low, "general_high": high, "specific_low": low, "specific_high": high}


TEXT = {"contexts": "ordinary text"}
PRIOR = {"protection": "prior", "prior_weight": 300.0}
BASE: Mapping[str, Any] = {
    "mask": shares(1.0, 1.0),
    "attribution": {"kind": "mpc"},
    "target": {"learning_rate": 2.0, "steps": 14},
}
HALF: Mapping[str, Any] = {"mask": shares(0.3, 0.4), "attribution": {"kind": "lps", "tolerance": 0.01}}
SOLVE = {"mask_acts": "in the solve"}
LEADER = {**TEXT, **PRIOR}

#: (what is tried, what differs from BASE).
SETTINGS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("null space, the model's own contexts (AlphaEdit)", {}),
    ("null space, contexts of ordinary text", TEXT),
    ("prior 300, contexts of ordinary text", LEADER),
    ("prior 300, the model's own contexts", PRIOR),
    ("prior 100", {**LEADER, "prior_weight": 100.0}),
    ("prior 600", {**LEADER, "prior_weight": 600.0}),
    ("prior 300, ridge 10", {**LEADER, "ridge": 10.0}),
    ("prior 300, layers 3 to 8", {**LEADER, "layers": (3, 4, 5, 6, 7, 8)}),
    ("prior 300, layers 6 to 8", {**LEADER, "layers": (6, 7, 8)}),
    ("prior 300, half the neurons, on the update", {**LEADER, **HALF}),
    ("prior 300, half the neurons, in the solve", {**LEADER, **HALF, **SOLVE}),
    (
        "prior 300, half the neurons, in the solve, read at pads",
        {
            **LEADER,
            **SOLVE,
            "mask": shares(0.3, 0.4),
            "attribution": {**HALF["attribution"], "read_position": "padded"},
        },
    ),
    ("prior 300, half the neurons by MPC, in the solve", {**LEADER, **SOLVE, "mask": shares(0.3, 0.4)}),
    (
        "prior 300, shares 0.5 to 0.6, in the solve",
        {**LEADER, **HALF, **SOLVE, "mask": shares(0.5, 0.6)},
    ),
    ("null space, half the neurons, on the update (NMKE)", {**TEXT, **HALF}),
    ("null space, half the neurons, in the solve", {**TEXT, **HALF, **SOLVE}),
    ("null space, threshold 0.01", {**TEXT, "null_space_threshold": 0.01}),
    ("null space, threshold 0.05", {**TEXT, "null_space_threshold": 0.05}),
    ("null space, ridge 0.1", {**TEXT, "ridge": 0.1}),
    ("null space, ridge 10", {**TEXT, "ridge": 10.0}),
    ("prior 300, layers 3 to 5", {**LEADER, "layers": (3, 4, 5)}),
    ("prior 300, z clamped at 0.5", {**LEADER, "target": {**BASE["target"], "clamp_norm_factor": 0.5}}),
    ("prior 300, z clamped at 1.5", {**LEADER, "target": {**BASE["target"], "clamp_norm_factor": 1.5}}),
)


class Targets:
    """z of every fact on the unedited model, found once per layer, contexts and settings."""

    def __init__(self, model: EditableModel, facts: Sequence[Fact]) -> None:
        self._model, self._facts = model, facts
        self._found: dict[str, list[Target]] = {}

    def of(self, config: NMKEConfig, templates: tuple[str, ...]) -> list[Target]:
        key = content_key(layer=config.layers[-1], templates=templates, settings=config.target.model_dump())
        if key not in self._found:
            self._found[key] = optimise_targets(
                self._model, self._facts, config.layers[-1], templates, config.target, Silent()
            )
        return self._found[key]


def edit_all(session: EditSession, facts: Sequence[Fact], config: NMKEConfig, targets: Targets) -> None:
    """Write the facts one after the other."""
    templates = context_templates(session.model, config.context_seed, Silent(), config.context_text)
    protection = protection_of(session, config, Silent())
    for number, (fact, target) in enumerate(zip(facts, targets.of(config, templates), strict=True), 1):
        weights, _ = kept_neurons(session, [fact], templates, config, Silent())
        solver = solver_of(session, config, protection, weights)
        watch = Stopwatch()
        written = write_layers(session, [fact], [target], templates, solver, weights, config, Silent(), watch)
        session.apply(edit_of("nmke", config, [fact], written, [target], templates, watch, weights))
        if number % SETTLE == 0:
            session.settle(2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON Lines; settings already there are left out"
    )
    chosen = parser.parse_args()

    model, facts = load_model(chosen.model), read_facts(chosen.facts).facts[: chosen.limit]
    done = (
        {json.loads(line)["setting"] for line in chosen.out.read_text().splitlines()}
        if chosen.out.exists()
        else set()
    )
    configs = [(name, NMKEConfig.make(**{**BASE, **changes})) for name, changes in SETTINGS]
    held_out = hold_out(model, "wikipedia", 4096, [config.statistics for _, config in configs])
    before, unedited = measure_facts(model, facts), mean_nll(model, held_out)
    targets = Targets(model, facts)
    for name, config in configs:
        if name in done:
            continue
        session, started = EditSession(model), time.process_time()
        edit_all(session, facts, config, targets)
        spent = time.process_time() - started
        with session.active():
            after, nll = measure_facts(model, facts), mean_nll(model, held_out)
        row = mean_scores([compare(*one) for one in zip(facts, before, after, strict=True)])
        three = [row[score] or 0.0 for score in ("reliability", "generalization", "locality")]
        found = {
            "setting": name,
            **row,
            "mean": sum(three) / 3,
            "perplexity_ratio": perplexity(nll - unedited),
            "cpu_seconds_an_edit": spent / len(facts),
            "config": config.model_dump(mode="json"),
        }
        with chosen.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        figures = (*three, found["mean"], found["perplexity_ratio"])
        print(f"| {name} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
