"""What is read at a question's last token: activations, and the residual stream where the score needs it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nmke.model import EditableModel
from nmke.scores import Reading
from nmke.sites import MLP_OUT, POST, RESID_MID, RESID_POST, Site
from nmke.tokens import pad, pad_id


@torch.no_grad()
def read_last(
    model: EditableModel, rows: Sequence[Sequence[int]], layers: Sequence[int], *, residuals: bool
) -> Reading:
    """One forward pass over the token ids ``rows``; every value is cut to the last token as it comes by.

    Keeping whole activations, as :func:`nmke.attribution.read_positions` does, would take gigabytes for questions.

    Args:
        residuals: whether the score needs the residual before the MLP; without it ``resid_mid`` is empty.
    """
    batch = pad(rows, pad_id(model.tokenizer))
    row, last = torch.arange(len(rows)), batch.last
    found: dict[Site, Tensor] = {}

    def catch(site: Site) -> Callable[[Tensor], Tensor]:
        def hook(value: Tensor) -> Tensor:
            found[site] = value[row.to(value.device), last.to(value.device)].float().to(model.device)
            return value

        return hook

    kinds = [POST] + (([RESID_MID] if model.has_resid_mid else [RESID_POST, MLP_OUT]) if residuals else [])
    final = (RESID_POST, model.n_layers - 1)
    sites = {*((kind, layer) for layer in layers for kind in kinds), final}
    model.run(batch, hooks={site: catch(site) for site in sites})
    mid = {}
    if residuals:
        mid = {
            layer: found[(RESID_MID, layer)]
            if model.has_resid_mid
            else found[(RESID_POST, layer)] - found[(MLP_OUT, layer)]
            for layer in layers
        }
    return Reading({layer: found[(POST, layer)] for layer in layers}, mid, found[final])
