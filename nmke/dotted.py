"""Settings by their dotted names: ``mask.alpha`` is ``alpha`` in the group ``mask``."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from nmke.config import Config
from nmke.errors import ConfigError

AnyConfig = TypeVar("AnyConfig", bound=Config)


def flat_names(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config's plain values by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat_names(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def nearest(name: str, known: Sequence[str]) -> str:
    """A remedy that names what was probably meant, and what there is."""
    close = difflib.get_close_matches(name, known, 1, 0.6)
    meant = f"Did you mean {close[0]}? " if close else ""
    return f"{meant}Known here: {', '.join(known)}."


def with_changes(config: AnyConfig, changes: Mapping[str, Any]) -> AnyConfig:
    """The settings with some changed by dotted names.

    Raises:
        ConfigError: an unknown name, or a value that is not allowed.
    """
    values = config.model_dump()
    known = list(flat_names(values))
    for name, value in changes.items():
        if name not in known:
            raise ConfigError(f"There is no setting {name!r}.", nearest(name, known))
        *groups, last = name.split(".")
        place = values
        for group in groups:
            place = place[group]
        place[last] = value
    return type(config).make(**values)
