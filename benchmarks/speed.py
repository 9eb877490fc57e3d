"""Every stage of an edit, fast against its plain twin, in one run, taken in turn.

    python benchmarks/speed.py [--facts 10] [--parts stages,layers,history,scaling,moments]

The plain twins follow the published procedure step by step. Facts come from the CounterFact file where it lies beside
the project (NMKE_SHARED names another place), else from the built-in examples. Each fact is edited alone, on the loaded
weights. Ratios are medians over facts of ratios taken within one fact, so that a noisy neighbour meets both sides.
"""

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# The other benchmark files are found when this one is run by its path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.speed_scaling import history_part, moments_part, scaling_part
from benchmarks.timing import Stage, machine, peak_mb, print_rows, timed
from nmke.attribution import AttributionConfig, Prompt, attribute, prompts_of, read_positions
from nmke.edit import Edit
from nmke.examples import builtin_facts
from nmke.facts import Fact
from nmke.loading import LoadedModel, load_model
from nmke.masks import build_mask
from nmke.methods.closed_form import Stopwatch, find_targets, prepare, write_layers
from nmke.metrics import compare, mean_scores, measure_fact
from nmke.presets import preset_for
from nmke.progress import Silent
from nmke.reach import reach_of
from nmke.readers import read_facts
from nmke.scores import WIDEST, neurons_per_block, score_layers, score_plain
from nmke.session import EditSession
from nmke.target import optimise_targets
from nmke.tokens import encode_batch
from nmke.versions import library_versions

PARTS = ("stages", "layers", "history", "scaling", "moments")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--facts", type=int, default=10)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/speed.json"))
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    parts = chosen.parts.split(",")
    record: dict[str, Any] = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    command = " ".join(["python", "benchmarks/speed.py", *sys.argv[1:]])
    record |= {
        "commands": [*record.get("commands", []), command],
        "threads": torch.get_num_threads(),
        "libraries": library_versions(),
        "machine": machine(),
    }
    model = load_model(chosen.model)
    facts, source = benchmark_facts(chosen.facts)
    record |= {"model": model.name, "facts": len(facts), "source": source}
    work = {
        "stages": lambda: stages_part(model, facts, record["machine"]),
        "layers": lambda: layers_part(model, facts),
        "history": lambda: history_part(model.d_mlp, model.d_model),
        "scaling": scaling_part,
        "moments": lambda: moments_part(model, preset_for(model, "nmke").config),
    }
    for part in parts:
        record |= work[part]()
        record["peak_mb"] = round(peak_mb())
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\npeak memory of this process {peak_mb():.0f} MB; written to {chosen.out}")


