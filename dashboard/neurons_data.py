"""What the Neurons page shows, as tables and sentences; no Streamlit here."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dashboard.binning import KINDS, BinnedLayer, bin_layer, bins_for
from dashboard.charts import shorten
from dashboard.tokens_html import visible
from nmke.facts import Fact

if TYPE_CHECKING:
    from nmke.attribution import Attribution, AttributionConfig
    from nmke.masks import LayerMask, MaskConfig

SCORE_UNITS: Mapping[str, str] = {
    "lps": "log-probability rise (nats)",
    "psa": "probability rise",
    "mpc": "activation",
}
"""Name and unit of each kind of score."""


@dataclass(frozen=True)
class Origin:
    """What scores were computed from; two equal origins give the same scores."""

    weight_hash: str
    edit_key: Hashable
    edit_version: int
    facts: tuple[Fact, ...]
    layers: tuple[int, ...]
    contexts: bool
    config: "AttributionConfig"


@dataclass(frozen=True)
class Found:
    """Scores together with what they were computed from."""

    origin: Origin
    attribution: "Attribution"
    seconds: float


def stale_reasons(then: Origin, now: Origin) -> list[str]:
    """How what is on the screen now differs from what the scores were computed from; empty when it does not."""
    if then.weight_hash != now.weight_hash:
        return ["these scores belong to another model"]
    reasons = []
    if then.edit_key != now.edit_key:
        if then.edit_version != now.edit_version:
            reasons.append(
                f"these scores are of edit version {then.edit_version}, you are at version {now.edit_version}"
            )
        else:
            reasons.append(f"edit version {now.edit_version} is another one than when they were computed")
    if then.facts != now.facts:
        reasons.append("the chosen facts changed")
    changed = [
        word
        for word, old, new in (
            ("layers", then.layers, now.layers),
            ("contexts", then.contexts, now.contexts),
            ("score settings", then.config, now.config),
        )
        if old != new
    ]
    if changed:
        reasons.append(f"the {' and '.join(changed)} on the left changed")
    return reasons


def as_array(tensor: Any) -> NDArray[Any]:
    """An engine's tensor as an array for drawing."""
    array: NDArray[Any] = tensor.detach().cpu().numpy()
    return array


def bin_masks(masks: "Mapping[int, LayerMask]", *, ranked: bool) -> dict[int, BinnedLayer]:
    """Each layer's neurons in the cells of the overview."""
    width = max(len(mask.kinds) for mask in masks.values())
    bins = bins_for(len(masks), width)
    return {
        layer: bin_layer(as_array(mask.kinds), as_array(mask.specific_score), bins, ranked=ranked)
        for layer, mask in masks.items()
    }


def layer_table(masks: "Mapping[int, LayerMask]") -> pd.DataFrame:
    """One row a layer: neurons per kind, ratios, entropies, thresholds."""
    rows = []
    for layer, mask in masks.items():
        counts = np.bincount(as_array(mask.kinds), minlength=len(KINDS))
        rows.append(
            {
                "layer": layer,
                **{kind: int(count) for kind, count in zip(KINDS, counts, strict=True)},
                "in the mask": mask.count,
                "share in the mask": mask.count / len(mask.kinds),
                "ratio general": mask.rho_general,
                "ratio specific": mask.rho_specific,
                "entropy general": mask.entropy_general,
                "entropy specific": mask.entropy_specific,
                "threshold general": mask.general_cut,
                "threshold specific": mask.specific_cut,
            }
        )
    return pd.DataFrame(rows)


def neuron_table(mask: "LayerMask", layer: int, scores: NDArray[np.floating]) -> pd.DataFrame:
    """One row a neuron of one layer, strongest first."""
    kinds = as_array(mask.kinds)
    table = pd.DataFrame(
        {
            "layer": layer,
            "neuron": np.arange(len(kinds), dtype=np.int32),
            "kind": pd.Categorical.from_codes(kinds, categories=pd.Index(KINDS)),
            "weight": as_array(mask.weights),
            "prompts above average": as_array(mask.general_score).astype(np.int32),
            "largest score": as_array(mask.specific_score),
            "mean score": scores.mean(0),
        }
    )
    return table.sort_values("largest score", ascending=False, kind="stable", ignore_index=True)


