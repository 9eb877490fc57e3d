"""Which neurons hold a prediction: LPS, PSA and MPC scores per prompt, layer and neuron.

Neuron ``i`` of a layer writes ``m_i v_i`` into the residual stream ``r`` at the prompt's last token. With the final
norm's scale ``s`` frozen at the value of that prompt's own last layer output, logits are linear in the residual, so
for the target token ``y`` (NMKE, section 3.2; Yu and Ananiadou, EMNLP 2024, section 3)::

    LPS_i = log p(y | r + lambda m_i v_i) - log p(y | r)
    PSA_i =     p(y | r + lambda m_i v_i) -     p(y | r)
    MPC_i = m_i

How the scores are computed, plainly and fast: :mod:`nmke.scores`.

Example:
    >>> found = attribute(model, prompts_of(facts), layers=[4, 5])
    >>> found.scores[4].shape  # [prompt, d_mlp]
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nmke.errors import FactError
from nmke.facts import Fact
from nmke.model import EditableModel
from nmke.progress import Progress, Silent
from nmke.scores import AttributionConfig as AttributionConfig
from nmke.scores import Reading, score_layers
from nmke.sites import POST, RESID_MID, RESID_POST, Site
from nmke.tokens import Batch, encode_batch, encode_continuation, fill_template, token_texts


@dataclass(frozen=True)
class Prompt:
    """One text to attribute.

    Attributes:
        text: what the model reads.
        label: how charts name the row.
        target: the answer followed, or "" for the model's own top-1.
        fact_index: which fact it came from.
    """

    text: str
    label: str = ""
    target: str = ""
    fact_index: int = 0


@dataclass(frozen=True)
class Attribution:
    """Scores of every neuron for every prompt.

    Attributes:
        layers: the layers scored, rising.
        scores: per layer [prompt, d_mlp].
        activations: per layer the neuron activations at the position read [prompt, d_mlp].
        target_ids: the token followed, per prompt.
        seconds: time spent per layer.
        bounds: per layer how far each score may be off [prompt, d_mlp]: 0 where the whole vocabulary was read.
            See :mod:`nmke.partition` for what the bound promises.
    """

    layers: tuple[int, ...]
    scores: Mapping[int, Float[Tensor, "prompt d_mlp"]]
    activations: Mapping[int, Float[Tensor, "prompt d_mlp"]]
    prompts: tuple[Prompt, ...]
    target_ids: tuple[int, ...]
    target_tokens: tuple[str, ...]
    seconds: Mapping[int, float]
    config: AttributionConfig
    bounds: Mapping[int, Float[Tensor, "prompt d_mlp"]]

    def frame(self) -> pd.DataFrame:
        """Long table: layer, prompt, target, neuron, score, activation, and how far the score may be off."""
        parts = []
        for layer in self.layers:
            n, width = self.scores[layer].shape
            parts.append(
                pd.DataFrame(
                    {
                        "layer": layer,
                        "prompt": [prompt.text for prompt in self.prompts for _ in range(width)],
                        "target": [token for token in self.target_tokens for _ in range(width)],
                        "neuron": list(range(width)) * n,
                        "score": self.scores[layer].flatten().numpy(),
                        "activation": self.activations[layer].flatten().numpy(),
                        "bound": self.bounds[layer].flatten().numpy(),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)

    @property
    def whole_share(self) -> float:
        """Share of the scores that were read from the whole vocabulary."""
        return float(torch.stack([(bound == 0).float().mean() for bound in self.bounds.values()]).mean())

    def precision(self) -> str:
        """One sentence on how the scores were computed and how far they may be off."""
        if self.config.kind == "mpc":
            return ""
        whole = self.whole_share
        if whole == 1:
            return "Every score is read from the whole vocabulary."
        largest = max(float(bound.max()) for bound in self.bounds.values())
        unit = "nats" if self.config.kind == "lps" else "of probability"
        return (
            f"Scores are within {_one_digit_up(largest):.1g} {unit}: {whole:.0%} are read from the whole vocabulary, "
            f"the others from tokens drawn with seed {self.config.seed}, each with its own error bound."
        )


def _one_digit_up(number: float) -> float:
    """To one significant digit, never less than the number, but for rounding of its own last digits."""
    if number <= 0:
        return 0.0
    digit = 10.0 ** math.floor(math.log10(number))
    return math.ceil(number / digit - 1e-6) * digit


def prompts_of(
    facts: Sequence[Fact], templates: Sequence[str] = ("{}",), target: Literal["top1", "new", "true"] = "top1"
) -> tuple[Prompt, ...]:
    """The prompts of facts, each under every context template.

    Raises:
        FactError: when ``target`` is ``true`` and a fact has no true answer.
    """
    prompts = []
    for index, fact in enumerate(facts):
        if target == "true" and not fact.target_true:
            raise FactError(
                f"The fact about {fact.subject!r} has no true answer to follow.",
                "Fill in target_true, or follow the model's own prediction or the new answer.",
                field="target_true",
            )
        answer = {"top1": "", "new": fact.target_new, "true": fact.target_true}[target]
        for number, template in enumerate(templates):
            label = fact.prompt if number == 0 else f"{fact.prompt} (context {number})"
            prompts.append(Prompt(fill_template(template, fact.prompt), label, answer, index))
    return tuple(prompts)


@torch.no_grad()
def attribute(
    model: EditableModel,
    prompts: Sequence[Prompt],
    layers: Sequence[int] | None = None,
    config: AttributionConfig | None = None,
    progress: Progress | None = None,
) -> Attribution:
    """Score every neuron of ``layers`` (all by default) for every prompt.

    Raises:
        FactError: no prompts.
        ModelError: a layer the model does not have, or an architecture that failed the gate.
        Cancelled: from ``progress``; between layers and between blocks of neurons.
    """
    config, progress = config or AttributionConfig(), progress or Silent()
    if not prompts:
        raise FactError("There are no prompts to attribute.", "Add at least one fact.")
    model.require_conformance()
    chosen = model.check_layers(range(model.n_layers) if layers is None else layers)
    progress.update("reading activations", 0, 1)
    batch = encode_batch(model.tokenizer, [prompt.text for prompt in prompts])
    read = read_positions(model, batch, chosen, config.read_position)
    targets = _targets(model, prompts, read)
    scores, bounds, seconds = {}, {}, {}
    started = time.perf_counter()
    for layer, score, bound in score_layers(model, chosen, read, targets, config, progress):
        scores[layer], bounds[layer] = score, bound
        seconds[layer] = time.perf_counter() - started
        started = time.perf_counter()
    progress.update(f"scoring neurons ({config.kind.upper()})", len(chosen), len(chosen))
    return Attribution(
        layers=chosen,
        scores=scores,
        activations={layer: read.activations[layer].cpu() for layer in chosen},
        prompts=tuple(prompts),
        target_ids=tuple(targets.tolist()),
        target_tokens=tuple(token_texts(model.tokenizer, targets.tolist())),
        seconds=seconds,
        config=config,
        bounds=bounds,
    )


def read_positions(
    model: EditableModel, batch: Batch, layers: Sequence[int], read_position: Literal["last", "padded"]
) -> Reading:
    """One forward pass; keeps only the position each prompt is read at."""
    last = (RESID_POST, model.n_layers - 1)
    sites: list[Site] = [(kind, layer) for layer in layers for kind in (POST, RESID_MID)]
    kept = model.run(batch, [*sites, last])
    position = batch.last if read_position == "last" else torch.full_like(batch.last, batch.ids.shape[1] - 1)
    rows = torch.arange(len(batch.ids))

    def at_position(site: Site) -> Tensor:
        return kept[site][rows, position].float().to(model.device)

    return Reading(
        {layer: at_position((POST, layer)) for layer in layers},
        {layer: at_position((RESID_MID, layer)) for layer in layers},
        at_position(last),
    )


def _targets(model: EditableModel, prompts: Sequence[Prompt], read: Reading) -> Int[Tensor, " prompt"]:
    top1 = model.readout.logits(read.final, model.readout.scale(read.final)).argmax(-1)
    chosen = [
        encode_continuation(model.tokenizer, prompt.text, prompt.target)[0] if prompt.target else int(own)
        for prompt, own in zip(prompts, top1.tolist(), strict=True)
    ]
    return torch.tensor(chosen, device=model.device)
