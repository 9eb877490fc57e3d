"""The gate at load: does the model mean what the engine thinks its hooks mean?"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nmke.model import EditableModel
from nmke.sites import FINAL, MLP_OUT, POST, RESID_MID, RESID_POST
from nmke.tokens import Batch

#: Largest relative error let pass, by the model's dtype.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}


@dataclass(frozen=True)
class Check:
    """One check: what was compared, whether it held, and the largest relative error."""

    name: str
    passed: bool
    detail: str
    error: float


@dataclass(frozen=True)
class Conformance:
    """All checks of one model."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def sentence(self) -> str:
        failed = [check.name for check in self.checks if not check.passed]
        if not failed:
            return f"All {len(self.checks)} conformance checks passed: attribution, masks and editing work."
        return (
            f"Failed: {'; '.join(failed)}. Generation still works; attribution and editing do not, because their "
            "mathematics would be wrong for this architecture."
        )


def check_conformance(model: EditableModel, batch: Batch, plain_logits: Tensor) -> Conformance:
    """Compare the hooks with the mathematics on one short prompt, in the first, middle and last layer.

    Args:
        batch: the prompt's token ids.
        plain_logits: what the model answered before it was wrapped [1, position, d_vocab].
    """
    layers = sorted({0, model.n_layers // 2, model.n_layers - 1})
    tests: list[tuple[str, Callable[[], tuple[str, float]]]] = [
        ("every layer has as many activations as neurons", lambda: _width(model, batch, layers)),
        (
            "activations times value vectors give what the layer's neurons write",
            lambda: _write(model, batch, layers),
        ),
        (
            "what they write plus the stream before it gives the layer's output",
            lambda: _stream(model, batch, layers),
        ),
        (
            "the final norm, frozen, gives the model's own logits",
            lambda: _readout(model, batch, plain_logits),
        ),
        ("the model answers alike with and without hooks", lambda: _logits(model, batch, plain_logits)),
    ]
    limit = TOLERANCE.get(model.dtype, 1e-4)
    return Conformance(tuple(_perform(name, test, limit) for name, test in tests))


def _perform(name: str, test: Callable[[], tuple[str, float]], limit: float) -> Check:
    try:
        with torch.no_grad():
            detail, error = test()
    except Exception as problem:  # any failure of a foreign architecture is a failed check, never a crash
        return Check(name, False, f"could not be run: {type(problem).__name__}: {problem}", float("inf"))
    return Check(name, error <= limit, detail, error)


def _relative(got: Tensor, expected: Tensor) -> float:
    got, expected = got.float(), expected.float()
    if got.shape != expected.shape:
        return float("inf")
    worst = (got - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
    return float(torch.nan_to_num(worst, nan=float("inf")))


def _width(model: EditableModel, batch: Batch, layers: list[int]) -> tuple[str, float]:
    kept = model.run(batch, [(POST, layer) for layer in layers])
    widths = {value.shape[-1] for value in kept.values()}
    return f"width {', '.join(map(str, widths))}, expected {model.d_mlp}", 0.0 if widths == {
        model.d_mlp
    } else 1.0


def _write(model: EditableModel, batch: Batch, layers: list[int]) -> tuple[str, float]:
    sites = [(kind, layer) for layer in layers for kind in (POST, MLP_OUT)]
    kept = model.run(batch, sites)
    worst = 0.0
    for layer in layers:
        silent = model.run(batch, [(MLP_OUT, layer)], hooks={(POST, layer): torch.zeros_like})[
            (MLP_OUT, layer)
        ]
        expected = kept[(POST, layer)].float() @ model.W_out(layer).float() + silent.float()
        worst = max(worst, _relative(kept[(MLP_OUT, layer)], expected))
    return f"largest relative error {worst:.1e}", worst


def _stream(model: EditableModel, batch: Batch, layers: list[int]) -> tuple[str, float]:
    if not model.has_resid_mid:
        return _parallel_stream(model, batch, layers)
    kept = model.run(batch, [(kind, layer) for layer in layers for kind in (RESID_MID, MLP_OUT, RESID_POST)])
    errors = [
        _relative(kept[(RESID_MID, la)].float() + kept[(MLP_OUT, la)].float(), kept[(RESID_POST, la)])
        for la in layers
    ]
    return f"largest relative error {max(errors):.1e}", max(errors)


def _parallel_stream(model: EditableModel, batch: Batch, layers: list[int]) -> tuple[str, float]:
    """Attention and MLP side by side: silencing the MLP must leave exactly ``resid_post - mlp_out``."""
    errors = []
    for layer in layers:
        kept = model.run(batch, [(RESID_POST, layer), (MLP_OUT, layer)])
        without = model.run(batch, [(RESID_POST, layer)], hooks={(MLP_OUT, layer): torch.zeros_like})
        errors.append(
            _relative(
                kept[(RESID_POST, layer)].float() - kept[(MLP_OUT, layer)].float(),
                without[(RESID_POST, layer)],
            )
        )
    return f"attention and MLP side by side; largest relative error {max(errors):.1e}", max(errors)


def _readout(model: EditableModel, batch: Batch, plain: Tensor) -> tuple[str, float]:
    last = model.n_layers - 1
    final = model.run(batch, [(RESID_POST, last)])[(RESID_POST, last)]
    error = _relative(model.readout.logits(final, model.readout.scale(final)).cpu(), plain.cpu())
    return f"largest relative error {error:.1e}", error


def _logits(model: EditableModel, batch: Batch, plain: Tensor) -> tuple[str, float]:
    final = model.run(batch, [FINAL])[FINAL]
    error = _relative(model.logits(final).cpu(), plain.cpu())
    return f"largest relative error {error:.1e}", error
