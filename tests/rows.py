"""The rows of the method matrix: for each registered method, settings for the tiny models and stages to cancel in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmke.config import Config
from nmke.methods import get_method

#: Stages of the closed-form methods.
WRITING = (
    "optimising z",
    "writing layers",
    "writing contexts",
    "reading the statistics text",
    "finding the null space",
)


@dataclass(frozen=True)
class Row:
    """How one method is tried.

    Attributes:
        settings: for a tiny model of four layers, given a text for statistics.
        stages: progress stages in each of which a cancel is tried, on a cold cache.
        layers: the layers an edit with these settings changes, in weights or modules.
    """

    settings: Callable[[Path], Mapping[str, Any]]
    stages: tuple[str, ...]
    layers: tuple[int, ...]


def closed_form(text: Path) -> dict[str, Any]:
    return {
        "layers": (1, 2),
        "null_space_threshold": 1e6,
        "statistics": {"text": str(text), "tokens": 400, "window": 32},
        "target": {"steps": 8, "weight_decay": 0.0, "learning_rate": 0.1},
    }


def side_memory(text: Path) -> dict[str, Any]:
    return {
        "layer": 2,
        "steps": 8,
        "learning_rate": 0.1,
        "text": str(text),
        "text_tokens": 32,
        "text_window": 16,
        "save_freq": 1,
        "merge_freq": 2,
    }


def fine_tuning(text: Path) -> dict[str, Any]:
    return {"layer": 1, "steps": 4}


def knowledge_neurons(text: Path) -> dict[str, Any]:
    return {"layers": (2,), "steps": 5}


def memit(text: Path) -> dict[str, Any]:
    values = {name: value for name, value in closed_form(text).items() if name != "null_space_threshold"}
    return {**values, "mom2_update_weight": 0.01}


def emmet(text: Path) -> dict[str, Any]:
    values = {name: value for name, value in closed_form(text).items() if name != "null_space_threshold"}
    return {**values, "emmet_lambda": 0.01}


def rome(text: Path) -> dict[str, Any]:
    settings = closed_form(text)
    return {"layer": 1, "statistics": settings["statistics"], "target": settings["target"]}


def nse(text: Path) -> dict[str, Any]:
    return {**memit(text), "alpha": 0.0}


def ultraedit(text: Path) -> dict[str, Any]:
    return {"layers": (1, 2), "learning_rate": 1e-3}


def codebook(text: Path) -> dict[str, Any]:
    return {"layer": 2, "steps": 8}


def dynamic_lora(text: Path) -> dict[str, Any]:
    return {"layer": 2, "steps": 8, "alpha": 20, "learning_rate": 0.01}


def mend(text: Path) -> dict[str, Any]:
    """Put the tiny models' trained editors where editing looks for them; they are trained once."""
    from nmke.storage import home
    from tests.tiny_editors import tiny_editors

    for name, content in tiny_editors():
        target = home() / "trained" / "mend" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return {"layers": (1, 2), "rank": 8}


def in_front(text: Path) -> dict[str, Any]:
    """A tiny encoder beside the text, and as many demonstrations as a small context takes."""
    from tests.tiny_encoder import make_tiny_encoder

    folder = text.parent / "encoder"
    if not folder.is_dir():
        make_tiny_encoder(folder)
    return {"encoder": str(folder), "k": 1, "room": 100}


def memory(text: Path) -> dict[str, Any]:
    return {"encoder": in_front(text)["encoder"], "threshold": 0.0}


ROWS: Mapping[str, Row] = {
    "alphaedit": Row(closed_form, WRITING, (1, 2)),
    "melo": Row(dynamic_lora, ("training the block",), (2,)),
    "mend": Row(mend, ("transforming gradients",), (1, 2)),
    "memit": Row(memit, WRITING[:4], (1, 2)),
    "emmet": Row(emmet, WRITING[:4], (1, 2)),
    "rome": Row(rome, WRITING[:4], (1,)),
    "ft-l": Row(fine_tuning, ("fine-tuning",), (1,)),
    "ft-m": Row(fine_tuning, ("fine-tuning",), (1,)),
    "grace": Row(codebook, ("training the value",), (2,)),
    "ike": Row(
        in_front, ("encoding the demonstrations", "choosing demonstrations", "reading behind the edit"), ()
    ),
    "kn": Row(knowledge_neurons, ("writing contexts", "integrating gradients"), (2,)),
    "nmke": Row(closed_form, ("scoring neurons (LPS)", *WRITING), (1, 2)),
    "nse": Row(nse, WRITING[:4], (1, 2)),
    "serac": Row(memory, ("encoding the scope examples", "reading behind the edit"), ()),
    "ultraedit": Row(ultraedit, ("reading gradients", "writing layers"), (1, 2)),
    "wise": Row(
        side_memory,
        ("writing contexts", "tokenizing the statistics text", "training the side memory"),
        (2,),
    ),
}


def tiny_config(name: str, text: Path) -> Config:
    """A method's settings for the tiny models."""
    return get_method(name).config_class.make(**ROWS[name].settings(text))
