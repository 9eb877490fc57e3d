"""Settings known to work on a model, and settings guessed from its depth, marked as such."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from nmke.config import Config
from nmke.methods import get_method
from nmke.model import EditableModel


@dataclass(frozen=True)
class Preset:
    """A method's settings for one model.

    Attributes:
        status: ``verified`` when measured on that very architecture size, ``guessed`` when derived from depth.
        figures: what was measured and how, or how the guess was made.
    """

    config: Config
    status: Literal["verified", "guessed"]
    figures: str


@dataclass(frozen=True)
class _Verified:
    values: Mapping[str, Any]
    figures: str


#: (method, layers, d_model, d_mlp, vocabulary) -> settings that were measured on that model.
_VERIFIED: Mapping[tuple[str, int, int, int, int], _Verified] = MappingProxyType(
    {
        ("nmke", 30, 576, 1536, 49152): _Verified(
            {
                "layers": (4, 5, 6, 7, 8),
                "ridge": 0.1,
                "mask": {
                    "general_low": 0.6,
                    "general_high": 0.8,
                    "specific_low": 0.6,
                    "specific_high": 0.8,
                },
            },
            "SmolLM2-135M-Instruct, CounterFact facts 51 to 75, each edited alone: reliability 1.00, P(target) 0.95, "
            "paraphrases 0.64, locality 0.99. The authors' values reach P(target) 0.57 (facts 1 to 12). How it was "
            "found: benchmarks/presets.md.",
        ),
    }
)


def preset_for(model: EditableModel, method: str) -> Preset:
    """The best settings known for a model: verified for its shape, or else guessed from its depth.

    Raises:
        EditError: no such method.
    """
    config_class = get_method(method).config_class
    shape = (method, model.n_layers, model.d_model, model.d_mlp, model.d_vocab)
    if shape in _VERIFIED:
        found = _VERIFIED[shape]
        return Preset(config_class.make(**found.values), "verified", found.figures)
    layers = guess_layers(model.n_layers)
    return Preset(
        config_class.make(layers=layers),
        "guessed",
        f"Layers {layers[0]} to {layers[-1]} of {model.n_layers} by depth (13% to 27%, where LLaMA-3-8B and GPT-J are "
        "edited in the literature); everything else is the authors' default. Not measured on this model.",
    )


def guess_layers(n_layers: int) -> tuple[int, ...]:
    """Up to five layers from about an eighth of the depth on: 4 to 8 of 32."""
    first = min(round(n_layers / 8), n_layers - 1)
    count = max(1, min(5, round(n_layers * 5 / 32)))
    return tuple(range(first, min(first + count, n_layers)))
