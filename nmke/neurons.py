"""One neuron under the glass: what it promotes, where it fires."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nmke.errors import ModelError
from nmke.model import EditableModel
from nmke.moments import Passage, Statistics
from nmke.sites import POST
from nmke.tokens import encode_batch, token_texts


@dataclass(frozen=True)
class NeuronCard:
    """What is known about one neuron.

    Attributes:
        promoted, suppressed: tokens whose logits its value vector raises and lowers most, with the change per unit of
            activation before the final norm's scale.
        activations: per prompt, its activation on each token.
        passages: where it fires most in the statistics text; empty when that layer's statistics are not collected.
        value_norm: length of its value vector.
    """

    layer: int
    neuron: int
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    activations: tuple[tuple[tuple[str, float], ...], ...]
    passages: tuple[Passage, ...]
    value_norm: float


@torch.no_grad()
def inspect_neuron(
    model: EditableModel,
    layer: int,
    neuron: int,
    prompts: Sequence[str],
    k: int = 10,
    statistics: Statistics | None = None,
) -> NeuronCard:
    """Look at one neuron with whatever weights are active.

    Raises:
        ModelError: no such layer or neuron.
    """
    model.check_layers([layer])
    if not 0 <= neuron < model.d_mlp:
        raise ModelError(
            f"Layer {layer} has neurons 0 to {model.d_mlp - 1}, not {neuron}.", "Choose one of those."
        )
    with model.lock:
        value = model.W_out(layer)[neuron].to(model.device)
        logits = model.readout.direction(value) @ model.readout.unembedding.float().T
        activations = _per_token(model, layer, neuron, prompts)
        norm = float(value.float().norm())
    known = statistics is not None and layer in statistics.layers
    return NeuronCard(
        layer,
        neuron,
        promoted=_strongest(model, logits, k),
        suppressed=_strongest(model, -logits, k, sign=-1),
        activations=activations,
        passages=tuple(statistics.passages(model.tokenizer, layer, neuron)) if statistics and known else (),
        value_norm=norm,
    )


def _strongest(
    model: EditableModel, logits: torch.Tensor, k: int, sign: int = 1
) -> tuple[tuple[str, float], ...]:
    values, tokens = logits.topk(min(k, len(logits)))
    return tuple(zip(token_texts(model.tokenizer, tokens.tolist()), (sign * values).tolist(), strict=True))


def _per_token(
    model: EditableModel, layer: int, neuron: int, prompts: Sequence[str]
) -> tuple[tuple[tuple[str, float], ...], ...]:
    if not prompts:
        return ()
    batch = encode_batch(model.tokenizer, prompts)
    values = model.run(batch, [(POST, layer)], stop_after=layer)[(POST, layer)][..., neuron].float().cpu()
    rows = []
    for ids, mask, row in zip(batch.ids, batch.mask, values, strict=True):
        n = int(mask.sum())
        rows.append(tuple(zip(token_texts(model.tokenizer, ids[:n].tolist()), row[:n].tolist(), strict=True)))
    return tuple(rows)
