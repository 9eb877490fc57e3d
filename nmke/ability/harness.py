"""The installed lm-evaluation-harness: its version, and its own functions and classes, imported when first used."""

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nmke.errors import ResourceError

#: From this version on, and below that one; requirements.txt says the same.
LEAST, BELOW = (0, 4, 13), (0, 5)
INSTALL = "Install it with: pip install 'lm-eval>=0.4.13,<0.5'."


def harness_version() -> str:
    """The installed harness's version, without importing it.

    Raises:
        ResourceError: it is missing, or of a version whose task definitions are not known here.
    """
    try:
        found = version("lm-eval")
    except PackageNotFoundError:
        raise ResourceError("lm-evaluation-harness (lm-eval) is not installed.", INSTALL) from None
    numbers = tuple(int(part) for part in found.split(".")[:3] if part.isdecimal())
    if not LEAST <= numbers < BELOW:
        raise ResourceError(
            f"lm-evaluation-harness {found} is installed; this program knows 0.4.13 up to before 0.5.",
            INSTALL,
        )
    return found


@cache
def load_harness() -> "Harness":
    """The harness's parts that are used here, imported now (some seconds) and told to be quiet.

    Raises:
        ResourceError: it is missing, of another version, or cannot be imported.
    """
    found = harness_version()
    try:
        parts = [
            importlib.import_module(f"lm_eval.{name}")
            for name in ("evaluator", "api.task", "tasks._yaml_loader", "models.huggingface")
        ]
        datasets = importlib.import_module("datasets")
        harness = Harness(
            found,
            Path(parts[2].__file__ or "").parent,
            parts[0].evaluate,
            parts[1].ConfigurableTask,
            parts[2].load_yaml,
            parts[3].HFLM,
            datasets.Dataset,
        )
    except (ImportError, AttributeError) as problem:
        raise ResourceError(
            f"lm-evaluation-harness {found} cannot be used: {str(problem)[:200]}.",
            f"{INSTALL} It needs no extra beside this project's requirements.",
        ) from problem
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return harness


@dataclass(frozen=True)
class Harness:
    """The harness's own functions and classes."""

    version: str
    folder: Path
    evaluate: Callable[..., Any]
    ConfigurableTask: Any
    load_yaml: Callable[..., dict[str, Any]]
    HFLM: Any
    Dataset: Any
