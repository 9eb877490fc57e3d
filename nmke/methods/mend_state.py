"""MEND's training: its settings, everything it changes, and that on disk."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nmke.errors import ResourceError
from nmke.methods.mend_transform import GradientTransform, TransformConfig
from nmke.model import EditableModel
from nmke.store import written_atomically
from nmke.trained import tensors_digest

CHECKPOINT_SECONDS = 30.0  #: at least so long between two checkpoints
CHECKPOINT_SHARE = 20  #: and at least so many times as long as the last one took to write


class TrainingConfig(TransformConfig):
    """Settings of MEND's training; published defaults."""

    steps: int = Field(
        100_000, ge=1, le=10**8, title="Steps", description="Training steps; each edits with one fact."
    )
    learning_rate: float = Field(
        1e-6, gt=0, le=1, title="Learning rate", description="Adam's step size for the transform."
    )
    edit_rate: float = Field(
        1e-4, gt=0, title="First edit rate", description="What each layer's learned edit rate begins with."
    )
    rate_learning_rate: float = Field(
        1e-4, ge=0, le=1, title="Learning rate of edit rates", description="Adam's step size for them."
    )
    c_edit: float = Field(
        0.1, ge=0, title="Weight of the edit loss", description="How much the new answer counts."
    )
    c_loc: float = Field(
        1.0, ge=0, title="Weight of the locality loss", description="How much unrelated texts count."
    )
    accumulate: int = Field(
        10, ge=1, le=10_000, title="Steps an update", description="Steps whose gradients are averaged."
    )
    grad_clip: float = Field(100.0, gt=0, title="Gradient clip", description="Largest norm of a gradient.")
    held_out: int = Field(
        50,
        ge=0,
        title="Held-out facts",
        description="The file's last facts are not trained on; the editor is measured on them at the end.",
    )
    hard_share: float = Field(
        0.0,
        ge=0,
        le=1,
        title="Share of hard texts",
        description="In this share of steps the unrelated text is another fact's prompt in similar words, which an "
        "editor overwrites most easily. Ours; 0 as published.",
    )
    seed: int = Field(42, ge=0, title="Seed", description="Of the transform's start and of the order.")


@dataclass
class State:
    """Everything that training changes.

    Attributes:
        step: steps taken.
        sums: of edit and locality loss since the last point of the curve.
        curve: points ``(step, mean edit loss, mean locality loss)``.
        seconds: spent in all.
    """

    transform: GradientTransform
    optimiser: torch.optim.Adam
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    curve: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def fresh(cls, model: EditableModel, config: TrainingConfig) -> "State":
        transform = GradientTransform(
            model.d_mlp,
            model.d_model,
            config.layers,
            config.rank,
            config.n_hidden,
            config.edit_rate,
            config.seed,
        ).to(model.device)
        rest = [value for name, value in transform.named_parameters() if name != "rates"]
        groups: list[dict[str, Any]] = [
            {"params": rest},
            {"params": [transform.rates], "lr": config.rate_learning_rate},
        ]
        return cls(transform, torch.optim.Adam(groups, lr=config.learning_rate))

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors; :meth:`restore` is the way back."""
        named = {f"transform.{name}": value for name, value in self.transform.state_dict().items()}
        for name, value in self.transform.named_parameters():
            if value.grad is not None:
                named[f"grad.{name}"] = value.grad
            for part, moment in self.optimiser.state.get(value, {}).items():
                named[f"adam.{name}.{part}"] = moment
        return {name: value.detach().cpu().contiguous().clone() for name, value in named.items()}

    def restore(self, named: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Become the state that :meth:`tensors` and :meth:`record` gave."""
        own = {name: value for name, value in named.items() if name.startswith("transform.")}
        self.transform.load_state_dict(
            {name.removeprefix("transform."): value for name, value in own.items()}
        )
        for name, value in self.transform.named_parameters():
            if f"grad.{name}" in named:
                value.grad = named[f"grad.{name}"].to(value.device)
            parts = [key for key in named if key.startswith(f"adam.{name}.")]
            for key in parts:
                part = key.rpartition(".")[2]
                # Adam's own count of steps lies in the computer's memory.
                moment = named[key] if part == "step" else named[key].to(value.device)
                self.optimiser.state[value][part] = moment
        self.step, self.seconds = int(record["step"]), float(record["seconds"])
        self.sums, self.curve = list(record["sums"]), [list(point) for point in record["curve"]]

    def record(self) -> dict[str, Any]:
        return {"step": self.step, "sums": self.sums, "curve": self.curve, "seconds": self.seconds}


class Checkpoint:
    """The state on disk beside the finished editor; one of other settings or damaged counts as none."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self._pause, self._last = CHECKPOINT_SECONDS, time.monotonic()

    def read_into(self, state: State, most: int) -> None:
        """Let the state go on from the file, unless it is further than ``most`` steps."""
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                if about.get("key") != self.key:
                    return
                named = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError):
            return
        record = json.loads(about["record"])
        if tensors_digest(named) == about["digest"] and record["step"] <= most:
            state.restore(named, record)

    def write_now_and_then(self, state: State) -> None:
        if time.monotonic() - self._last >= self._pause:
            self.write(state)

    def write(self, state: State) -> None:
        """Whole or not at all. A disk without room for it costs the checkpoint, not the training."""
        begun = time.monotonic()
        named = state.tensors()
        about = {"key": self.key, "digest": tensors_digest(named), "record": json.dumps(state.record())}
        with suppress(ResourceError, SafetensorError), written_atomically(self.path) as temporary:
            save_file(named, temporary, metadata=about)
        self._last = time.monotonic()
        self._pause = max(CHECKPOINT_SECONDS, CHECKPOINT_SHARE * (self._last - begun))
