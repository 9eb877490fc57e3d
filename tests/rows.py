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


ROWS: Mapping[str, Row] = {
    "nmke": Row(closed_form, ("scoring neurons (LPS)", *WRITING), (1, 2)),
}


def tiny_config(name: str, text: Path) -> Config:
    """A method's settings for the tiny models."""
    return get_method(name).config_class.make(**ROWS[name].settings(text))
