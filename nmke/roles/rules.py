"""When a neuron is active in a task, and which role that makes it; no model is needed here.

On a question ``j`` of task ``t`` a neuron ``i`` either hits or does not, ``h_ji``; over the task's ``n`` questions it
hits ``k_ti = sum_j h_ji`` times.

- *Top share*: ``h_ji = [rank of A_ji among the layer's neurons < q D]``, active when ``k_ti >= s n``.
- *Sign test*: ``h_ji = [z_ji > 0]`` with ``z`` the standardised scores (as in the method's knowledge-general score),
  active when ``P(Binomial(n, 1/2) >= k_ti) <= a``, ``a`` corrected for testing a layer's ``D`` neurons together.

Roles, from the set of tasks in which a neuron is active: *general* in all; *task* in exactly one; *domain* in all tasks
of one domain, two or more, and in no other; *mixed* in any other set of several; *inactive* in none. A domain of a
single task cannot be told from that task: such neurons are *task*. The paper names no mixed ones.

The default, chosen on SmolLM2-135M with 100 MMLU questions of each of high school and college biology and chemistry,
in letters, by how much stays when the questions are drawn anew. Share of the neurons with a role that keep it, and mean
overlap of the general ones, for the top tenth on at least the share s::

                                       s = 0.25      0.5         0.75        0.9
    MPC, 30 layers                   0.91 0.96   0.91 0.96   0.91 0.96   0.89 0.95
    LPS of the right answer, 7       0.85 0.93   0.86 0.92   0.83 0.89   0.87 0.94
    LPS of the top token, 30         0.86 0.94   0.62 0.56   0.81 0.87   0.81 0.93

One half is about as steady as any and asks the question in its plainest form: active more often than not. Domain, task
and mixed neurons are less steady than general ones everywhere (overlaps of 0.45 to 0.65): their counts can be trusted
within their intervals, single neurons less. The top token is not followed by default: in letters this model's own next
token is the end of its turn (57%), a line break (33%) or "A" (10%), so scores come in two or three kinds, and one half
falls between them. The sign test calls 38 to 57% of neurons general; it keeps 0.92 to 0.94 (0.73 to 0.83
for the top token).
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from nmke.roles.config import RolesConfig
from nmke.roles.scores import QuestionScores

ROLES = ("inactive", "task", "domain", "mixed", "general")
_INACTIVE, _TASK, _DOMAIN, _MIXED, _GENERAL = range(5)

RULE_FORMULAS: Mapping[str, str] = {
    "top share": "Active on a question: the score is among the layer's top q. Active in a task: on at least the share "
    "s of its questions.",
    "sign test": "Active in a task: the score is above its layer's mean on significantly more than half of the "
    "task's questions (one-sided exact binomial test at level a).",
}
ROLE_FORMULA = (
    "General: active in every task. Task: in exactly one. Domain: in all tasks of one domain that has two or more, and "
    "in no other. Mixed: in several tasks that are neither all tasks nor one domain's. Inactive: in none."
)


def hits(
    ranks: Int[Tensor, "question d_mlp"], above: Int[Tensor, " question"], config: RolesConfig
) -> Bool[Tensor, "question d_mlp"]:
    """On which questions each neuron is active."""
    if config.rule == "sign test":
        return ranks < above[:, None]
    return ranks < top_count(ranks.shape[1], config.top_share)


def top_count(d_mlp: int, share: float) -> int:
    """How many neurons the top share of a layer is; at least one."""
    return max(1, round(share * d_mlp))


def is_active(
    counts: Float[Tensor, "resample d_mlp"], n: int, config: RolesConfig
) -> Bool[Tensor, "resample d_mlp"]:
    """Whether each neuron is active in a task, from its hits on the task's ``n`` questions.

    Args:
        counts: whole numbers from 0 to ``n``; each row is one drawing of the questions.
    """
    if config.rule == "top share":
        # s n may be a whole number that floating point puts a little too high
        return counts >= math.ceil(config.task_share * n - 1e-9)
    if config.correction == "fdr":
        return counts >= _fdr_threshold(counts, n, config.level)
    tests = counts.shape[1] if config.correction == "bonferroni" else 1
    return counts >= least_hits(n, config.level / tests)


@lru_cache(maxsize=64)
def tail_probabilities(n: int) -> tuple[float, ...]:
    """``P(Binomial(n, 1/2) >= k)`` for k = 0 ... n, exact until the last division."""
    ways = [math.comb(n, k) for k in range(n + 1)]
    tails, total = [0] * (n + 1), 0
    for k in range(n, -1, -1):
        total += ways[k]
        tails[k] = total
    return tuple(tail / 2**n for tail in tails)


def least_hits(n: int, level: float) -> int:
    """The fewest hits of ``n`` that are significant at ``level``; ``n + 1`` when none are."""
    return next((k for k, p in enumerate(tail_probabilities(n)) if p <= level), n + 1)


def _fdr_threshold(
    counts: Float[Tensor, "resample d_mlp"], n: int, level: float
) -> Float[Tensor, "resample 1"]:
    """Benjamini and Hochberg's threshold of each row: fewest hits ``k`` with ``p(k) D / #{i: k_i >= k} <= level``."""
    resamples, tests = counts.shape
    places = counts.long() + (n + 1) * torch.arange(resamples, device=counts.device)[:, None]
    histogram = torch.bincount(places.flatten(), minlength=resamples * (n + 1)).view(resamples, n + 1)
    at_least = histogram.flip(1).cumsum(1).flip(1)
    p = torch.tensor(tail_probabilities(n), dtype=torch.float64, device=counts.device)
    enough = (p * tests <= level * at_least) & (at_least > 0)
    first = torch.where(enough.any(1), enough.double().argmax(1), n + 1)
    return first[:, None].to(counts.dtype)


