"""How far the roles depend on the questions that happened to be asked.

Each task's questions are drawn anew with replacement, ``n`` of ``n``, many times (Efron's bootstrap, within tasks), and
the rule is applied to each drawing. A drawing is a row of multinomial weights, so all of them are one product of
weights with hits. The same drawings serve every layer: a question counts as a whole.

What is reported of a count ``c`` with drawn counts ``c*``:

- the interval ``c + quantile(c* - mean c*)``, 2.5% to 97.5%: how far the count varies with the questions;
- the shift ``mean c* - c``: a rule with a threshold is biased by noise (few neurons stay general in every drawing), and
  the shift estimates how far the count of so many questions lies from that of very many, in the other direction;
- of a role's set, the mean overlap of the drawn set with it (intersection over union);
- the share of neurons that keep their role, of all and of those that have one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nmke.progress import Progress
from nmke.roles.config import RolesConfig
from nmke.roles.rules import ROLES, domain_members, hits, is_active, patterns_of, roles_of
from nmke.roles.scores import QuestionScores

COVERAGE = (0.025, 0.975)
#: So many combinations of tasks are followed through the drawings; the commonest.
PATTERNS = 32
#: Elements [resample, task, d_mlp] worked on at once.
_BLOCK = 2**24


@dataclass(frozen=True)
class Stability:
    """What resampling the questions says.

    Attributes:
        roles: one row a role: role, count, low, high, shift, jaccard (mean overlap of the drawn set with the role's).
        layers: one row a layer and role: layer, role, count, low, high.
        overlaps: one row a combination of tasks: pattern, count, low, high.
        kept: mean share of neurons that keep their role, with its 2.5% and 97.5% quantiles.
        kept_active: the same among neurons that are active somewhere.
    """

    roles: pd.DataFrame
    layers: pd.DataFrame
    overlaps: pd.DataFrame
    kept: tuple[float, float, float]
    kept_active: tuple[float, float, float]
    resamples: int
    seed: int


def draw_weights(sizes: Sequence[int], resamples: int, seed: int) -> list[Float[Tensor, "resample question"]]:
    """How often each question of each task is drawn."""
    generator = np.random.default_rng(seed)
    return [
        torch.from_numpy(generator.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float32))
        for n in sizes
    ]


def resample(
    scores: QuestionScores,
    active: Mapping[int, Bool[Tensor, "task d_mlp"]],
    config: RolesConfig,
    progress: Progress,
) -> Stability:
    """Apply the rule to ``config.resamples`` drawings of the questions.

    Args:
        active: in which tasks each neuron is active by all questions.

    Raises:
        Cancelled: from ``progress``, once a layer.
    """
    members = domain_members(scores.tasks, scores.domains)
    weights = draw_weights(scores.sizes, config.resamples, config.seed)
    patterns = commonest_patterns(active)
    tally = _Tally(config.resamples, scores.layers, patterns)
    step = max(1, _BLOCK // (len(scores.tasks) * scores.d_mlp))
    for done, layer in enumerate(scores.layers):
        progress.update("resampling the questions", done, len(scores.layers), f"layer {layer}")
        found = hits(scores.ranks[layer], scores.above[layer], config).float()
        usual = roles_of(active[layer], members)
        tally.begin(layer, usual, patterns_of(active[layer]))
        for start in range(0, config.resamples, step):
            some = slice(start, start + step)
            drawn = torch.stack(
                [
                    is_active(weight[some] @ found[scores.rows(task)], n, config)
                    for task, (weight, n) in enumerate(zip(weights, scores.sizes, strict=True))
                ],
                dim=1,
            )
            tally.add(some, roles_of(drawn, members), patterns_of(drawn))
    return tally.finish(config)


def commonest_patterns(active: Mapping[int, Bool[Tensor, "task d_mlp"]]) -> Tensor:
    """The commonest combinations of tasks over all layers, the empty one always among them; rising."""
    every = torch.cat([patterns_of(one) for one in active.values()])
    patterns, counts = every.unique(return_counts=True)
    chosen = patterns[counts.argsort(descending=True, stable=True)[:PATTERNS]]
    return torch.cat([chosen, torch.zeros(1, dtype=chosen.dtype)]).unique()


class _Tally:
    """Counts per drawing, layer by layer."""

    def __init__(self, resamples: int, layers: Sequence[int], patterns: Tensor) -> None:
        n = len(ROLES)
        self._layers, self._patterns = layers, patterns
        self._usual = np.zeros((len(layers), n), dtype=np.int64)
        self._drawn = np.zeros((resamples, len(layers), n), dtype=np.int64)
        self._both = np.zeros((resamples, n), dtype=np.int64)
        self._pattern_usual = np.zeros(len(patterns), dtype=np.int64)
        self._pattern_drawn = np.zeros((resamples, len(patterns)), dtype=np.int64)
        self._neurons = 0

    def begin(self, layer: int, usual: Tensor, patterns: Tensor) -> None:
        self._place, self._roles = list(self._layers).index(layer), usual
        self._usual[self._place] = torch.bincount(usual.long(), minlength=len(ROLES)).numpy()
        self._pattern_usual += self._count_patterns(patterns[None])[0]
        self._neurons += len(usual)

    def add(self, some: slice, roles: Tensor, patterns: Tensor) -> None:
        for code in range(len(ROLES)):
            is_role = roles == code
            self._drawn[some, self._place, code] = is_role.sum(1).numpy()
            self._both[some, code] += (is_role & (self._roles == code)).sum(1).numpy()
        self._pattern_drawn[some] += self._count_patterns(patterns)

    def _count_patterns(self, patterns: Tensor) -> np.ndarray:
        known = self._patterns
        place = torch.searchsorted(known, patterns).clamp_max(len(known) - 1)
        rows = torch.arange(len(patterns))[:, None] * len(known) + place
        counts = torch.bincount(rows[known[place] == patterns], minlength=len(patterns) * len(known))
        return counts.view(len(patterns), len(known)).numpy()

    def finish(self, config: RolesConfig) -> Stability:
        usual, drawn = self._usual.sum(0), self._drawn.sum(1)
        union = drawn + usual - self._both
        # A role that nobody has, in this drawing either, is the same set.
        overlap = np.where(union > 0, self._both / np.maximum(union, 1), 1.0)
        roles = pd.DataFrame(
            {
                "role": ROLES,
                "count": usual,
                **_interval(usual, drawn),
                "shift": drawn.mean(0) - usual,
                "jaccard": overlap.mean(0),
            }
        )
        layers = pd.DataFrame(
            {
                "layer": np.repeat(self._layers, len(ROLES)),
                "role": ROLES * len(self._layers),
                "count": self._usual.ravel(),
                **_interval(self._usual.ravel(), self._drawn.reshape(len(self._drawn), -1)),
            }
        )
        overlaps = pd.DataFrame(
            {
                "pattern": self._patterns.numpy(),
                "count": self._pattern_usual,
                **_interval(self._pattern_usual, self._pattern_drawn),
            }
        )
        among = max(int(usual[1:].sum()), 1)
        return Stability(
            roles=roles,
            layers=layers,
            overlaps=overlaps,
            kept=_spread(self._both.sum(1) / self._neurons),
            kept_active=_spread(self._both[:, 1:].sum(1) / among),
            resamples=config.resamples,
            seed=config.seed,
        )


def _interval(count: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """``count + quantile(drawn - mean drawn)``; a count is never below 0."""
    low, high = np.quantile(drawn - drawn.mean(0), COVERAGE, axis=0)
    return {"low": np.maximum(count + np.minimum(low, 0), 0), "high": count + np.maximum(high, 0)}


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    low, high = np.quantile(values, COVERAGE)
    return float(values.mean()), float(low), float(high)
