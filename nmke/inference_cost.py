"""What a session's edits cost whenever the model is used: extra parameters, extra time a token, growth with the edits.

Three kinds of edits differ here. A change of weights costs nothing: other numbers in the same products. A module
beside a layer carries parameters of its own and asks at every token whether it shall answer. Text in front is chosen,
maybe with the help of another model, and read once for all texts that are read together, here anew in every pass. What
grows with the number of edits is told from the edits themselves; time is measured, on prompts of the edited facts,
where modules and text in front have most to do.
"""

import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from typing import Any

import torch

from nmke.errors import EditError
from nmke.intervals import Interval, bootstrap_mean
from nmke.modules import ModulePatch
from nmke.progress import Progress, Silent
from nmke.prompting import PromptPatch
from nmke.session import EditSession
from nmke.sites import FINAL
from nmke.tokens import encode_batch

#: Measured pairs of passes, with and without the edits, and prompts in a pass.
PAIRS, PROMPTS = 12, 8


@dataclass(frozen=True)
class PromptCost:
    """What stands in front of texts.

    Attributes:
        numbers: what is kept to choose it.
        helper: parameters of the model that is asked for every text.
        tokens: how many stand in front of a prompt, mean over those that were read.
    """

    kind: str
    numbers: int
    helper: int
    tokens: float


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
        prompt: what stands in front of texts, if anything does.
    """

    edits: int
    weight_layers: tuple[int, ...]
    modules: dict[int, tuple[str, int]]
    growth: tuple[int, ...]
    tokens: int
    plain_ms: float
    edited_ms: float
    ratio: Interval
    prompt: PromptCost | None = None

    @property
    def extra_parameters(self) -> int:
        prompt = self.prompt.numbers + self.prompt.helper if self.prompt else 0
        return sum(count for _, count in self.modules.values()) + prompt

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
    prompt: PromptPatch | None = None
    counts = []
    for edit in session.edits:
        beside |= {module.layer: module for module in edit.modules}
        prompt = edit.prompt or prompt
        counts.append(_count(beside.values(), prompt))
    return tuple(counts) if counts and counts[-1] == _count(session.modules.values(), session.prompt) else ()


def _count(modules: Iterable[ModulePatch], prompt: PromptPatch | None) -> int:
    in_front = prompt.n_parameters + prompt.helper_parameters() if prompt is not None else 0
    return sum(module.n_parameters for module in modules) + in_front


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
        ResourceError: a model that chooses what stands in front cannot be had.
        Cancelled: from ``progress``.
    """
    if session.version == 0:
        raise EditError("There is no edit whose cost could be measured.", "Apply one first.")
    progress, model = progress or Silent(), session.model
    found = list(prompts) or [fact.prompt for edit in reversed(session.edits) for fact in edit.facts]
    # One short prompt alone would time little but overhead.
    texts = list(islice(cycle(dict.fromkeys(found)), PROMPTS))
    batch = encode_batch(model.tokenizer, texts)

    def seconds(weights: AbstractContextManager[None]) -> float:
        with weights:
            started = time.perf_counter()
            kept = model.run(batch, [FINAL])
            kept[FINAL][0, -1, 0].item()  # waits for a device that works on its own
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
        prompt=_prompt_cost(session, texts),
    )


def _prompt_cost(session: EditSession, texts: Sequence[str]) -> PromptCost | None:
    prompt = session.prompt
    if prompt is None:
        return None
    with session.active():
        fronts = session.model.fronts
        tokens = [len(fronts.ids_of(text)) for text in texts] if fronts is not None else [0]
    return PromptCost(prompt.kind, prompt.n_parameters, prompt.helper_parameters(), statistics.mean(tokens))