def benchmark_facts(count: int) -> tuple[list[Fact], str]:
    shared = Path(os.environ.get("NMKE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    path = shared / "data" / "counterfact.jsonl"
    if path.exists():
        return list(read_facts(path).facts[:count]), "counterfact.jsonl"
    return list(builtin_facts()[:count]), "built-in examples"


def stages_part(model: LoadedModel, facts: list[Fact], floor: dict[str, float]) -> dict[str, Any]:
    """LPS, z, keys, solve and the whole edit, fact by fact, plain and fast in turn."""
    config: Any = preset_for(model, "nmke").config
    templates, spaces = prepare(EditSession(model), facts, config, Silent())
    reaching = _measure_reach(model, config.layers)
    bench = _EditBench(model, config, templates, spaces)
    once = {
        "reach_measured_or_read_s": round(reaching, 2),
        "first_z_extra_s": round(bench.warm_up(facts[0]), 2),
    }
    print("once per model:", json.dumps(once))
    before = [measure_fact(model, fact) for fact in facts]
    for number, fact in enumerate(facts):
        print(f"fact {number + 1} of {len(facts)}: {fact.prompt} -> {fact.target_new}", flush=True)
        bench.run(fact, before[number])
        bench.side_by_side(facts[: number + 1] if number + 1 == len(facts) else [])
    rows = {stage.name: stage.row() for stage in bench.stages.values()}
    print_rows(f"Stages of an edit, medians over {len(facts)} facts", rows)
    quality = {form: mean_scores(reports) for form, reports in bench.reports.items()}
    print("quality:", json.dumps(quality))
    steps = {
        "weights_read_per_z_step_mb": round(bench.bytes_per_step() / 1e6),
        "floor_s_per_z_step": round(bench.bytes_per_step() / floor["read_gb_per_s"] / 1e9, 4),
        "fast_s_per_z_step": round(sum(bench.stages["z"].fast) / bench.steps, 4),
        "plain_s_per_z_step": round(sum(bench.stages["z"].plain) / bench.steps, 4),
    }
    print(json.dumps(steps))
    agreement = {"masks_same_share": bench.masks_same / bench.masks_all, "outside_bound": bench.outside}
    print(json.dumps(agreement))
    return {
        "stages": rows,
        "once_per_model": once,
        "quality": quality,
        "z_steps": steps,
        "agreement": agreement,
    }


def _measure_reach(model: LoadedModel, layers: Any) -> float:
    """Once per model; later runs read it from disk."""
    U = model.readout.unembedding.float()
    block = neurons_per_block(AttributionConfig().memory_mib, len(U))
    return timed(
        lambda: [
            reach_of(model, layer, model.readout.direction(model.W_out(layer)), U, block, Silent(), WIDEST)
            for layer in layers
        ]
    )[1]


class _EditBench:
    """One edit by both forms, stage by stage."""

    def __init__(self, model: LoadedModel, config: Any, templates: Any, spaces: Any) -> None:
        self.model, self.config, self.templates, self.spaces = model, config, templates, spaces
        self.stages = {
            "lps": Stage("LPS, 6 prompts x 5 layers", unit="nats"),
            "z": Stage("z optimisation", unit="nats, losses of all steps"),
            "keys": Stage("keys and present outputs, 5 layers", unit="relative, update"),
            "edit": Stage("whole NMKE edit", unit="probability of the target after"),
        }
        self.reports: dict[str, list[Any]] = {"plain": [], "fast": []}
        self.masks_same = self.masks_all = self.outside = self.steps = 0
        self.alone: list[list[float]] = []

    def warm_up(self, fact: Fact) -> float:
        """What only the first edit of a process pays: finding the layers without hooks, packing their weights."""
        short = self.config.target.changed(steps=2)
        first, second = (
            timed(
                partial(optimise_targets, self.model, [fact], self.config.layers[-1], self.templates, short)
            )[1]
            for _ in range(2)
        )
        self._score(self._read(prompts_of([fact], self.templates)))
        for stage in self.stages.values():
            stage.plain, stage.fast, stage.errors = [], [], []
        self.masks_same = self.masks_all = self.outside = 0
        return first - second

    def run(self, fact: Fact, before: Any) -> None:
        prompts = prompts_of([fact], self.templates)
        read, reading = timed(lambda: self._read(prompts))
        masks, seconds = self._score(read)
        targets: dict[str, Any] = {}
        for form in ("fast", "plain"):
            targets[form], spent = timed(
                partial(
                    find_targets,
                    EditSession(self.model),
                    [fact],
                    self.templates,
                    self.config,
                    Silent(),
                    form == "plain",
                )
            )
            getattr(self.stages["z"], form).append(spent)
            seconds[form] += spent + reading
        self._compare_targets(targets["fast"][0], targets["plain"][0])
        patches, after = {}, {}
        for form in ("fast", "plain"):
            session, watch = EditSession(self.model), Stopwatch()
            written, spent = timed(
                partial(
                    write_layers,
                    session,
                    [fact],
                    targets[form],
                    self.templates,
                    self.spaces,
                    masks[form],
                    self.config,
                    Silent(),
                    watch,
                    plain=form == "plain",
                )
            )
            getattr(self.stages["keys"], form).append(watch.seconds["keys"])
            getattr(self.stages["edit"], form).append(seconds[form] + spent)
            session.apply(Edit("nmke", {}, (fact,), written.patches, written.keys))
            with session.active():
                after[form] = measure_fact(self.model, fact)
            self.reports[form].append(compare(fact, before, after[form]))
            patches[form] = written.patches
        one, other = patches["fast"][0].matrix(), patches["plain"][0].matrix()
        self.stages["keys"].errors.append(float((one - other).norm() / other.norm()))
        self.stages["edit"].errors.append(
            abs(after["fast"].target_probability - after["plain"].target_probability)
        )

    def _read(self, prompts: tuple[Prompt, ...]) -> tuple[Any, torch.Tensor]:
        batch = encode_batch(self.model.tokenizer, [prompt.text for prompt in prompts])
        read = read_positions(self.model, batch, self.config.layers, "last")
        readout = self.model.readout
        return read, readout.logits(read.final, readout.scale(read.final)).argmax(-1)

    def _score(self, reading: tuple[Any, torch.Tensor]) -> tuple[dict[str, Any], dict[str, float]]:
        (read, targets), layers, config = reading, self.config.layers, self.config.attribution
        found, fast_s = timed(lambda: list(score_layers(self.model, layers, read, targets, config, Silent())))
        plain, plain_s = timed(
            lambda: {layer: score_plain(self.model, layer, read, targets, config) for layer in layers}
        )
        self.stages["lps"].fast.append(fast_s)
        self.stages["lps"].plain.append(plain_s)
        off = {layer: (scores - plain[layer]).abs() for layer, scores, _ in found}
        self.stages["lps"].errors.append(max(float(values.max()) for values in off.values()))
        # 1e-4: float32 rounding where a neuron moves logits by tens; seen up to 4e-5 between two exact sums.
        self.outside += sum(int((off[layer] > bounds + 1e-4).sum()) for layer, _, bounds in found)
        fast_masks = {layer: build_mask(scores, self.config.mask).weights for layer, scores, _ in found}
        plain_masks = {layer: build_mask(plain[layer], self.config.mask).weights for layer in layers}
        for layer in layers:
            self.masks_same += int((fast_masks[layer] == plain_masks[layer]).sum())
            self.masks_all += len(plain_masks[layer])
        return {"fast": fast_masks, "plain": plain_masks}, {"fast": fast_s, "plain": plain_s}

    def _compare_targets(self, fast: Any, plain: Any) -> None:
        self.steps += len(fast.losses)
        self.alone.append([loss[0] for loss in plain.losses])
        both = zip(fast.losses, plain.losses, strict=True)
        self.stages["z"].errors.append(max(abs(one[0] - other[0]) for one, other in both))

    def side_by_side(self, facts: list[Fact]) -> None:
        """All facts' z in one batch against the plain form's one after the other."""
        if len(facts) < 2:
            return
        found, spent = timed(
            lambda: optimise_targets(
                self.model, facts, self.config.layers[-1], self.templates, self.config.target
            )
        )
        stage = Stage(f"z optimisation, {len(facts)} facts side by side", unit="nats, losses of all steps")
        stage.fast.append(spent)
        stage.plain.append(sum(self.stages["z"].plain))
        for target, losses in zip(found, self.alone, strict=True):
            pairs = zip(target.losses, losses, strict=False)
            stage.errors.append(max(abs(one[0] - other) for one, other in pairs))
        self.stages["z together"] = stage

    def bytes_per_step(self) -> int:
        """Weights a z step must read at least: later layers and unembedding, forth and back."""
        model = self.model
        later = sum(
            parameter.numel() * parameter.element_size()
            for block in list(model.unhooked.layers)[self.config.layers[-1] + 1 :]  # type: ignore[union-attr]
            for parameter in block.parameters()
        )
        unembedding = model.readout.unembedding
        return 2 * (later + unembedding.numel() * unembedding.element_size())


def layers_part(model: LoadedModel, facts: list[Fact]) -> dict[str, Any]:
    """Eight prompts of eight facts over all layers, as the dashboard shows them."""
    prompts = prompts_of((facts * 8)[:8])
    once = _measure_reach(model, range(model.n_layers))
    rows = {"measuring or reading how far neurons reach, all layers (measured once per model)": once}
    for kind in ("mpc", "lps"):
        runs = [
            timed(partial(attribute, model, prompts, None, AttributionConfig.make(kind=kind)))
            for _ in range(3)
        ]
        rows[f"{kind.upper()}, 8 prompts x {model.n_layers} layers"] = sorted(spent for _, spent in runs)[1]
        if kind == "lps":
            found = runs[0][0]
            exact = torch.stack([(found.bounds[layer] == 0).float().mean() for layer in found.layers])
            rows["share of scores read from the whole vocabulary"] = float(exact.mean())
    print("\nAll layers")
    for name, value in rows.items():
        print(f"{name:<90} {value:>9.3f}")
    return {"layers": {name: round(value, 4) for name, value in rows.items()}}


if __name__ == "__main__":
    main()
