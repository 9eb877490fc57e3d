"""What a model remembers of tokens in front of a batch."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from nmke.tokens import Batch


@dataclass(frozen=True)
class Past:
    """Every layer's keys and values for tokens in front of a batch, padded on the left.

    Attributes:
        cache: the Hugging Face cache object; never extended, each run extends a copy.
        mask: 1 on its real tokens [prompt, position].
        key: equal for pasts of the same tokens, read in the same way; empty where nobody keeps account.
    """

    cache: Any
    mask: Int[Tensor, "prompt position"]
    key: str = ""

    def copy(self) -> "Past":
        """One that can be extended: a cache's layers replace their tensors, so the tensors can be shared."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return Past(cache, self.mask, self.key)


def attention_inputs(batch: Batch, past: Past | None) -> dict[str, Any]:
    """What attention is told: which tokens are real, where they stand, and what came before."""
    if past is None:
        return {"attention_mask": batch.mask, "use_cache": False}
    mask = torch.cat([past.mask.to(batch.mask.device), batch.mask], dim=1)
    return {
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp_min(0)[:, -batch.ids.shape[1] :],
        "past_key_values": past.copy().cache,
    }
