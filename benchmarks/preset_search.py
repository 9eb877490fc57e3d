"""How the SmolLM2 preset was chosen: independent edits under several settings, z and scores computed once per fact.

    python benchmarks/preset_search.py --facts ../shared/data/counterfact.jsonl --skip 50 --limit 25
    python benchmarks/preset_search.py --facts ../shared/data/counterfact.jsonl --skip 50 --limit 25 --methods all

The second form measures the preset of every registered method (or of those named, with commas) in the same way.

The facts it is chosen on are not those it is reported on (the first 50). Prints one row per setting; the masked methods
share z and attribution, so a further setting costs only the writing and the measuring.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nmke.attribution import Attribution, attribute, prompts_of
from nmke.contexts import context_templates
from nmke.edit import Edit
from nmke.errors import EditError
from nmke.examples import builtin_facts
from nmke.facts import Fact
from nmke.loading import LoadedModel, load_model
from nmke.masks import build_masks
from nmke.methods import get_method, methods
from nmke.methods.closed_form import Stopwatch, null_spaces, write_layers
from nmke.methods.nmke import NMKEConfig
from nmke.metrics import FactMeasure, FactReport, compare, mean_scores, measure_facts
from nmke.presets import preset_for
from nmke.progress import Silent
from nmke.readers import read_facts
from nmke.session import EditSession
from nmke.target import Target, optimise_target

SETTINGS: tuple[tuple[str, Mapping[str, Any], tuple[float, float] | None], ...] = (
    ("the authors' values", {}, (0.3, 0.4)),
    ("no mask (AlphaEdit)", {}, None),
    ("ridge 0.1", {"ridge": 0.1}, (0.3, 0.4)),
    ("threshold 0.01", {"null_space_threshold": 0.01}, (0.3, 0.4)),
    ("threshold 0.05", {"null_space_threshold": 0.05}, (0.3, 0.4)),
    ("threshold 0.1, ridge 0.1", {"null_space_threshold": 0.1, "ridge": 0.1}, (0.3, 0.4)),
    ("threshold 0.05, ridge 0.1, shares 0.45-0.6", {"null_space_threshold": 0.05, "ridge": 0.1}, (0.45, 0.6)),
    ("threshold 0.05, ridge 1, shares 0.45-0.6", {"null_space_threshold": 0.05}, (0.45, 0.6)),
    ("threshold 0.02, ridge 1, shares 0.45-0.6", {}, (0.45, 0.6)),
    ("threshold 0.05, ridge 0.5, shares 0.6-0.8", {"null_space_threshold": 0.05, "ridge": 0.5}, (0.6, 0.8)),
    ("threshold 0.02, ridge 0.1, shares 0.6-0.8", {"ridge": 0.1}, (0.6, 0.8)),
)


HEADER = f"{'setting':<46} reliability  P(target)  generalization  locality"


class Prepared:
    """What all settings share: z, scores and the answers before, per fact."""

    def __init__(self, model: LoadedModel, facts: list[Fact]) -> None:
        base = NMKEConfig()
        self.model, self.facts = model, facts
        self.templates = context_templates(model)
        self.before: list[FactMeasure] = measure_facts(model, facts)
        self.scores: list[Attribution] = []
        self.targets: list[Target] = []
        for fact in facts:
            self.scores.append(
                attribute(model, prompts_of([fact], self.templates), base.layers, base.attribution)
            )
            self.targets.append(optimise_target(model, fact, base.layers[-1], self.templates, base.target))

    def edit_each(self, config: NMKEConfig, masked: bool) -> list[FactReport]:
        """Every fact alone in a session of its own."""
        spaces = null_spaces(self.model, config, config.layers, Silent())
        reports = []
        for number, fact in enumerate(self.facts):
            session = EditSession(self.model)
            built = build_masks(self.scores[number], config.mask) if masked else {}
            masks = {layer: mask.weights for layer, mask in built.items()}
            target = [self.targets[number]]
            watch = Stopwatch()
            written = write_layers(
                session, [fact], target, self.templates, spaces, masks, config, Silent(), watch
            )
            session.apply(Edit("nmke", {}, (fact,), written.patches, written.keys))
            with session.active():
                reports.append(compare(fact, self.before[number], measure_facts(self.model, [fact])[0]))
        return reports


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--facts", type=Path, help="a file of facts; the built-in examples without one")
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--limit", type=int, default=25)
    parser.add_argument("--methods", default="", help="measure these methods' presets instead; all, or names")
    chosen = parser.parse_args()

    facts = list(read_facts(chosen.facts).facts if chosen.facts else builtin_facts())
    facts = facts[chosen.skip : chosen.skip + chosen.limit]
    if chosen.methods:
        names = list(methods()) if chosen.methods == "all" else chosen.methods.split(",")
        measure_presets(load_model(chosen.model), facts, names)
        return
    started = time.perf_counter()
    prepared = Prepared(load_model(chosen.model), facts)
    print(f"{len(facts)} facts prepared in {time.perf_counter() - started:.0f} s", flush=True)
    print(HEADER)
    for name, values, shares in SETTINGS:
        low, high = shares or (0.3, 0.4)
        mask = {"general_low": low, "general_high": high, "specific_low": low, "specific_high": high}
        config = NMKEConfig.make(**values, mask=mask)
        tell(name, prepared.edit_each(config, masked=shares is not None))


def measure_presets(model: LoadedModel, facts: list[Fact], names: list[str]) -> None:
    """Every fact alone, by each method's preset."""
    before = measure_facts(model, facts)
    print(HEADER)
    for name in names:
        config, reports, refused, started = preset_for(model, name).config, [], 0, time.process_time()
        for fact, was in zip(facts, before, strict=True):
            session = EditSession(model)
            try:
                session.apply(get_method(name).plan(session, [fact], config, Silent()))
            except EditError:
                refused += 1
            with session.active():
                reports.append(compare(fact, was, measure_facts(model, [fact])[0]))
        tell(name, reports)
        spent = (time.process_time() - started) / len(facts)
        print(f"{'':<46} {spent:.1f} CPU seconds an edit, measuring included; {refused} refused", flush=True)


def tell(name: str, reports: list[FactReport]) -> None:
    means = mean_scores(reports)
    figures = [means[key] for key in ("reliability", "target_probability", "generalization", "locality")]
    cells = [f"{value:.3f}" if value is not None else "none" for value in figures]
    print(f"{name:<46} {cells[0]:>11}  {cells[1]:>9}  {cells[2]:>14}  {cells[3]:>8}", flush=True)


if __name__ == "__main__":
    main()
