"""The settings of a drift view; no torch here."""

from typing import Literal

from pydantic import Field

from nmke.config import Config
from nmke.errors import ConfigError


class DriftConfig(Config):
    """How the joint t-SNE is drawn, and the number of leading directions compared."""

    perplexity: float = Field(
        30.0,
        ge=2,
        le=1000,
        title="Perplexity",
        description="About how many neighbours each neuron keeps close; must be smaller than the number of neurons.",
    )
    components: int = Field(
        50,
        ge=2,
        le=1000,
        title="PCA components",
        description="The vectors are first projected on so many directions of largest variance; t-SNE sees only those.",
    )
    iterations: int = Field(
        1000,
        ge=300,
        le=10000,
        title="Iterations",
        description="Steps of t-SNE's gradient descent, the first 250 with early exaggeration.",
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**31 - 1,
        title="Seed",
        description="Draws the sample of neurons and, from a random start, the first positions.",
    )
    sample: int | None = Field(
        None,
        ge=3,
        title="Sample of neurons",
        description="Only so many neurons, drawn with the seed, the same ones of every version; empty: all of them.",
    )
    start: Literal["pca", "random"] = Field(
        "pca",
        title="Start",
        description="First positions: the two leading principal components (the same in every run), or random ones.",
    )
    copies: Literal["each", "once"] = Field(
        "each",
        title="Untouched neurons",
        description="'each': every version's copy of a neuron is a point, moved or not, so that all neurons are "
        "treated alike. 'once': equal vectors of a neuron are one point; faster, but t-SNE then pushes neurons with "
        "one point together and away from those with several, a grouping that is not in the weights.",
    )
    directions: int = Field(
        10,
        ge=1,
        le=500,
        title="Leading directions",
        description="k: principal angles are measured between the k directions the matrix writes most strongly.",
    )

    @property
    def of_map(self) -> dict[str, object]:
        """What the map depends on."""
        return self.model_dump(exclude={"directions"})

    def neurons_of(self, d_mlp: int) -> int:
        """How many neurons of a layer are drawn."""
        return d_mlp if self.sample is None else min(self.sample, d_mlp)

    def require_fit(self, d_mlp: int) -> None:
        """Refuse a perplexity that the sample cannot bear.

        Raises:
            ConfigError: the perplexity is not smaller than the number of neurons drawn.
        """
        count = self.neurons_of(d_mlp)
        if self.perplexity >= count:
            raise ConfigError(
                f"The perplexity {self.perplexity:g} is too large for {count} neurons: a neuron cannot have so many "
                "neighbours.",
                f"Choose a perplexity below {count}"
                + (", or a larger sample of neurons." if count < d_mlp else "."),
            )
