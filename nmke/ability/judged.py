"""A model in memory as lm-evaluation-harness wants one, computing with whatever weights are in force.

Answers are scored by a subclass of the harness's Hugging Face model class. Log-probabilities are those of its own loop
in float32 (a test holds the two against each other on the real model), but the unembedding is computed at the answers'
positions only. Prompts are plain text: no chat template, as in the harness by default.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from nmke.ability.harness import Harness
from nmke.model import EditableModel
from nmke.past import attention_inputs
from nmke.tokens import Batch, pad, pad_id


class _Network:
    """The model in memory as the harness's model class wants one; every use asks for what is in force at that moment.

    It is no torch module on purpose: of those the harness ties the weights anew.
    """

    def __init__(self, model: EditableModel, tick: Callable[[], None]) -> None:
        self._model, self._tick = model, tick
        self.config = model.bridge.original_model.config
        self.device = torch.device(model.device)
        self.name_or_path = model.name

    @property
    def _network(self) -> Any:
        """Without hook points where that computes the same, which is faster."""
        unhooked = self._model.unhooked
        return self._model.bridge.original_model if unhooked is None else unhooked.network

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor | None = None) -> Any:
        """Logits at some positions, or at all."""
        kept = {} if positions is None else {"logits_to_keep": positions}
        with self._model.lock:
            if self._model.fronts is None:
                return self._network(ids, use_cache=False, **kept)
            batch, past = self._model.fronts.before(Batch(ids, torch.ones_like(ids)))
            with self._model.without_fronts():
                return self._network(batch.ids, **attention_inputs(batch.to(ids.device), past), **kept)

    def generate(self, stopping_criteria: Any, **options: Any) -> torch.Tensor:
        def cancelled(*_: Any, **__: Any) -> bool:
            self._tick()
            return False

        stopping_criteria.append(cancelled)
        with self._model.lock:
            if self._model.fronts is None:
                return self._generate(stopping_criteria, options)
            asked: torch.Tensor = options["input_ids"]
            batch = Batch(asked, options.get("attention_mask", torch.ones_like(asked)))
            fill = pad_id(self._model.tokenizer)
            joined = self._model.fronts.joined(batch).left_padded(fill).to(asked.device)
            more = joined.ids.shape[1] - asked.shape[1]
            options |= {"input_ids": joined.ids, "attention_mask": joined.mask}
            if options.get("max_length") is not None:
                options["max_length"] += more
            # What stands in front is no part of what the harness looks at.
            behind = [_behind(more, criterion) for criterion in stopping_criteria]
            with self._model.without_fronts():
                written = self._generate(type(stopping_criteria)(behind), options)
            return torch.cat([asked, written[:, joined.ids.shape[1] :]], dim=1)

    def _generate(self, stopping_criteria: Any, options: Mapping[str, Any]) -> torch.Tensor:
        written: torch.Tensor = self._network.generate(
            stopping_criteria=stopping_criteria,
            generation_config=self._model.bridge.original_model.generation_config,
            **options,
        )
        return written


def _behind(more: int, criterion: Callable[..., Any]) -> Callable[..., Any]:
    def stop(ids: torch.Tensor, scores: Any, **options: Any) -> Any:
        return criterion(ids[:, more:], scores, **options)

    return stop


def make_judged(
    harness: Harness, model: EditableModel, batch_size: int, advance: Callable[[int], None]
) -> Any:
    """The harness's model object for a model in memory.

    Args:
        advance: told how many questions were answered since; raises to cancel. Called per batch, and with 0 for each
            token that is written.
    """
    judged = _judged_class(harness)(
        pretrained=_Network(model, lambda: advance(0)),
        backend="causal",
        # A copy: the harness may give it a padding token.
        tokenizer=copy.deepcopy(model.tokenizer),
        batch_size=batch_size,
    )
    judged.advance = advance
    return judged


@cache
def _judged_class(harness: Harness) -> Any:
    plain: Any = harness.HFLM

    class Judged(plain):
        """The harness's Hugging Face model class around a model in memory."""

        advance: Callable[[int], None]
        truncated = 0  # questions that were too long and lost their beginning

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            return super().loglikelihood(requests, disable_tqdm=True)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
            return super().generate_until(requests, disable_tqdm=True)

        def tok_batch_encode(
            self, strings: list[str], left_truncate_len: int | None = None, **options: Any
        ) -> Any:
            ids, mask = super().tok_batch_encode(strings, **options)
            if left_truncate_len:
                self.truncated += int((mask.sum(1) > left_truncate_len).sum())
                ids, mask = ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]
            return ids, mask

        def _model_generate(self, context: torch.Tensor, **options: Any) -> torch.Tensor:
            written: torch.Tensor = super()._model_generate(context, **options)
            self.advance(len(context))
            return written

        @torch.no_grad()
        def _loglikelihood_tokens(
            self, requests: list[Any], disable_tqdm: bool = True, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            rows: dict[tuple[int, ...], list[int]] = {}
            for index, (_, context, continuation) in enumerate(requests):
                whole = (context + continuation)[-(self.max_length + 1) :]
                rows.setdefault(tuple(whole[:-1]), []).append(index)
            self.truncated += sum(
                len(requests[indices[0]][1]) + len(requests[indices[0]][2]) > self.max_length + 1
                for indices in rows.values()
            )
            answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
            order = sorted(rows, key=lambda row: (-len(row), row))
            for start in range(0, len(order), self.batch_size):
                chunk = order[start : start + self.batch_size]
                self.advance(0)
                for row, found in zip(chunk, self._log_probabilities(chunk, rows, requests), strict=True):
                    for index, answer in zip(rows[row], found, strict=True):
                        answers[index] = answer
                self.advance(len(chunk))
            return answers

        def _log_probabilities(
            self, chunk: list[tuple[int, ...]], rows: Mapping[tuple[int, ...], list[int]], requests: list[Any]
        ) -> Iterator[list[tuple[float, bool]]]:
            """Per row its requests' answers: log-probability of the continuation, and whether it is the likeliest."""
            spans = [max(len(requests[index][2]) for index in rows[row]) for row in chunk]
            wanted = sorted(
                {p for row, span in zip(chunk, spans, strict=True) for p in range(len(row) - span, len(row))}
            )
            place = {position: kept for kept, position in enumerate(wanted)}
            # Padding on the right needs no mask: no token sees what comes after it.
            ids = pad(chunk, self.tokenizer.pad_token_id or 0).ids.to(self.device)
            logits = self.model(ids, torch.tensor(wanted, device=self.device)).logits
            for number, row in enumerate(chunk):
                found = []
                for index in rows[row]:
                    targets = torch.tensor(requests[index][2], device=logits.device)
                    at = [place[p] for p in range(len(row) - len(targets), len(row))]
                    scores = logits[number, at].float().log_softmax(-1)
                    likeliest = bool((scores.argmax(-1) == targets).all())
                    found.append((float(scores.gather(1, targets[:, None]).sum()), likeliest))
                yield found

    return Judged


@contextmanager
def without_bars() -> Iterator[None]:
    """Transformers' remarks about lengths and generation are kept off the terminal while the block runs."""
    from transformers.utils import logging as told

    before = told.get_verbosity()
    told.set_verbosity_error()
    try:
        yield
    finally:
        told.set_verbosity(before)
