"""The final norm and the unembedding as a linear map of the residual stream.

With the norm's scale frozen at one value per prompt, logits are linear in the residual ``x``:
RMSNorm ``U (g * x * s)``, LayerNorm ``U (g * (x - mean(x)) * s + b)``. Attribution rests on this
(Yu and Ananiadou, EMNLP 2024, section 3).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Readout:
    """Weights of the final norm and the unembedding.

    Attributes:
        gain: multiplies the normalised residual [d_model], float32.
        shift: added after the gain [d_model], zeros for RMSNorm.
        centred: True for LayerNorm, which subtracts the mean.
        eps: inside the norm's root.
        unembedding: [d_vocab, d_model] in the model's dtype (shared, not copied).
        bias: added to the logits [d_vocab], or None.
    """

    gain: Float[Tensor, " d_model"]
    shift: Float[Tensor, " d_model"]
    centred: bool
    eps: float
    unembedding: Float[Tensor, "d_vocab d_model"]
    bias: Float[Tensor, " d_vocab"] | None

    @classmethod
    def of(cls, bridge: Any) -> "Readout":
        """Read the weights out of a TransformerBridge."""
        norm = bridge.ln_final.original_component
        head = bridge.unembed.original_component
        gain = norm.weight.detach().float()
        if getattr(bridge.cfg, "rmsnorm_uses_offset", False):
            gain = gain + 1.0
        shift = getattr(norm, "bias", None)
        eps = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None) or bridge.cfg.eps
        bias = getattr(head, "bias", None)
        return cls(
            gain=gain,
            shift=torch.zeros_like(gain) if shift is None else shift.detach().float(),
            centred=not bridge.cfg.uses_rms_norm and bridge.cfg.normalization_type not in ("RMS", "RMSPre"),
            eps=float(eps),
            unembedding=head.weight.detach(),
            bias=None if bias is None else bias.detach().float(),
        )

    def scale(self, final: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """The norm's scale at the model's last layer output: one over its root mean square (or deviation)."""
        x = self._centre(final.float())
        return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def direction(self, vectors: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What a residual vector becomes after centring and the gain, before the scale: linear."""
        return self._centre(vectors.float()) * self.gain

    def logits(
        self, resid: Float[Tensor, "*batch d_model"], scale: Float[Tensor, "*batch 1"]
    ) -> Float[Tensor, "*batch d_vocab"]:
        """Logits of a residual under a frozen scale, float32."""
        return self.unembed(self.direction(resid) * scale + self.shift)

    def unembed(self, vectors: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """``vectors @ U^T`` plus the head's bias, float32."""
        logits = vectors @ self.unembedding.float().T
        return logits if self.bias is None else logits + self.bias

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x