def domain_members(tasks: Sequence[str], domains: Mapping[str, str]) -> tuple[tuple[int, ...], ...]:
    """The tasks of each domain, by index."""
    names = dict.fromkeys(domains[task] for task in tasks)
    return tuple(tuple(i for i, task in enumerate(tasks) if domains[task] == name) for name in names)


def roles_of(
    active: Bool[Tensor, "*resample task d_mlp"], members: Sequence[Sequence[int]]
) -> Int8[Tensor, "*resample d_mlp"]:
    """Index in ``ROLES`` of each neuron's role.

    Args:
        members: the tasks of each domain, from :func:`domain_members`.
    """
    total = active.sum(-2)
    codes = torch.full(total.shape, _MIXED, dtype=torch.int8, device=active.device)
    for tasks in members:
        if len(tasks) > 1:
            inside = active[..., list(tasks), :].sum(-2)
            codes[(inside == len(tasks)) & (total == len(tasks))] = _DOMAIN
    codes[total == 1] = _TASK
    codes[total == active.shape[-2]] = _GENERAL
    codes[total == 0] = _INACTIVE
    return codes


def patterns_of(active: Bool[Tensor, "*resample task d_mlp"]) -> Int[Tensor, "*resample d_mlp"]:
    """The set of tasks in which each neuron is active, as a number with one bit a task."""
    bits = 2 ** torch.arange(active.shape[-2], device=active.device)
    return (active * bits[:, None]).sum(-2)


def tasks_of_pattern(pattern: int, tasks: Sequence[str]) -> tuple[str, ...]:
    """The tasks of a pattern."""
    return tuple(task for number, task in enumerate(tasks) if pattern >> number & 1)


def hit_counts(scores: QuestionScores, layer: int, config: RolesConfig) -> Float[Tensor, "task d_mlp"]:
    """On how many questions of each task each neuron is active."""
    found = hits(scores.ranks[layer], scores.above[layer], config)
    return torch.stack([found[scores.rows(task)].sum(0) for task in range(len(scores.tasks))]).float()


def active_in(
    counts: Float[Tensor, "task d_mlp"], sizes: Sequence[int], config: RolesConfig
) -> Bool[Tensor, "task d_mlp"]:
    """In which tasks each neuron is active, from its hits."""
    return torch.cat([is_active(row[None], n, config) for row, n in zip(counts, sizes, strict=True)])
