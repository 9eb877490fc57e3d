"""The settings of an ablation."""

from typing import Literal

from pydantic import Field, field_validator

from nmke.answers import AnswersConfig
from nmke.config import Config


class AblationConfig(Config):
    """How many neurons are switched off, how, and beside how many random sets."""

    ks: tuple[int, ...] = Field(
        (10, 50),
        title="k: neurons",
        description="How many neurons of a role are switched off; several numbers give a condition each.",
    )
    counted: Literal["in all", "per layer"] = Field(
        "in all",
        title="k counts",
        description="In all chosen layers together (the strongest wherever they are), or in each of them.",
    )
    how: Literal["zero", "mean"] = Field(
        "zero",
        title="Switched off by",
        description="zero: the neuron adds nothing, as if its row of W_out were zero. mean: it always has the mean "
        "activation that it has over the questions, so that what it adds no longer depends on the text.",
    )
    controls: int = Field(
        3,
        ge=0,
        le=50,
        title="Random sets",
        description="So many sets of random neurons, as many in the same layers, are switched off beside each set.",
    )
    seed: int = Field(
        0, ge=0, title="Seed", description="The random sets are drawn with this seed and those after it."
    )
    answers: AnswersConfig = Field(
        AnswersConfig(), title="Answers", description="How the questions are answered and scored."
    )

    @field_validator("ks")
    @classmethod
    def _rising(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if not ks or min(ks) < 1:
            raise ValueError("give numbers from 1 on, for example 10, 50")
        return tuple(sorted(set(ks)))
