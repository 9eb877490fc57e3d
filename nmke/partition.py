"""How the log-partition of a prompt's next-token distribution changes when one neuron is amplified.

Amplifying neuron ``i`` moves the logits by ``c a_v``, ``a_v = x_i . u_v`` for token ``v``. With ``p`` the distribution
before, the log-probability of ``y`` rises by ``c a_y - log E_p[exp(c a)]``. The expectation runs over the whole
vocabulary, for every neuron of every prompt: nearly all of the cost. Three ways to take it, each dearer and wider than
the one before; a neuron goes on to the next only while its error bound is above the tolerance. The first two take the
few tokens that a neuron moves farthest (:mod:`nmke.reach`) exactly, and estimate only the rest:

1. :func:`by_moments`: four moments of ``a``. The first is exact; of the second, a part shared by all prompts is exact
   (the anchor's covariance) and the rest, like the third and fourth, is estimated on tokens drawn by probability.
2. :func:`by_sample`: the exponential itself on a larger draw, leaning on the anchor's covariance too.
3. :func:`by_sum`: every token. The plain form, with no error but rounding.

``t = c (a - centre)`` throughout, the centre shared by all prompts of a neuron; results are ``log E_p[exp t]``. As
``E[exp t] = 1 + E[t] + E[g(t)]``, ``g(t) = exp t - 1 - t``, with the first moment exact, ``E[g]`` alone is at stake:
each neuron's far tokens give ``sum_far p g(t)``, and in the draw they are set to ``t = 0``, where ``g`` and all moments
vanish.

The error bound of the first two is Bernstein's for independent draws, ``5 sd + 25/6 * largest``: ``sd`` the draw's
standard deviation (itself estimated on the draw), ``largest`` what a single token left out could at most contribute,
given how far the neuron can move any but its far tokens. Both are over those other tokens only; with the far ones, the
heavy tails, they would be several times larger. The rounding of the terms is added, so that where they nearly cancel a
neuron goes on to the sum. The bound is a statement about the draw, whose seed is a setting, not a certainty: with the
true deviation about one score in 100 000 would lie outside, and with one estimated on the draw more, where a few
hundred unlikely tokens have one and the same embedding and none of them is drawn.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nmke.reach import Reach

SIGMAS = 5.0
_LARGEST = SIGMAS**2 / 6
#: Elements worked on at once in elementwise passes; small enough to stay in a core's cache.
_CHUNK = 2**18
#: exp overflows float32 above 88.
_SAFE_EXPONENT = 60.0
#: Relative error of a second moment summed in float32, with room to spare.
_ROUNDING = 2.0**-19
#: Relative error of each term of a total, that of the distribution's sum over the vocabulary included.
_ROUNDING_OF_TERMS = 2.0**-16
#: Sums smaller than exp of this are not trusted to probabilities, of which float32 has none below exp(-103).
_SMALLEST_EXPONENT = -16.0


@dataclass(frozen=True)
class Tilts:
    """All neurons of one layer against some prompts: the question asked of every function here.

    Attributes:
        directions: ``x_i`` [d_mlp, d_model], float32.
        amounts: ``c`` per prompt and neuron.
        log_p: each prompt's distribution before, as logarithms [prompt, d_vocab].
        mean: ``E_p[u]`` per prompt [prompt, d_model].
        reach: each neuron's far tokens, and bounds of ``a`` over the others.
    """

    directions: Float[Tensor, "d_mlp d_model"]
    amounts: Float[Tensor, "prompt d_mlp"]
    log_p: Float[Tensor, "prompt d_vocab"]
    mean: Float[Tensor, "prompt d_model"]
    reach: Reach

    @cached_property
    def p(self) -> Float[Tensor, "prompt d_vocab"]:
        """Each prompt's distribution before; 0 for tokens below what float32 can hold."""
        return self.log_p.exp()

    @cached_property
    def centre(self) -> Float[Tensor, " d_mlp"]:
        """What is subtracted from ``a``: its mean under the prompts' mean distribution."""
        return self.directions @ self.mean.mean(0)

    def first(self) -> Float[Tensor, "prompt d_mlp"]:
        """``E_p[t]``, exact."""
        return self.amounts * ((self.mean - self.mean.mean(0)) @ self.directions.T)

    def extremes(self) -> tuple[Float[Tensor, "prompt d_mlp"], Float[Tensor, "prompt d_mlp"]]:
        """Bounds of ``t`` over all but the far tokens: how far down (positive) and how far up."""
        return self._ends(self.reach.lowest_rest, self.reach.highest_rest)

    def farthest_up(self) -> Float[Tensor, "prompt d_mlp"]:
        """A bound of ``t`` over the whole vocabulary."""
        return self._ends(self.reach.lowest, self.reach.highest)[1]

    def _ends(self, lowest: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
        ends = self.amounts * (lowest - self.centre), self.amounts * (highest - self.centre)
        return (-torch.minimum(*ends)).clamp_min(0), torch.maximum(*ends).clamp_min(0)

    @cached_property
    def far_moves(self) -> Float[Tensor, "d_mlp far"]:
        """``a - centre`` of each neuron's far tokens."""
        return self.reach.far_moves - self.centre[:, None]

    @cached_property
    def far(self) -> Float[Tensor, "prompt d_mlp"]:
        """``sum p g(t)`` over each neuron's far tokens, exact; not finite where the exponential overflows."""
        rows = [
            (p[self.reach.far] * _curve(c[:, None] * self.far_moves)).sum(1)
            for p, c in zip(self.p, self.amounts, strict=True)
        ]
        return torch.stack(rows)

    def moves(
        self,
        neurons: Int[Tensor, " some"],
        unembedding: Float[Tensor, "d_vocab d_model"],
        draw: "Draw",
    ) -> Float[Tensor, "some drawn"]:
        """``a - centre`` on the drawn tokens, 0 at each neuron's far ones: those are summed elsewhere."""
        A = self.directions[neurons] @ unembedding[draw.tokens].T
        A -= self.centre[neurons, None]
        place = torch.full_like(draw.inclusion, -1, dtype=torch.long)
        place[draw.tokens] = torch.arange(len(draw.tokens), device=A.device)
        places = place[self.reach.far[neurons]]
        rows, columns = (places >= 0).nonzero(as_tuple=True)
        A[rows, places[rows, columns]] = 0
        return A


@dataclass(frozen=True)
class Draw:
    """Tokens drawn without replacement, likelier ones more often.

    Attributes:
        tokens: the tokens drawn.
        inclusion: every token's probability of being drawn [d_vocab]; 1 for those that always are.
    """

    tokens: Int[Tensor, " drawn"]
    inclusion: Float[Tensor, " d_vocab"]

    def weighted(self, p: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch drawn"]:
        """Weights that make a sum over the draw an unbiased estimate of ``E_p`` (Horvitz and Thompson)."""
        return p[..., self.tokens] / self.inclusion[self.tokens]

    @property
    def spare(self) -> Float[Tensor, " drawn"]:
        """``1 - inclusion`` of the tokens drawn: the share of each one's square that is variance."""
        return 1 - self.inclusion[self.tokens]

    def largest_left_out(self, p: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch"]:
        """The largest weight, in size, of a token that may be left out."""
        return (p / self.inclusion).masked_fill(self.inclusion >= 1, 0).abs().amax(-1)


@dataclass(frozen=True)
class Anchor:
    """One distribution whose covariance is computed over the whole vocabulary, near those of the prompts.

    Attributes:
        p: [d_vocab]; mean: ``E[u]`` [d_model]; covariance: of ``u`` [d_model, d_model].
    """

    p: Float[Tensor, " d_vocab"]
    mean: Float[Tensor, " d_model"]
    covariance: Float[Tensor, "d_model d_model"]

    @classmethod
    def at(
        cls, p: Float[Tensor, " d_vocab"], unembedding: Float[Tensor, "d_vocab d_model"], block: int = 8192
    ) -> "Anchor":
        mean = p @ unembedding
        covariance = -torch.outer(mean, mean)
        for start in range(0, len(p), block):
            part = unembedding[start : start + block]
            covariance.addmm_((part * p[start : start + block, None]).T, part)
        return cls(p, mean, covariance)

    def second(self, tilts: Tilts) -> tuple[Float[Tensor, " d_mlp"], Float[Tensor, " d_mlp"]]:
        """``E[(a - centre)^2]`` under the anchor, exact: over all tokens, and over all but the far ones."""
        x = tilts.directions
        whole = ((x @ self.covariance) * x).sum(1) + (x @ self.mean - tilts.centre) ** 2
        far = (self.p[tilts.reach.far] * tilts.far_moves**2).sum(1)
        return whole, (whole - far).clamp_min(0)


def draw_tokens(p: Float[Tensor, "prompt d_vocab"], size: int, seed: int) -> Draw:
    """Draw about ``size`` tokens, inclusion proportional to each one's largest probability over the prompts.

    Systematic sampling in a random order (Madow 1949): inclusion probabilities are met exactly, and the draw's
    variance is about that of independent draws or less. The same seed draws the same tokens.
    """
    if size >= p.shape[1]:
        return Draw(torch.arange(p.shape[1], device=p.device), torch.ones_like(p[0]))
    size_of = p.amax(0).double().cpu().clamp_min(1e-300)
    largest = size_of.sort(descending=True).values
    # Tokens at or above the threshold are always in; the rest share the places left. Summed from the smallest up: next
    # to a sure token the others would be lost.
    rest = largest.flip(0).cumsum(0).flip(0)
    thresholds = rest / (size - torch.arange(len(largest))).clamp_min(1)
    threshold = thresholds[(largest <= thresholds).nonzero()[0, 0]]
    inclusion = (size_of / threshold).clamp(max=1)
    generator = torch.Generator().manual_seed(seed)
    order, start = (
        torch.randperm(len(largest), generator=generator),
        torch.rand(1, generator=generator).double(),
    )
    steps = torch.cat([start, start + inclusion[order].cumsum(0)]).floor()
    tokens = order[steps.diff() > 0]
    # A probability of 0 would be divided by; such a token has no weight anyway.
    return Draw(tokens.to(p.device), inclusion.clamp_min(1e-30).float().to(p.device))


def by_moments(
    tilts: Tilts, unembedding: Float[Tensor, "d_vocab d_model"], anchor: Anchor, draw: Draw
) -> tuple[Float[Tensor, "prompt d_mlp"], Float[Tensor, "prompt d_mlp"]]:
    """``log E_p[exp t]`` by its first four moments, with an error bound, for all prompts and neurons at once.

    ``E[t^2]`` is split into ``beta`` times the anchor's, which is exact, and the difference ``p - beta * anchor``,
    which is small where prompts are alike and so loses little by being drawn. Moments are over all but the far tokens.
    """
    A = tilts.moves(torch.arange(len(tilts.directions), device=tilts.p.device), unembedding, draw)
    W, W_anchor, spare = draw.weighted(tilts.p), draw.weighted(anchor.p), draw.spare
    beta, worst_rest, worst = _lean(tilts.p, anchor, draw)
    # Where the anchor's likely tokens are unlikely here and so seldom drawn, leaning on it makes that worse.
    beta, worst_rest = torch.where(worst_rest < worst, beta, 0.0), torch.minimum(worst_rest, worst)
    W_rest = W - beta[:, None] * W_anchor
    A2 = A * A
    A3, A4 = A2 * A, A2 * A2
    c, down_up = tilts.amounts, tilts.extremes()
    T, size = torch.maximum(*down_up), tilts.amounts.abs()
    anchored, anchored_rest = anchor.second(tilts)
    second = c**2 * (beta[:, None] * anchored_rest + W_rest @ A2.T)
    terms = (tilts.first(), second / 2, c**3 / 6 * (W @ A3.T), c**4 / 24 * (W @ A4.T), tilts.far)

    sd = size**2 / 2 * ((spare * W_rest**2) @ A4.T).sqrt()
    sd += size**3 / 6 * ((spare * W**2) @ (A3 * A3).T).sqrt()
    largest = worst_rest[:, None] * T**2 / 2 + worst[:, None] * T**3 / 6 * (1 + T / 4)
    beyond_fourth = second.abs() * T**3 / 120 * down_up[1].clamp(max=_SAFE_EXPONENT).exp()
    # What is left of the anchor's moment without the far tokens is as uncertain as the whole one's float32.
    rounding = _ROUNDING * c**2 / 2 * beta[:, None].abs() * anchored
    return _log_with_bound(terms, SIGMAS * sd + _LARGEST * largest + beyond_fourth + rounding, down_up[1])


def _lean(
    p: Float[Tensor, "prompt d_vocab"], anchor: Anchor, draw: Draw
) -> tuple[Float[Tensor, " prompt"], Float[Tensor, " prompt"], Float[Tensor, " prompt"]]:
    """How far each prompt leans on the anchor: ``beta`` with the least squares of what is left to be drawn.

    Also the largest weights left out of ``p - beta * anchor`` and of ``p``.
    """
    W, W_anchor, spare = draw.weighted(p), draw.weighted(anchor.p), draw.spare
    beta = (W * W_anchor * spare).sum(1) / (W_anchor.square() * spare).sum().clamp_min(1e-30)
    return beta, draw.largest_left_out(p - beta[:, None] * anchor.p), draw.largest_left_out(p)


def by_sample(
    tilts: Tilts,
    unembedding: Float[Tensor, "d_vocab d_model"],
    anchor: Anchor,
    draw: Draw,
    todo: Bool[Tensor, "prompt d_mlp"],
) -> tuple[Float[Tensor, "prompt d_mlp"], Float[Tensor, "prompt d_mlp"]]:
    """``log E_p[exp t]`` with the exponential itself on the drawn tokens; NaN and inf where not asked.

    The anchor's second moment, known exactly, serves as control variate: of ``E[g] = b E_anchor[t^2/2] + rest`` only
    the rest is drawn. Each score has its own ``b``, the one with least squares on the draw, from 0 to what its prompt
    as a whole would take; and none where the bound is lower without.
    """
    neurons = todo.any(0).nonzero()[:, 0]
    A = tilts.moves(neurons, unembedding, draw)
    W, W_anchor, spare = draw.weighted(tilts.p), draw.weighted(anchor.p), draw.spare
    squares = (A * A).mul_(W_anchor)
    drawn, cross = torch.full_like(tilts.amounts, torch.nan), torch.full_like(tilts.amounts, torch.nan)
    variance = torch.full_like(drawn, torch.inf)
    step = max(1, _CHUNK // len(draw.tokens))
    for row in range(len(W)):
        for asked in _some(todo[row, neurons], step):
            which = neurons[asked]
            t = A[asked] * tilts.amounts[row, which, None]
            curve = torch.expm1(t).sub_(t).mul_(W[row])
            drawn[row, which] = curve.sum(1)
            cross[row, which] = squares[asked].mul_(curve) @ spare
            variance[row, which] = curve.square_() @ spare
    half = tilts.amounts**2 / 2
    control, control_variance = torch.zeros_like(tilts.centre), torch.zeros_like(tilts.centre)
    control[neurons], control_variance[neurons] = squares.sum(1), squares.square_() @ spare
    beta, worst_rest, worst = (each[:, None] for each in _lean(tilts.p, anchor, draw))
    fit = cross / (half * control_variance).clamp_min(1e-30)
    b = torch.minimum(fit.clamp_min(0), beta)
    anchored, anchored_rest = anchor.second(tilts)
    plain, leaned = drawn, drawn + b * half * (anchored_rest - control)
    left = variance + b * half * (b * half * control_variance - 2 * cross)

    down, farthest = tilts.extremes()
    up = farthest.clamp(max=_SAFE_EXPONENT)
    T = torch.maximum(down, up)
    # The largest of |p - b anchor| is convex in b, so between 0 and beta it lies under the chord.
    worst_b = worst + b / beta.clamp_min(1e-30) * (worst_rest - worst)
    beyond_second = torch.maximum(_curve(up) - up**2 / 2, down**2 / 2 - _curve(-down))
    largest = worst * torch.maximum(_curve(up), _curve(-down))
    largest_leaned = worst_b * T**2 / 2 + worst * beyond_second
    error = SIGMAS * variance.sqrt() + _LARGEST * largest
    error_leaned = (
        SIGMAS * torch.maximum(left, _ROUNDING * variance).sqrt()
        + _LARGEST * largest_leaned
        + _ROUNDING * b * half * anchored
    )
    better = error_leaned < error
    terms = (tilts.first(), tilts.far, torch.where(better, leaned, plain))
    return _log_with_bound(terms, torch.where(better, error_leaned, error), farthest)


def by_sum(
    tilts: Tilts,
    unembedding: Float[Tensor, "d_vocab d_model"],
    todo: Bool[Tensor, "prompt d_mlp"],
    block: int,
    tick: Callable[[], None] = lambda: None,
) -> Float[Tensor, "prompt d_mlp"]:
    """``log E_p[exp t]`` over every token; NaN where not asked.

    Args:
        block: neurons held against the whole vocabulary at once.
        tick: called before each block; what it raises ends the work.
    """
    found = torch.full_like(tilts.amounts, torch.nan)
    up, first, centre = tilts.farthest_up(), tilts.first(), tilts.centre
    for neurons in todo.any(0).nonzero()[:, 0].split(block):
        tick()
        A = (tilts.directions[neurons] @ unembedding.T).sub_(centre[neurons, None])
        for row in range(len(todo)):
            for asked in _some(todo[row, neurons], max(1, 8 * _CHUNK // A.shape[1])):
                which = neurons[asked]
                t = A[asked].mul_(tilts.amounts[row, which, None])
                # E[exp t] is at least exp E[t]: by that the sum is neither too large nor too small for float32.
                if up[row, which].max() < _SAFE_EXPONENT and first[row, which].min() > _SMALLEST_EXPONENT:
                    found[row, which] = (t.exp_() @ tilts.p[row]).log()
                else:
                    found[row, which] = t.add_(tilts.log_p[row]).logsumexp(1)
    return found


def log_partition(
    tilts: Tilts,
    unembedding: Float[Tensor, "d_vocab d_model"],
    anchor: Anchor | None,
    tolerance: float,
    sizes: tuple[int, int],
    seed: int,
    block: int,
    tick: Callable[[], None] = lambda: None,
) -> tuple[Float[Tensor, "prompt d_mlp"], Float[Tensor, "prompt d_mlp"]]:
    """``log E_p[exp t]`` to within ``tolerance``, and the error bound of each value (0 where every token was summed).

    Args:
        anchor: None, or a tolerance of 0, sums over every token.
        sizes: tokens drawn for the moments and for the exponential.
        block, tick: see :func:`by_sum`.
    """
    value = torch.full_like(tilts.amounts, torch.nan)
    bound = torch.full_like(value, torch.inf)
    if anchor is not None and tolerance > 0:
        value, bound = by_moments(tilts, unembedding, anchor, draw_tokens(tilts.p, sizes[0], seed))
        todo = bound > tolerance
        if todo.any():
            again = by_sample(tilts, unembedding, anchor, draw_tokens(tilts.p, sizes[1], seed), todo)
            value, bound = torch.where(todo, again[0], value), torch.where(todo, again[1], bound)
    todo = bound > tolerance if tolerance > 0 else torch.ones_like(bound, dtype=torch.bool)
    if todo.any():
        value = torch.where(todo, by_sum(tilts, unembedding, todo, block, tick), value)
        bound = bound.masked_fill(todo, 0)
    return value, bound


def _some(chosen: Bool[Tensor, " neuron"], at_once: int) -> Iterator[Int[Tensor, " some"]]:
    """The places chosen, so many at once; nothing where none is."""
    places = chosen.nonzero()[:, 0]
    return (places[start : start + at_once] for start in range(0, len(places), at_once))


def _curve(t: Tensor) -> Tensor:
    """``exp t - 1 - t``, never negative and rising away from 0."""
    return torch.expm1(t) - t


def _log_with_bound(terms: tuple[Tensor, ...], error: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm of 1 and the terms, and how far off it is when they are off by up to ``error`` and rounding.

    Nothing is known where a token may be moved ``up`` so far that it counts at a probability float32 has as 0.
    """
    stacked = torch.stack(terms)
    total = 1 + stacked.sum(0)
    error = error + _ROUNDING_OF_TERMS * (1 + stacked.abs().sum(0))
    value = total.clamp_min(1e-30).log()
    bound = -torch.log1p(-(error / total))
    known = (error < total) & total.isfinite() & bound.isfinite() & (up < _SAFE_EXPONENT)
    return value, torch.where(known, bound, torch.inf)
