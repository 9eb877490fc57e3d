"""Settings that are checked when they are made."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from nmke.errors import ConfigError


class Config(BaseModel):
    """Base of all settings: immutable, validated, unknown keys refused.

    Each field carries its help text (``description``); the dashboard's forms are generated from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def make(cls, **values: Any) -> Self:
        """Build the settings from loose values.

        Raises:
            ConfigError: naming each bad field, its problem and what is allowed.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            problems = [_describe(cls, problem) for problem in error.errors()]
            raise ConfigError(" ".join(problems), f"Known settings: {', '.join(cls.model_fields)}.") from None

    def changed(self, **values: Any) -> Self:
        """A validated copy with some fields changed."""
        return self.make(**{**self.model_dump(), **values})


def _describe(cls: type[Config], problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"]) or "settings"
    if problem["type"] == "extra_forbidden":
        return f"{cls.__name__} has no setting named {path!r}."
    message = problem["msg"].removeprefix("Value error, ")
    return f"{path}: {message} (got {problem['input']!r})."
