"""``nmke drift``: how far edits moved the weights, as one joint t-SNE and as numbers that depend on no seed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nmke.cli.options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    OutOption,
    SetOption,
    TrustOption,
    change_settings,
    make_folder,
)
from nmke.cli.report import model_record
from nmke.cli.terminal import TerminalProgress, note, say, warn
from nmke.versions import library_versions

if TYPE_CHECKING:
    from nmke.drift import DriftNumbers, Version
    from nmke.loading import LoadedModel


def drift(
    edits: Annotated[
        list[Path],
        typer.Option(
            "--edits",
            "-e",
            help="Folder of saved edits (as `nmke edit` writes), or of a lifelong run, whose checkpoints are then "
            "read; repeatable, all versions share one embedding.",
        ),
    ],
    out: OutOption,
    model: ModelOption = "smollm2-135m",
    layer: Annotated[
        int | None,
        typer.Option(
            "--layer", "-l", min=0, help="The layer drawn; 8 by default, else the first edited one."
        ),
    ] = None,
    kinds: Annotated[
        bool,
        typer.Option(
            "--kinds/--no-kinds",
            help="Colour edited neurons by kind (general, specific, both, none): scores the edits' prompts again.",
        ),
    ] = False,
    settings: SetOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
) -> None:
    """Draw original and edited neurons of one layer in one joint t-SNE, and measure every changed layer.

    Writes drift.html and drift.png (the figure), summary.json, layers.csv and neurons.parquet (cosine, length, step
    and mask of every neuron). Settings: perplexity, components, iterations, seed, sample, start, copies, directions.
    """
    from nmke.drift.settings import DriftConfig

    config = change_settings(DriftConfig(), settings)
    from nmke.drift import draw_map, measure_drift, open_versions
    from nmke.drift.report import write_report
    from nmke.drift.versions import changing, default_layer, layers_of, with_own_labels
    from nmke.loading import load_model

    make_folder(out)
    with TerminalProgress() as progress:
        loaded = load_model(model, device, dtype, trust_remote_code=trust_remote_code, progress=progress)
        config.require_fit(loaded.d_mlp)
        opened = [version for folder in edits for version in open_versions(loaded, folder, progress)]
        versions = with_own_labels(opened)
        shown = default_layer(versions) if layer is None else layer
        changing(versions, shown)  # a layer nobody edited is refused before anything is computed
        _tell_modules(versions)
        numbers = measure_drift(loaded, versions, layers_of(versions), config.directions, progress)
        groups = _groups(loaded, versions, shown, progress) if kinds else None
        drawn = draw_map(loaded, versions, shown, config, progress)
        progress.update("writing files", 0, 1)
        about: dict[str, Any] = {
            "model": model_record(loaded),
            "edits": [
                {
                    "label": version.label,
                    "methods": version.methods,
                    "facts": version.facts,
                    "layers": version.layers,
                    "module_layers": version.module_layers,
                    "digest": version.digest,
                }
                for version in versions
            ],
            "folders": [str(folder) for folder in edits],
            "config": config.model_dump(mode="json"),
            "versions": library_versions(),
        }
        missing = write_report(out, drawn, numbers, groups, about)
    if missing:
        warn(f"drift.png was {missing}.")
    _tell(numbers, shown)
    note(drawn.sentence)
    say(str(out))


def _tell_modules(versions: "tuple[Version, ...]") -> None:
    for version in versions:
        if version.module_layers:
            places = ", ".join(map(str, version.module_layers))
            warn(f"{version.label} put modules beside layers {places}; the weights there are as they were.")


def _groups(
    loaded: "LoadedModel", versions: "tuple[Version, ...]", layer: int, progress: TerminalProgress
) -> dict[str, Any]:
    from nmke.drift.kinds import find_kinds, group_names, has_kinds

    found = {}
    for version in versions:
        if has_kinds(version):
            codes = find_kinds(loaded, version, progress)
            if layer in codes:
                found[version.label] = group_names(codes[layer])
        else:
            warn(f"{version.label} has no masks, so its neurons have no kinds.")
    return found


def _tell(numbers: "DriftNumbers", layer: int) -> None:
    for change in numbers.at(layer):
        figures = change.figures
        note(
            f"{change.label}, layer {layer}: moved by {figures['relative_norm']:.2%} of the matrix's norm, "
            f"{figures['untouched']:.1%} of the neurons untouched, effective rank {figures['effective_rank']:.1f}. "
            f"{change.angle_sentence}"
        )
