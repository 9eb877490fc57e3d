"""Prompts read once, and what follows them: the log-probability of continuations, and greedy text.

A prompt's keys and values are kept, so that its options and its written answer go on from there instead of reading it
again. Everything runs through the model as it stands, with whatever weights, modules and ablation are active.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nmke.answers.early import EarlyLayers, key_of_rows
from nmke.model import EditableModel
from nmke.past import Past
from nmke.tokens import Batch, pad, pad_id

#: A common beginning of fewer tokens is not worth a run of its own.
_WORTH_SHARING = 8
#: Positions that go through the unembedding in one product.
_ROWS = 512
#: Called between pieces of work; raises Cancelled when the user asked to stop.
Tick = Callable[[], None]


@dataclass(frozen=True)
class Reading:
    """Prompts that the model has read.

    Attributes:
        final: the final norm's output at each position read; prompts are padded on the left, so the last is real.
        next: the model's own logits at the last position.
        past: keys and values, for what follows.
    """

    final: Float[Tensor, "prompt position d_model"]
    next: Float[Tensor, "prompt d_vocab"]
    past: Past


def group_by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in groups of similar length, each of at most ``budget`` tokens after padding, or a single row."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if groups and lengths[index] * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


@torch.no_grad()
def read_prompts(
    model: EditableModel,
    rows: Sequence[Sequence[int]],
    whole: bool = False,
    early: EarlyLayers | None = None,
) -> Reading:
    """Read prompts and keep their keys and values.

    What all of them begin with is read once, and ``final`` has the positions after that; with ``whole`` it has all.
    A prompt patch in force stands in front of each, and ``final`` has the positions of the prompts themselves.
    """
    fill = pad_id(model.tokenizer)
    with model.lock:
        if model.fronts is not None:
            batch, past = model.fronts.before(pad(rows, fill).left_padded(fill))
            with model.without_fronts():
                return _read(model, batch, past, early)
    common = min(shared_length(rows[0], row) for row in rows)
    common = min(common, min(map(len, rows)) - 1)  # each keeps a token of its own
    if whole or len(rows) == 1 or common < _WORTH_SHARING:
        return _read(model, pad(rows, fill).left_padded(fill), None, early)
    beginning = _read(model, pad([rows[0][:common]], fill), None, early)
    past = choose(beginning.past, [0] * len(rows))
    return _read(model, pad([row[common:] for row in rows], fill).left_padded(fill), past, early)


@torch.no_grad()
def read_on(
    model: EditableModel, rows: Sequence[Sequence[int]], past: Past, early: EarlyLayers | None = None
) -> Reading:
    """Read what follows a past, padded on the right; the past itself stays as it is."""
    return _read(model, pad(rows, pad_id(model.tokenizer)), past.copy(), early)


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _read(model: EditableModel, batch: Batch, past: Past | None, early: EarlyLayers | None = None) -> Reading:
    """Read a batch; the past, where there is one, is extended in place."""
    kept: list[Tensor] = []

    def keep(value: Tensor, hook: Any) -> None:
        kept.append(value)

    mask = batch.mask if past is None else torch.cat([past.mask.to(batch.mask.device), batch.mask], dim=1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -batch.ids.shape[1] :]
    device = model.bridge.cfg.device
    with (
        model.lock,
        model.bridge.hooks(fwd_hooks=[("ln_final.hook_out", keep)]),
        nullcontext() if early is None else early.around(batch, past) as one,
    ):
        out = model.bridge.original_model(
            batch.ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=None if past is None else past.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if one is not None:
            one.done(out.past_key_values)
    key = "" if one is None else one.key
    return Reading(kept[0], out.logits[:, -1].float(), Past(out.past_key_values, mask, key))


def choose(past: Past, rows: Sequence[int]) -> Past:
    """The past of some rows, in this order; a row may be chosen several times."""
    index = torch.tensor(list(rows), dtype=torch.long)
    chosen = past.copy()
    chosen.cache.batch_select_indices(index.to(chosen.cache.layers[0].keys.device))
    return Past(chosen.cache, past.mask[index], key_of_rows([past], rows))


def join(pasts: Sequence[Past]) -> Past | None:
    """The rows of several pasts as one, padded on the left; None where a layer keeps something else than all keys."""
    plain = all(
        type(layer).__name__ == "DynamicLayer" and layer.keys.shape[-2] == past.mask.shape[1]
        for past in pasts
        for layer in past.cache.layers
    )
    if not plain:
        return None
    if len(pasts) == 1:
        return pasts[0].copy()
    width = max(past.mask.shape[1] for past in pasts)
    joined = pasts[0].copy()
    for number, layer in enumerate(joined.cache.layers):
        for name in ("keys", "values"):
            parts = [getattr(past.cache.layers[number], name) for past in pasts]
            padded = [torch.nn.functional.pad(one, (0, 0, width - one.shape[-2], 0)) for one in parts]
            setattr(layer, name, torch.cat(padded))
    masks = [torch.nn.functional.pad(past.mask, (width - past.mask.shape[1], 0)) for past in pasts]
    return Past(joined.cache, torch.cat(masks), key_of_rows(pasts))


@torch.no_grad()
def log_probabilities(
    model: EditableModel,
    reading: Reading,
    options: Sequence[Sequence[Sequence[int]]],
    budget: int,
    tick: Tick,
    early: EarlyLayers | None = None,
) -> list[list[float]]:
    """log P of each of a prompt's options as its continuation, in nats: the sum over the option's tokens.

    Args:
        options: for each prompt the token ids of its options.
        budget: tokens read at once.
    """
    first = model.logits(reading.final[:, -1]).log_softmax(-1).cpu()
    found = [[float(first[row, ids[0]]) for ids in its_options] for row, its_options in enumerate(options)]
    longer = [
        (row, number)
        for row, its_options in enumerate(options)
        for number, ids in enumerate(its_options)
        if len(ids) > 1
    ]
    for group in group_by_length([len(options[row][number]) - 1 for row, number in longer], budget):
        tick()
        picked = [longer[index] for index in group]
        past = choose(reading.past, [row for row, _ in picked])
        after = read_on(model, [options[row][number][:-1] for row, number in picked], past, early)
        forced = [options[row][number][1:] for row, number in picked]
        finals = [after.final[place, : len(ids)] for place, ids in enumerate(forced)]
        for (row, number), nats in zip(picked, nats_of_all(model, finals, forced), strict=True):
            found[row][number] += -sum(nats)
    return found


@torch.no_grad()
def nats_of(
    model: EditableModel, final: Float[Tensor, "position d_model"], forced: Sequence[int]
) -> list[float]:
    """-log P of each forced token, in nats, from the final norm's output one position before it."""
    log_p = model.logits(final).log_softmax(-1)
    ids = torch.tensor(list(forced), device=log_p.device)
    taken: list[float] = (-log_p.gather(1, ids[:, None])[:, 0]).cpu().double().tolist()
    return taken


