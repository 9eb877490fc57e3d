"""Settings known to work on a model, and settings guessed from its depth, marked as such."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from nmke.config import Config
from nmke.errors import ConfigError, EditError
from nmke.methods import Method, get_method
from nmke.model import EditableModel
from nmke.preset_names import STANDARD


@dataclass(frozen=True)
class Preset:
    """A method's settings for one model.

    Attributes:
        name: ``standard``, or what else tells it from a method's other presets for the model.
        status: ``verified`` when measured on that very architecture size, ``guessed`` when derived from depth.
        figures: what was measured and how, or how the guess was made.
    """

    config: Config
    status: Literal["verified", "guessed"]
    figures: str
    name: str = STANDARD


@dataclass(frozen=True)
class _Verified:
    values: Mapping[str, Any]
    figures: str


#: Layers, d_model, d_mlp and vocabulary of the default model.
_SMOLLM2_135M = (30, 576, 1536, 49152)
#: (method, layers, d_model, d_mlp, vocabulary) -> settings that were measured on that model.
_VERIFIED: Mapping[tuple[str, int, int, int, int], _Verified] = MappingProxyType(
    {
        ("nmke", *_SMOLLM2_135M): _Verified(
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
        ("alphaedit", *_SMOLLM2_135M): _Verified(
            {"layers": (4, 5, 6, 7, 8)},
            "SmolLM2-135M-Instruct, CounterFact facts 51 to 75, each edited alone: reliability 1.00, P(target) "
            "0.97, paraphrases 0.67, locality 0.99. benchmarks/presets.md.",
        ),
        ("memit", *_SMOLLM2_135M): _Verified(
            {"layers": (4, 5, 6, 7, 8), "mom2_update_weight": 150.0},
            "SmolLM2-135M-Instruct, CounterFact facts 51 to 75, each edited alone: reliability 1.00, P(target) "
            "0.97, paraphrases 0.66, locality 0.98. The published weight of 15000 writes nothing here (P(target) "
            "0.00, three built-in facts). benchmarks/presets.md.",
        ),
        ("emmet", *_SMOLLM2_135M): _Verified(
            {"layers": (4, 5, 6, 7, 8)},
            "SmolLM2-135M-Instruct, CounterFact facts 51 to 75, each edited alone: reliability 1.00, P(target) "
            "0.97, paraphrases 0.69, locality 0.98. benchmarks/presets.md.",
        ),
        ("mend", *_SMOLLM2_135M): _Verified(
            {"layers": (27, 28, 29), "rank": 256},
            "SmolLM2-135M-Instruct, trained by nmke train mend on ZsRE (500 steps, 7.5 minutes on one busy core), each "
            "fact edited alone: ZsRE facts 1 to 40 reliability 0.97, P(target) 0.85, paraphrases 0.93, locality 0.95; "
            "CounterFact facts 51 to 75, whose like it never saw, reliability 1.00, P(target) 1.00, paraphrases 0.97, "
            "locality 0.11: it overwrites their neighbours. benchmarks/presets.md.",
        ),
        ("rome", *_SMOLLM2_135M): _Verified(
            {"layer": 5},
            "SmolLM2-135M-Instruct, CounterFact facts 51 to 75, each edited alone: reliability 1.00, P(target) "
            "0.95, paraphrases 0.75, locality 0.98. benchmarks/presets.md.",
        ),
        ("ft-l", *_SMOLLM2_135M): _Verified(
            {"layer": 20},
            "SmolLM2-135M-Instruct, CounterFact facts 51 to 75, each edited alone: reliability 0.91, P(target) "
            "0.83, paraphrases 0.28, locality 0.54. The authors' values. benchmarks/presets.md.",
        ),
        ("ft-m", *_SMOLLM2_135M): _Verified(
            {"layer": 20},
            "SmolLM2-135M-Instruct, CounterFact facts 51 to 75, each edited alone: reliability 1.00, P(target) "
            "0.93, paraphrases 0.31, locality 0.54. The authors' values. benchmarks/presets.md.",
        ),
        ("ike", *_SMOLLM2_135M): _Verified(
            {"k": 0},
            "SmolLM2-135M-Instruct, CounterFact facts 51 to 75, each edited alone: reliability 0.96, P(target) 0.76, "
            "paraphrases 0.77, locality 0.22. Demonstrations distract a model of this size: 0.86, 0.54, 0.67 and 0.29 "
            "with eight. benchmarks/presets.md.",
        ),
        ("serac", *_SMOLLM2_135M): _Verified(
            {"threshold": 0.1},
            "SmolLM2-135M-Instruct, CounterFact facts 51 to 75, each edited alone: reliability 0.96, P(target) 0.76, "
            "paraphrases 0.58, locality 0.96. With the paper's threshold of 0.5, paraphrases 0.28 and locality 0.99. "
            "benchmarks/presets.md.",
        ),
        ("kn", *_SMOLLM2_135M): _Verified(
            {"follow_sign": True, "fewest": 4, "most": 10, "lambda_old": 0.5, "lambda_new": 1.0},
            "SmolLM2-135M-Instruct, CounterFact facts 51 to 60, each edited alone: reliability 0.57, P(target) 0.62, "
            "paraphrases 0.37, locality 0.35; ten one after the other ruin the model (perplexity 316 times what it "
            "was, benchmarks/lifelong.md). As published it wrote one of five built-in facts. benchmarks/presets.md.",
        ),
        ("nse", *_SMOLLM2_135M): _Verified(
            {"layers": (4, 5, 6, 7, 8), "mom2_update_weight": 150.0, "upper_bound": 300.0},
            "SmolLM2-135M-Instruct, CounterFact facts 51 to 75, each edited alone: reliability 1.00, P(target) "
            "0.97, paraphrases 0.67, locality 0.99, with two fifths of the neurons. The published weight of 15000 "
            "writes next to nothing here, and z lies farther away than the published bound. benchmarks/presets.md.",
        ),
        ("ultraedit", *_SMOLLM2_135M): _Verified(
            {"layers": (25, 26, 27, 28), "learning_rate": 5e-4},
            "SmolLM2-135M-Instruct, CounterFact facts 51 to 75, each edited alone: reliability 0.97, P(target) "
            "0.84, paraphrases 0.51, locality 0.52. The published learning rate is for larger models and a hundred "
            "facts an edit: ten times that writes nothing here (P(target) 0.01). benchmarks/presets.md.",
        ),
        ("grace", *_SMOLLM2_135M): _Verified(
            {"layer": 25},
            "SmolLM2-135M-Instruct, CounterFact facts 51 to 75, each edited alone: reliability 1.00, P(target) 1.00, "
            "paraphrases 0.03, locality 1.00. The published radius of 1; with 10, paraphrases 0.09 and locality 0.93. "
            "benchmarks/presets.md.",
        ),
        ("melo", *_SMOLLM2_135M): _Verified(
            {"layer": 22},
            "SmolLM2-135M-Instruct, CounterFact facts 51 to 75, each edited alone: reliability 1.00, P(target) 1.00, "
            "paraphrases 0.03, locality 1.00. The authors' values. benchmarks/presets.md.",
        ),
        ("wise", *_SMOLLM2_135M): _Verified(
            {
                "layer": 25,
                "learning_rate": 0.3,
                "alpha": 20.0,
                "beta": 200.0,
                "gamma": 100.0,
                "save_freq": 1,
                "merge_freq": 1000,
                "decoys": 8,
            },
            "SmolLM2-135M-Instruct, CounterFact facts 51 to 75, each edited alone: reliability 0.99, P(target) 0.87, "
            "paraphrases 0.25, locality 0.96. Every edit keeps a shard of its own, as large as the edited matrix, for "
            "a thousand edits: merged, shards lose what they hold. 200 facts one after the other: reliability 0.73, "
            "paraphrases 0.18, locality 0.34 (benchmarks/lifelong.md). benchmarks/presets.md.",
        ),
    }
)

#: (method, preset, layers, d_model, d_mlp, vocabulary) -> further settings for that model, for another purpose.
_MORE: Mapping[tuple[str, str, int, int, int, int], _Verified] = MappingProxyType(
    {
        ("nmke", "trade-off", *_SMOLLM2_135M): _Verified(
            {
                "layers": (4, 5, 6, 7, 8),
                "contexts": "ordinary text",
                "protection": "prior",
                "prior_weight": 600.0,
                "target": {"learning_rate": 2.0, "steps": 14},
                "attribution": {"kind": "mpc"},
                "mask": {
                    "general_low": 1.0,
                    "general_high": 1.0,
                    "specific_low": 1.0,
                    "specific_high": 1.0,
                },
            },
            "SmolLM2-135M-Instruct, 200 CounterFact facts one after the other: reliability 0.97, paraphrases 0.64, "
            "locality 0.79, perplexity 1.10 times the unedited model's; AlphaEdit with its published settings 0.98, "
            "0.52, 0.88 and 1.15. On 200 ZsRE facts it is below AlphaEdit: 0.81, 0.65, 0.76 and 1.09 against 0.89, "
            "0.67, 0.79 and 1.12. It writes every neuron. How it was found: benchmarks/trade_off.md.",
        ),
    }
)


def preset_for(model: EditableModel, method: str, name: str = STANDARD) -> Preset:
    """A method's settings for a model, by the preset's name.

    Raises:
        EditError: no such method, or no such preset of it for this model.
    """
    known = presets_for(model, method)
    if name not in known:
        raise EditError(
            f"{get_method(method).title} has no preset {name!r} for this model.",
            f"Presets: {', '.join(known)}.",
        )
    return known[name]


def presets_for(model: EditableModel, method: str) -> dict[str, Preset]:
    """All of a method's presets for a model by name, the standard one first.

    The standard one is verified for the model's shape, or else guessed from its depth; the others exist only where
    they were measured.

    Raises:
        EditError: no such method.
    """
    chosen = get_method(method)
    shape = (model.n_layers, model.d_model, model.d_mlp, model.d_vocab)
    measured = _VERIFIED.get((method, *shape))
    presets = {
        STANDARD: _verified(chosen, STANDARD, measured) if measured else _guessed(chosen, model.n_layers)
    }
    for (of, name, *known), found in _MORE.items():
        if of == method and tuple(known) == shape:
            presets[name] = _verified(chosen, name, found)
    return presets


def changed_anywhere(method: str, change: Callable[[Config], Config]) -> Config:
    """The change of whichever settings it fits: the method's defaults, or else a preset of some model.

    A check before the model is known. A share that is above the default's highest may well fit the preset's.

    Raises:
        EditError: no such method.
        ConfigError: from ``change``, of the defaults; it fits no preset either.
    """
    chosen = get_method(method).config_class
    try:
        return change(chosen())
    except ConfigError as refused:
        for found in _measured(method):
            try:
                return change(chosen.make(**found.values))
            except ConfigError:
                continue
        raise refused


def _measured(method: str) -> list[_Verified]:
    return [found for known in (_VERIFIED, _MORE) for (of, *_), found in known.items() if of == method]


def _guessed(method: Method, n_layers: int) -> Preset:
    guessed = method.guess(n_layers)
    return Preset(method.config_class.make(**guessed), "guessed", _tell_guess(guessed, n_layers))


def _verified(method: Method, name: str, found: _Verified) -> Preset:
    return Preset(method.config_class.make(**found.values), "verified", found.figures, name)


def _tell_guess(guessed: Mapping[str, Any], n_layers: int) -> str:
    if not guessed:
        return "The authors' defaults. Not measured on this model."
    named = ", ".join(f"{name} {_tell_layers(value)}" for name, value in guessed.items())
    return (
        f"By depth ({n_layers} layers), at the same share as in the literature: {named}; everything else is the "
        "authors' default. Not measured on this model."
    )


def _tell_layers(value: Any) -> str:
    return f"{value[0]} to {value[-1]}" if isinstance(value, tuple) else str(value)
