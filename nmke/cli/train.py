"""``nmke train``: editors that must be trained before they edit."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmke.cli.options import (
    DeviceOption,
    DtypeOption,
    LimitOption,
    ModelOption,
    SetOption,
    TrustOption,
    change_settings,
    read_fact_file,
)
from nmke.cli.terminal import TerminalProgress, note, say
from nmke.errors import EditError

if TYPE_CHECKING:
    from nmke.trained import Trained

TRAINABLE = ("mend",)


def train(
    method: Annotated[
        str, typer.Argument(help=f"The method whose editor is trained: {', '.join(TRAINABLE)}.")
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="File of facts with paraphrases and neighbourhood prompts, such as ZsRE's training split.",
        ),
    ],
    model: ModelOption = "smollm2-135m",
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Training steps, one fact each; else the settings' own."),
    ] = None,
    limit: LimitOption = None,
    settings: SetOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
) -> None:
    """Train an editor for one model, and keep it where editing finds it.

    Stopped or killed, the same command goes on from its last checkpoint and ends with the same bits. Prints the
    editor's file; facts at the end of the data are held out and what it does with them is told.
    """
    if method not in TRAINABLE:
        raise EditError(f"There is nothing to train for {method!r}.", f"Trainable: {', '.join(TRAINABLE)}.")
    from nmke.methods.mend_state import TrainingConfig
    from nmke.methods.mend_training import METHOD, train_editor, training_for

    change_settings(TrainingConfig(), settings)  # a typing error is told before the model is loaded
    facts = read_fact_file(data, limit)
    from nmke.loading import load_model
    from nmke.trained import trained_path

    with TerminalProgress() as progress:
        loaded = load_model(model, device, dtype, trust_remote_code=trust_remote_code, progress=progress)
        config = change_settings(training_for(loaded), settings)
        if steps is not None:
            config = config.changed(steps=steps)
        found = train_editor(loaded, facts, config, progress, _name(data))
        path = trained_path(METHOD, loaded.weight_hash, config.shape)
    _tell(found)
    say(str(path))


def _name(data: str) -> str:
    path = Path(data)
    if not path.is_file():
        return data
    return f"{path.name} (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]})"


def _tell(found: "Trained") -> None:
    about = found.about
    note(
        f"{about['steps']} steps on {about['facts']} facts in {about['seconds'] / 60:.1f} minutes"
        + (f"; {about['left_out']} facts do not fit the model's context" if about["left_out"] else "")
    )
    held = about["held_out"]
    if held["facts"]:
        note(
            f"{held['facts']} held-out facts, each written alone: edit {held['edit']:.2f}, "
            f"paraphrase {held['paraphrase']:.2f}, locality {held['locality']:.2f}"
        )
