"""What a session's edits cost whenever the model is used: extra parameters, extra time a token, growth with the edits.

Three kinds of edits differ here. A change of weights costs nothing: other numbers in the same products. A module
beside a layer carries parameters of its own and asks at every token whether it shall answer. What grows with the
number of edits is told from the edits themselves; time is measured, on prompts of the edited facts, where modules
have most to do.
"""

import statistics
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from typing import Any

import torch

from nmke.errors import EditError
from nmke.intervals import Interval, bootstrap_mean
from nmke.modules import ModulePatch
from nmke.progress import Progress, Silent
from nmke.session import EditSession
from nmke.tokens import encode_batch

#: Measured pairs of passes, with and without the edits, and prompts in a pass.
PAIRS, PROMPTS = 12, 8


@dataclass(frozen=True)
class InferenceCost:
    """What a session's edits cost at inference.

    Attributes:
        edits: how many are in force.
        weight_layers: layers whose weights are others; no cost.
        modules: per layer what stands beside it, and its parameters.
        growth: extra parameters after each edit, the first one first; empty where edits were settled.
        tokens: tokens that went through the model in each timed pass.
        plain_ms, edited_ms: milliseconds a token, medians over the passes.
        ratio: edited by plain, mean over pairs of passes with its bootstrap interval.
    """

    edits: int
    weight_layers: tuple[int, ...]
    modules: dict[int, tuple[str, int]]
    growth: tuple[int, ...]
    tokens: int
    plain_ms: float
    edited_ms: float
    ratio: Interval

    @property
    def extra_parameters(self) -> int:
        return sum(count for _, count in self.modules.values())

    @property
    def measurable(self) -> bool:
        """Whether the edited model's time differs from the plain one's beyond the noise of these passes."""
        return not self.ratio.low <= 1 <= self.ratio.high

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {**asdict(self), "extra_parameters": self.extra_parameters, "ratio": self.ratio.to_dict()}


def parameter_growth(session: EditSession) -> tuple[int, ...]:
    """Parameters beside the model after each edit in force; empty where earlier edits are settled, which forget it."""
    beside: dict[int, ModulePatch] = {}
    counts = []
    for edit in session.edits:
        beside |= {module.layer: module for module in edit.modules}
        counts.append(sum(module.n_parameters for module in beside.values()))
    now = sum(module.n_parameters for module in session.modules.values())
    return tuple(counts) if counts and counts[-1] == now else ()


@torch.no_grad()
def measure_cost(
    session: EditSession,
    prompts: Sequence[str] = (),
    pairs: int = PAIRS,
    progress: Progress | None = None,
) -> InferenceCost:
    """Time whole passes with the session's edits and without, by turns, so that a busy machine slows both alike.

    Args:
        prompts: what is read; by default those of the edited facts.

    Raises:
        EditError: no edit is in force.
        Cancelled: from ``progress``.
    """
    if session.version == 0:
        raise EditError("There is no edit whose cost could be measured.", "Apply one first.")
    progress, model = progress or Silent(), session.model
    found = list(prompts) or [fact.prompt for edit in reversed(session.edits) for fact in edit.facts]
    # One short prompt alone would time little but overhead.
    batch = encode_batch(model.tokenizer, list(islice(cycle(dict.fromkeys(found)), PROMPTS)))

    def seconds(weights: AbstractContextManager[None]) -> float:
        with weights:
            started = time.perf_counter()
            kept = model.run(batch, [("final", -1)])
            kept[("final", -1)][0, -1, 0].item()  # waits for a device that works on its own
            return time.perf_counter() - started

    for weights in (session.original, session.active):
        seconds(weights())  # the first pass of a state also prepares it
    plain: list[float] = []
    edited: list[float] = []
    for pair in range(pairs):
        progress.update("measuring the cost", pair, pairs)
        turns = [(plain, session.original), (edited, session.active)]
        for times, weights in turns if pair % 2 else reversed(turns):
            times.append(seconds(weights()))
    tokens = int(batch.mask.sum())
    return InferenceCost(
        edits=session.version,
        weight_layers=session.changed_layers,
        modules={layer: (each.kind, each.n_parameters) for layer, each in sorted(session.modules.items())},
        growth=parameter_growth(session),
        tokens=tokens,
        plain_ms=1000 * statistics.median(plain) / tokens,
        edited_ms=1000 * statistics.median(edited) / tokens,
        ratio=bootstrap_mean([after / before for before, after in zip(plain, edited, strict=True)]),
    )