@torch.no_grad()
def nats_of_all(
    model: EditableModel, finals: Sequence[Float[Tensor, "_ d_model"]], forced: Sequence[Sequence[int]]
) -> list[list[float]]:
    """:func:`nats_of` of several texts, whose positions go through the unembedding together.

    Args:
        finals: of each text the final norm's output one position before each of its tokens.
        forced: of each text its tokens; a text of none gets an empty list.
    """
    if not any(map(len, forced)):
        return [[] for _ in forced]
    final, ids = torch.cat(list(finals)), list(chain.from_iterable(forced))
    nats: list[float] = []
    for start in range(0, len(ids), _ROWS):
        nats += nats_of(model, final[start : start + _ROWS], ids[start : start + _ROWS])
    each = iter(nats)
    return [list(islice(each, len(one))) for one in forced]


@torch.no_grad()
def write_greedily(
    model: EditableModel,
    following: Float[Tensor, "prompt d_vocab"],
    past: Past,
    max_new: int,
    tick: Tick,
    early: EarlyLayers | None = None,
) -> list[list[int]]:
    """Token ids that the model goes on with, always the likeliest; a row ends before its end-of-text token.

    It also ends where the model's context does. The same text as :meth:`~nmke.model.EditableModel.generate`'s,
    without reading the prompts again.

    Args:
        following: the logits at each prompt's last token.
        past: the prompts' keys and values; extended in place.
    """
    ends = _ends_of(model)
    lengths = past.mask.sum(1).tolist()
    limits = [min(max_new, model.context_length - length) for length in lengths]
    written: list[list[int]] = [[] for _ in lengths]
    going = [limit > 0 for limit in limits]
    while any(going):
        tick()
        chosen = following.argmax(-1).cpu().tolist()
        for row, token in enumerate(chosen):
            if not going[row]:
                continue
            if token in ends:
                going[row] = False
            else:
                written[row].append(token)
                going[row] = len(written[row]) < limits[row]
        if any(going):
            ones = torch.ones((len(chosen), 1), dtype=torch.long)
            after = _read(model, Batch(torch.tensor(chosen, dtype=torch.long)[:, None], ones), past, early)
            following, past = after.next, after.past
    return written


def _ends_of(model: EditableModel) -> set[int]:
    config = getattr(model.bridge.original_model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    if ends is None:
        ends = model.tokenizer.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
