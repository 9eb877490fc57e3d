"""``nmke neurons``: scores and masks of the neurons behind each fact, as tables."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nmke.cli.options import (
    DeviceOption,
    DtypeOption,
    FactsOption,
    LimitOption,
    ModelOption,
    OutOption,
    SetOption,
    TrustOption,
    change_settings,
    make_folder,
    parse_layers,
    read_fact_file,
)
from nmke.cli.report import model_record
from nmke.cli.terminal import TerminalProgress, note, say
from nmke.config import Config
from nmke.store import write_json
from nmke.versions import library_versions

if TYPE_CHECKING:
    import pandas as pd

    from nmke.attribution import Attribution
    from nmke.masks import LayerMask


def neurons(
    facts: FactsOption,
    out: OutOption,
    model: ModelOption = "smollm2-135m",
    limit: LimitOption = None,
    layers: Annotated[str, typer.Option(help="For example 4-8, or 4,6,8, or all.")] = "all",
    attribution: Annotated[
        Literal["lps", "psa", "mpc"],
        typer.Option(help="Score: rise of log-probability, of probability, or activation."),
    ] = "lps",
    target: Annotated[
        Literal["top1", "new", "true"],
        typer.Option(help="The token followed: the model's own, the new or the true answer."),
    ] = "top1",
    settings: SetOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
) -> None:
    """Score every neuron for every fact's prompt, and tell general from specific ones.

    Writes scores.parquet (layer, prompt, neuron, score, activation, bound), masks.parquet (layer, neuron, kind,
    weight) and summary.json (per layer: ratios, entropies, counts, seconds, error bounds).
    """
    chosen_layers = parse_layers(layers)
    fact_list = read_fact_file(facts, limit)
    from nmke.attribution import attribute, prompts_of
    from nmke.loading import load_model
    from nmke.masks import build_masks

    config = change_settings(_default_settings(attribution, target), settings)
    prompts = prompts_of(fact_list, target=config.attribution.target)
    make_folder(out)
    with TerminalProgress() as progress:
        loaded = load_model(model, device, dtype, trust_remote_code=trust_remote_code, progress=progress)
        loaded.require_conformance()
        found = attribute(loaded, prompts, chosen_layers, config.attribution, progress)
        progress.update("building masks", 0, 1)
        masks = build_masks(found, config.mask)
        progress.update("writing files", 0, 1)
        found.frame().to_parquet(out / "scores.parquet", index=False)
        mask_table(masks).to_parquet(out / "masks.parquet", index=False)
        summary = {
            "model": model_record(loaded),
            "facts": {"file": facts, "count": len(fact_list)},
            "prompts": [
                {"text": prompt.text, "target": token}
                for prompt, token in zip(found.prompts, found.target_tokens, strict=True)
            ],
            "config": config.model_dump(mode="json"),
            "layers": summarise(found, masks),
            "versions": library_versions(),
        }
        write_json(out / "summary.json", summary)
    kept = sum(mask.count for mask in masks.values())
    note(f"{len(prompts)} prompts, {len(masks)} layers; {kept} neurons selected.")
    say(str(out))


def _default_settings(kind: str, target: str) -> Any:
    from nmke.attribution import AttributionConfig
    from nmke.masks import MaskConfig

    class NeuronsConfig(Config):
        attribution: AttributionConfig
        mask: MaskConfig

    return NeuronsConfig(attribution=AttributionConfig.make(kind=kind, target=target), mask=MaskConfig())


def mask_table(masks: "dict[int, LayerMask]") -> "pd.DataFrame":
    """Long table: layer, neuron, kind, weight, general_score, specific_score."""
    import pandas as pd

    from nmke.masks import KINDS

    parts = [
        pd.DataFrame(
            {
                "layer": layer,
                "neuron": range(len(mask.kinds)),
                "kind": [KINDS[kind] for kind in mask.kinds.tolist()],
                "weight": mask.weights.tolist(),
                "general_score": mask.general_score.tolist(),
                "specific_score": mask.specific_score.tolist(),
            }
        )
        for layer, mask in masks.items()
    ]
    return pd.concat(parts, ignore_index=True)


def summarise(found: "Attribution", masks: "dict[int, LayerMask]") -> list[dict[str, Any]]:
    """Per layer: ratios, entropies, thresholds, counts per kind, seconds of attribution."""
    from nmke.masks import KINDS

    return [
        {
            "layer": layer,
            "rho_general": mask.rho_general,
            "rho_specific": mask.rho_specific,
            "entropy_general": mask.entropy_general,
            "entropy_specific": mask.entropy_specific,
            "general_cut": mask.general_cut,
            "specific_cut": mask.specific_cut,
            "counts": {name: int((mask.kinds == number).sum()) for number, name in enumerate(KINDS)}
            | {"selected": mask.count},
            "seconds": found.seconds[layer],
            "largest_error_bound": float(found.bounds[layer].max()),
            "read_from_whole_vocabulary": float((found.bounds[layer] == 0).float().mean()),
        }
        for layer, mask in masks.items()
    ]