def mask_table(masks: "Mapping[int, LayerMask]", scores: Mapping[int, NDArray[np.floating]]) -> pd.DataFrame:
    """One row a neuron of every layer: what the masks download holds."""
    return pd.concat([neuron_table(masks[layer], layer, scores[layer]) for layer in masks], ignore_index=True)


def steering_sentence(masks: "Mapping[int, LayerMask]", config: "MaskConfig") -> str:
    """Says openly how far the entropy moves each ratio away from its lowest value."""
    parts = []
    for kind in ("general", "specific"):
        low, high = getattr(config, f"{kind}_low"), getattr(config, f"{kind}_high")
        ratios = [getattr(mask, f"rho_{kind}") for mask in masks.values()]
        if high - low < 1e-9:
            parts.append(f"the {kind} share is fixed at {low:.0%}, because lowest and highest are equal")
            continue
        moved = [(ratio - low) / (high - low) for ratio in ratios]
        if max(moved) < 0.05:
            parts.append(
                f"the entropy hardly steers the {kind} share: it stays at its lowest, {low:.1%} "
                f"(at most {max(ratios):.3%}); a lower gamma{' or alpha' if kind == 'general' else ''} frees it"
            )
        elif len(moved) > 1 and max(moved) - min(moved) < 0.1:
            parts.append(
                f"the entropy moves the {kind} share to about {np.mean(ratios):.1%} in all layers alike"
            )
        else:
            parts.append(
                f"the entropy moves the {kind} share between {min(ratios):.1%} and {max(ratios):.1%}"
            )
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def guess_seconds(
    kind: str, prompts: int, layers: int, d_model: int, d_mlp: int, d_vocab: int, device: str
) -> float:
    """Rough seconds of an attribution, before one was measured on this machine.

    LPS and PSA cost about half a product [d_mlp, d_model] by [d_model, d_vocab] per layer for how far neurons reach and
    for the tokens drawn, and a little more for each prompt (benchmarks/speed.md).
    """
    if kind == "mpc":
        return 1.0
    fast = not device.startswith("cpu")
    product = 2.0 * d_mlp * d_model * d_vocab / (2e13 if fast else 1.2e11)
    return 1.0 + layers * product * (0.5 + 0.06 * prompts)


def say_estimate(seconds: float) -> str:
    """An estimate in the precision it deserves."""
    if seconds < 3:
        return "a second or two"
    if seconds < 90:
        return f"about {round(seconds, -1) or 5:.0f} seconds" if seconds >= 8 else "about 5 seconds"
    return f"about {seconds / 60:.0f} minutes"


def row_labels(attribution: "Attribution", rows: Sequence[NDArray[np.int64]]) -> list[str]:
    """What each row of the heatmap is called: its prompt and the token followed, or how many prompts it joins."""
    labels = [prompt.label or prompt.text for prompt in attribution.prompts]
    return [
        f"{shorten(labels[members[0]], 28)} → {visible(attribution.target_tokens[members[0]])}"
        if len(members) == 1
        else f"{shorten(labels[members[0]], 28)} and {len(members) - 1} more"
        for members in rows
    ]


def say_reduction(prompts: int, neurons: int, rows: int, columns: int) -> str:
    """What of a [prompt, neuron] table the heatmap shows, and how it was reduced."""
    text = f"Every one of the {neurons} neurons."
    if neurons > columns:
        text = f"The {columns} of {neurons} neurons with the largest scores in size on any prompt."
    if prompts > rows:
        text += (
            f" {prompts} prompts are drawn in {rows} rows: each joins up to {-(-prompts // rows)} neighbouring ones "
            "and shows the score furthest from zero, so that no extreme is lost."
        )
    return text
