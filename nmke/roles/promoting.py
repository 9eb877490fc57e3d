"""What many neurons promote, in one product with the unembedding."""

from collections.abc import Sequence

import torch

from nmke.model import EditableModel
from nmke.tokens import token_texts

#: Neurons read out at once.
_AT_ONCE = 32


@torch.no_grad()
def promoted_tokens(
    model: EditableModel,
    neurons: Sequence[tuple[int, int]],
    k: int = 6,
    signs: Sequence[float] | None = None,
) -> list[tuple[str, ...]]:
    """Of each (layer, neuron), the ``k`` tokens whose logits it raises most, with whatever weights are active.

    Args:
        signs: of each neuron's activation: where negative, the neuron raises what its value vector lowers.

    Raises:
        ModelError: a layer the model does not have.
    """
    if not neurons:
        return []
    model.check_layers([layer for layer, _ in neurons])
    turned = [-1.0 if sign < 0 else 1.0 for sign in signs or [1.0] * len(neurons)]
    found: list[tuple[str, ...]] = []
    with model.lock:
        unembedding = model.readout.unembedding.float()
        for start in range(0, len(neurons), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            values = torch.stack(
                [
                    sign * model.W_out(layer)[neuron].to(unembedding.device).float()
                    for (layer, neuron), sign in zip(neurons[some], turned[some], strict=True)
                ]
            )
            tokens = (model.readout.direction(values) @ unembedding.T).topk(min(k, len(unembedding))).indices
            found += [tuple(token_texts(model.tokenizer, row)) for row in tokens.tolist()]
    return found
