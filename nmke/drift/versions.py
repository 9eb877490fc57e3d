"""Versions of a model's down projections to look at: from sessions, saved bundles and lifelong runs' checkpoints."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from nmke.bundle import load_session
from nmke.edit import Edit
from nmke.errors import DriftError, SessionError
from nmke.lifelong.saved import SavedRun, is_run, saved_runs
from nmke.loading import LoadedModel
from nmke.model import EditableModel
from nmke.progress import Progress, Silent
from nmke.session import EditSession

#: Layer shown first where it is edited: the one of the paper's figure.
PAPER_LAYER = 8


@dataclass(frozen=True)
class Version:
    """The matrices one or more edits made. Do not write them.

    Attributes:
        label: what figures call it.
        methods: registry names of its edits' methods, in order of first use.
        facts: how many facts were written.
        matrices: per changed layer the down projection [d_mlp, d_model], float32.
        masks: per layer the largest weight each neuron had in any edit's mask [d_mlp]; empty for methods without
            masks, and for checkpoints, which do not keep them.
        module_layers: layers beside which a module stands; those weights are as they were.
        digest: SHA-256 of everything the version changes.
        edits: the edits behind it, in order; none where only their sum is known (checkpoints).
    """

    label: str
    methods: tuple[str, ...]
    facts: int
    matrices: Mapping[int, Float[Tensor, "d_mlp d_model"]]
    masks: Mapping[int, Float[Tensor, " d_mlp"]] = field(default_factory=dict)
    module_layers: tuple[int, ...] = ()
    digest: str = ""
    edits: tuple[Edit, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose weights the version changed."""
        return tuple(sorted(self.matrices))


def version_of(session: EditSession, number: int | None = None, label: str = "") -> Version:
    """The weights of a session, now or after its first ``number`` edits.

    Earlier versions are put together again from the loaded weights, with the bits they had.

    Raises:
        DriftError: the session has no such version, or no edits at all.
        SessionError: an earlier version is wanted, but the edits are settled.
    """
    number = session.version if number is None else number
    if not 1 <= number <= session.version:
        what = "There are no edits" if not session.version else f"There is no version {number}"
        raise DriftError(
            f"{what}, so there is no drift to look at.", "Write an edit, or name the folder of saved edits."
        )
    edits = session.edits[:number]
    if number < session.version:
        session.require_unsettled()
        session = _again(session.model, edits)
    matrices, modules = session.state()
    return Version(
        label=label or _label(edits),
        methods=tuple(dict.fromkeys(edit.method for edit in edits)),
        facts=sum(len(edit.facts) for edit in edits),
        matrices=dict(matrices),
        masks=_masks(edits),
        module_layers=tuple(sorted(modules)),
        digest=session.digest,
        edits=edits if all(edit.patches or edit.modules for edit in edits) else (),
    )


def open_versions(
    model: LoadedModel, folder: Path, progress: Progress | None = None, label: str = ""
) -> tuple[Version, ...]:
    """The versions a folder holds: one of a saved bundle, one per run of a lifelong benchmark (or the one run's).

    Raises:
        SessionError: neither of them, damaged, made with another model, or a run without a checkpoint.
        DriftError: it holds no edits.
    """
    progress = progress or Silent()
    progress.update(f"opening {folder.name}", 0, None)
    if is_run(folder):
        return _of_runs(model, saved_runs(model, folder), progress)
    if not folder.is_dir():
        raise SessionError(
            f"There is no folder {folder}.", "Name a folder of saved edits, or of a lifelong run."
        )
    if not (folder / "session.json").is_file() and (folder / "bundle" / "session.json").is_file():
        folder = folder / "bundle"  # what `nmke edit` was told as --out
    session, _ = load_session(model, folder)
    if not session.version:
        raise DriftError(f"{folder.name} holds no edits.", "Choose a folder with edits.")
    return (version_of(session, label=label),)


def layers_of(versions: Sequence[Version]) -> tuple[int, ...]:
    """Every layer whose weights some version changed.

    Raises:
        DriftError: there is none, with the reason.
    """
    layers = sorted({layer for version in versions for layer in version.matrices})
    if layers:
        return tuple(layers)
    if not versions:
        raise DriftError(
            "There are no edits, so there is no drift to look at.",
            "Write an edit, or name the folder of saved edits.",
        )
    raise DriftError(
        "These edits changed no weights: their methods put modules beside matrices that stay as they are.",
        "Choose edits of a method that writes weights.",
    )


def default_layer(versions: Sequence[Version]) -> int:
    """The paper's layer 8 where it is edited, else the first edited layer.

    Raises:
        DriftError: no layer is edited.
    """
    layers = layers_of(versions)
    return PAPER_LAYER if PAPER_LAYER in layers else layers[0]


def changing(versions: Sequence[Version], layer: int) -> tuple[Version, ...]:
    """The versions that changed a layer.

    Raises:
        DriftError: none did.
    """
    found = tuple(version for version in versions if layer in version.matrices)
    if not found:
        layers = ", ".join(map(str, layers_of(versions)))
        raise DriftError(f"No edit changed layer {layer}.", f"Choose one of the edited layers: {layers}.")
    return found


def with_own_labels(versions: Sequence[Version]) -> tuple[Version, ...]:
    """The versions, those of equal labels told apart by a number."""
    named: dict[str, Version] = {}
    for version in versions:
        numbered = (f"{version.label} ({number})" for number in count(2))
        label = next(each for each in chain([version.label], numbered) if each not in named)
        named[label] = version if label == version.label else replace(version, label=label)
    return tuple(named.values())


def _again(model: EditableModel, edits: Sequence[Edit]) -> EditSession:
    session = EditSession(model)
    for edit in edits:
        session.apply(edit)
    return session


def _label(edits: Sequence[Edit]) -> str:
    from nmke.methods import methods

    known = methods()
    used = dict.fromkeys(edit.method for edit in edits)
    titles = [known[name].title if name in known else name for name in used]
    count = sum(len(edit.facts) for edit in edits)
    return f"{' + '.join(titles)}, {count} fact{'s' if count != 1 else ''}"


def _masks(edits: Sequence[Edit]) -> dict[int, Tensor]:
    """Per layer the largest weight over the edits; nothing where some edit wrote the layer without a mask."""
    masks: dict[int, Tensor] = {}
    unmasked = {layer for edit in edits for layer in edit.layers if layer not in edit.masks}
    for edit in edits:
        for layer, mask in edit.masks.items():
            if layer not in unmasked:
                mask = mask.float().cpu()
                masks[layer] = torch.maximum(masks[layer], mask) if layer in masks else mask
    return masks


def _of_runs(model: LoadedModel, runs: Sequence[SavedRun], progress: Progress) -> tuple[Version, ...]:
    found = []
    for done, run in enumerate(runs):
        progress.update("opening checkpoints", done, len(runs), run.label)
        found.append(version_of(run.open(model), label=run.label))
    return tuple(found)


def digest_of(matrix: Float[Tensor, "rows columns"]) -> str:
    """SHA-256 of a matrix's shape and numbers."""
    flat = matrix.detach().contiguous().cpu().numpy()
    return hashlib.sha256(f"{flat.shape}{flat.dtype}".encode() + flat.tobytes()).hexdigest()
