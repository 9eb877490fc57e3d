"""What NMKE's mask costs a single edit, and which part of it: the published settings, one thing changed at a time.

    python benchmarks/mask_losses.py --facts lifelong_facts.jsonl --limit 30 --statistics corpus.txt --tokens 115200

Each fact is edited alone in a session of its own with AlphaEdit's update; the rows differ in which neurons keep it and
in whether it is solved for all neurons or for those alone. z, scores and contexts are shared by all rows. Printed per
row: scores, the share of neurons written, the share of each solved update's norm that the mask keeps (first to last
layer), and how large the update of the last layer is.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nmke.contexts import context_templates
from nmke.facts import Fact
from nmke.keys import key_source
from nmke.loading import LoadedModel, load_model
from nmke.masks import LayerMask
from nmke.methods.closed_form import Stopwatch, edit_of, write_layers
from nmke.methods.nmke import NMKEConfig, find_masks, protection_of, solver_of
from nmke.metrics import compare, mean_scores, measure_facts
from nmke.progress import Silent
from nmke.readers import read_facts
from nmke.session import EditSession
from nmke.target import Target, optimise_targets

Masks = Mapping[int, Tensor]
#: Of each LPS score, in nats: next to nothing beside what separates a selected neuron from the others, and faster.
TOLERANCE = 0.01
HEADER = "| neurons | reliability | P(target) | generalization | locality | written | norm kept, by layer | last norm |"


@dataclass(frozen=True)
class Prepared:
    """One fact's shared parts."""

    fact: Fact
    target: Target
    last: Mapping[int, LayerMask]
    padded: Mapping[int, LayerMask]
    keys: Masks

    def published(self) -> Masks:
        return {layer: mask.weights for layer, mask in self.padded.items()}

    def true_last(self) -> Masks:
        return {layer: mask.weights for layer, mask in self.last.items()}

    def random(self) -> Masks:
        """As many as the true last token's masks have, drawn with seed 0."""
        generator = torch.Generator().manual_seed(0)
        return {
            layer: mask.weights[torch.randperm(len(mask.weights), generator=generator)]
            for layer, mask in self.last.items()
        }

    def largest(self) -> Masks:
        """As many, those with the largest keys: the neurons that carry most of any update."""
        found = {}
        for layer, mask in self.last.items():
            found[layer] = torch.zeros_like(mask.weights)
            found[layer][self.keys[layer].abs().topk(mask.count).indices] = 1
        return found

    def everything(self) -> Masks:
        return {layer: torch.ones_like(mask.weights) for layer, mask in self.last.items()}


ROWS: tuple[tuple[str, Callable[[Prepared], Masks], bool], ...] = (
    ("all (AlphaEdit)", Prepared.everything, False),
    ("NMKE's, read at pads (as published)", Prepared.published, False),
    ("NMKE's, read at the last real token", Prepared.true_last, False),
    ("as many at random", Prepared.random, False),
    ("as many with the largest keys", Prepared.largest, False),
    ("NMKE's at pads, solved inside", Prepared.published, True),
    ("NMKE's at the last token, solved inside", Prepared.true_last, True),
    ("as many at random, solved inside", Prepared.random, True),
)


def prepare(model: LoadedModel, facts: Sequence[Fact], config: NMKEConfig) -> list[Prepared]:
    templates = context_templates(model)
    targets = optimise_targets(model, facts, config.layers[-1], templates, config.target, Silent())
    at_pads = config.changed(attribution=config.attribution.changed(read_position="padded"))
    session, prepared = EditSession(model), []
    for fact, target in zip(facts, targets, strict=True):
        source = key_source(session, [fact], config.layers, templates)
        prepared.append(
            Prepared(
                fact,
                target,
                find_masks(session, [fact], templates, config, Silent()),
                find_masks(session, [fact], templates, at_pads, Silent()),
                {layer: source.at(layer, {}).K[:, 0] for layer in config.layers},
            )
        )
    return prepared


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=30)
    parser.add_argument("--statistics", default="wikipedia")
    parser.add_argument("--tokens", type=int, default=60_000)
    chosen = parser.parse_args()

    model, facts = load_model(chosen.model), read_facts(chosen.facts).facts[: chosen.limit]
    config = NMKEConfig.make(
        statistics={"text": chosen.statistics, "tokens": chosen.tokens}, attribution={"tolerance": TOLERANCE}
    )
    prepared, before = prepare(model, facts, config), measure_facts(model, facts)
    steering(prepared)
    print(HEADER)
    for name, masks_of, inside in ROWS:
        settings = config.changed(mask_acts="in the solve") if inside else config
        protection = protection_of(EditSession(model), settings, Silent())
        reports, layers, shares = [], [], []
        for one, was in zip(prepared, before, strict=True):
            session, masks, watch = EditSession(model), masks_of(one), Stopwatch()
            solver = solver_of(session, settings, protection, masks)
            written = write_layers(
                session,
                [one.fact],
                [one.target],
                context_templates(model),
                solver,
                masks,
                settings,
                Silent(),
                watch,
            )
            session.apply(edit_of("nmke", settings, [one.fact], written, [one.target], (), watch))
            with session.active():
                reports.append(compare(one.fact, was, measure_facts(model, [one.fact])[0]))
            layers.append(written.details["layers"])
            shares.append([float((mask > 0).float().mean()) for mask in masks.values()])
        tell(name, mean_scores(reports), layers, torch.tensor(shares))


def steering(prepared: Sequence[Prepared]) -> None:
    """How far the entropies move the shares asked for."""
    for name in ("rho_general", "rho_specific", "entropy_general", "entropy_specific"):
        values = [getattr(mask, name) for one in prepared for mask in one.last.values()]
        print(f"{name}: {min(values):.5f} to {max(values):.5f}", flush=True)


def tell(
    name: str,
    means: Mapping[str, float | None],
    layers: Sequence[Sequence[Mapping[str, Any]]],
    shares: Tensor,
) -> None:
    scores = [
        means[key] or 0.0 for key in ("reliability", "target_probability", "generalization", "locality")
    ]
    kept = torch.tensor([[layer["written_norm"] / layer["solved_norm"] for layer in edit] for edit in layers])
    last = sum(edit[-1]["written_norm"] for edit in layers) / len(layers)
    cells = [f"{score:.3f}" for score in scores]
    by_layer = ", ".join(f"{share:.2f}" for share in kept.mean(0).tolist())
    print(
        f"| {name} | {' | '.join(cells)} | {float(shares.mean()):.2f} | {by_layer} | {last:.2f} |", flush=True
    )


if __name__ == "__main__":
    main()
