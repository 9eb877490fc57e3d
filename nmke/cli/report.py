"""What every result file carries, so that its figures can be made again: model, versions, hashes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nmke.loading import LoadedModel


def model_record(model: "LoadedModel") -> dict[str, Any]:
    """Which model it was, to the bit."""
    return {
        "name": model.name,
        "kind": model.resolved.kind,
        "revision": model.resolved.revision,
        "weight_hash": model.weight_hash,
        "n_layers": model.n_layers,
        "d_mlp": model.d_mlp,
        "d_model": model.d_model,
        "parameters": model.n_parameters,
        "device": model.device,
        "dtype": model.dtype,
        "conformance": model.conformance.sentence,
    }
