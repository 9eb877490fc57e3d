"""What every result file carries, so that its figures can be made again: model, versions, hashes."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmke.store import written_atomically

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


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all; numbers that JSON does not know become null."""
    text = json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False)
    with written_atomically(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
