"""A prompt patch in force: its text as tokens, read once, in front of whatever the model reads.

Keys and values of a front are computed once and kept while the patch is in force, and each text is read behind them, so
readers' positions stay those of their own tokens. A text's own start token, where the tokenizer adds one, counts as
absent behind a front, which begins with it already. Texts that get the same front are read together, and texts without
one are read as if no patch were there, to the bit.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nmke.answers.reading import choose, join, read_on, write_greedily
from nmke.errors import ModelError
from nmke.prompting import PromptPatch
from nmke.tokens import Batch, encode, pad, pad_id

if TYPE_CHECKING:
    from nmke.model import EditableModel
    from nmke.past import Past

#: Tokens of fronts that are kept, and tokens (fronts included) that are read at once.
KEPT_TOKENS, READ_TOKENS = 8192, 8192

#: The tokens of a front; none where nothing stands in front.
Front = tuple[int, ...]


class Fronts:
    """What a prompt patch puts in front of texts, for one model.

    Whoever uses it holds the model's lock, and no other weights come into force meanwhile.
    """

    def __init__(self, model: "EditableModel", patch: PromptPatch) -> None:
        self._model, self.patch = model, patch
        self._ids: dict[str, Front] = {}
        self._pasts: dict[Front, Past] = {}

    def ids_of(self, text: str) -> Front:
        """The tokens in front of a text."""
        front = self.patch.front(text)
        if front not in self._ids:
            if len(self._ids) >= 64:
                self._ids.clear()
            self._ids[front] = tuple(encode(self._model.tokenizer, front)) if front else ()
        return self._ids[front]

    def own(self, ids: Sequence[int], front: Front) -> list[int]:
        """A text's tokens as they stand behind a front: without a start token of their own.

        Raises:
            ModelError: front and text do not fit the model's context.
        """
        start = 1 if front and len(ids) > 1 and ids[0] == self._model.tokenizer.bos_token_id else 0
        self.require_fits(front, len(ids) - start)
        return list(ids[start:])

    def groups(self, texts: Sequence[str]) -> list[tuple[list[int], Front]]:
        """Indices of texts that can be read together behind one front."""
        found: dict[Front, list[list[int]]] = {}
        for index, text in enumerate(texts):
            front = self.ids_of(text)
            parts = found.setdefault(front, [[]])
            width = len(front) + len(encode(self._model.tokenizer, text))
            if front and parts[-1] and (len(parts[-1]) + 1) * width > READ_TOKENS:
                parts.append([])
            parts[-1].append(index)
        return [(part, front) for front, parts in found.items() for part in parts]

    def past_of(self, front: Front, rows: int) -> "Past | None":
        """Keys and values of a front, for some rows; None for an empty one, behind which a text is read as it is."""
        return choose(self._remembered(front), [0] * rows) if front else None

    def before(self, batch: Batch) -> "tuple[Batch, Past | None]":
        """The batch as it is to be read, and what it is read behind; each row's own text decides.

        Raises:
            ModelError: a front and its text do not fit the model's context, or fronts differ in one batch and the
                model's attention keeps a window only.
        """
        fronts = self._fronts_of(batch)
        if not any(fronts):
            return batch, None
        mask = batch.mask.clone()
        for row, front in enumerate(fronts):
            ids = batch.ids[row][batch.mask[row].bool()].tolist()
            if len(self.own(ids, front)) < len(ids):
                mask[row, int(batch.mask[row].argmax())] = 0
        if len(set(fronts)) == 1:
            return Batch(batch.ids, mask), self.past_of(fronts[0], len(fronts))
        filled = self._remembered(next(front for front in fronts if front))
        past = join([self._remembered(front) if front else _emptied(filled) for front in fronts])
        if past is None:
            raise ModelError(
                f"{self._model.name} keeps a window of what it reads, so texts with different fronts cannot be read "
                "together.",
                "Read them one by one, or choose a method that changes weights.",
            )
        return Batch(batch.ids, mask), past

    def joined(self, batch: Batch) -> Batch:
        """Each row with its front as one row of tokens, padded on the right.

        Raises:
            ModelError: they do not fit the model's context.
        """
        fronts = self._fronts_of(batch)
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch.ids, batch.mask, strict=True)]
        joined = [[*front, *self.own(row, front)] for front, row in zip(fronts, rows, strict=True)]
        return pad(joined, pad_id(self._model.tokenizer))

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """Greedy continuations of prompts behind their fronts; see :meth:`EditableModel.generate`.

        Raises:
            ModelError: a front and its prompt do not fit the model's context.
        """
        model, written = self._model, [""] * len(prompts)
        for indices, front in self.groups(prompts):
            asked = [prompts[index] for index in indices]
            past = self.past_of(front, len(asked))
            with model.without_fronts():
                if past is None:
                    found = model.generate(asked, max_new_tokens)
                else:
                    rows = [self.own(encode(model.tokenizer, prompt), front) for prompt in asked]
                    reading = read_on(model, rows, past)
                    last = torch.tensor([len(row) - 1 for row in rows], device=reading.final.device)
                    following = model.logits(reading.final[torch.arange(len(rows), device=last.device), last])
                    ids = write_greedily(model, following, reading.past, max_new_tokens, lambda: None)
                    found = model.tokenizer.batch_decode(ids, skip_special_tokens=True)
            for index, text in zip(indices, found, strict=True):
                written[index] = text
        return written

    def guard(self) -> Any:
        """Refuse readers that begin a text and know nothing of fronts, instead of answering without the edit."""

        def refuse(module: Any, inputs: Any, named: dict[str, Any]) -> None:
            past = named.get("past_key_values")
            if self._model.fronts is not None and (past is None or not past.get_seq_length()):
                raise ModelError(
                    f"A {self.patch.kind} stands in front of everything this edited model reads, which this work "
                    "cannot take into account.",
                    "Undo that edit, or compare on the Edit page, where it counts.",
                )

        return self._model.bridge.original_model.register_forward_pre_hook(refuse, with_kwargs=True)

    def forget(self) -> None:
        """Drop what was computed: the model now computes otherwise."""
        self._pasts.clear()

    def _fronts_of(self, batch: Batch) -> list[Front]:
        decode = self._model.tokenizer.decode
        rows = zip(batch.ids, batch.mask, strict=True)
        return [
            self.ids_of(decode(ids[mask.bool()].tolist(), skip_special_tokens=True)) for ids, mask in rows
        ]

    def _remembered(self, front: Front) -> "Past":
        if front not in self._pasts:
            while self._pasts and sum(map(len, self._pasts)) + len(front) > KEPT_TOKENS:
                self._pasts.pop(next(iter(self._pasts)))
            with self._model.without_fronts():
                self._pasts[front] = self._model.remember(pad([front], pad_id(self._model.tokenizer)))
        return self._pasts[front]

    def require_fits(self, front: Front, own: int) -> None:
        """Refuse what the model cannot read at once.

        Args:
            own: how many tokens the text itself has.

        Raises:
            ModelError: naming both lengths.
        """
        if front and len(front) + own > self._model.context_length:
            raise ModelError(
                f"What stands in front has {len(front)} tokens and the text {own}; {self._model.name} reads at most "
                f"{self._model.context_length}.",
                "Ask for fewer demonstrations, or read shorter texts.",
            )


def _emptied(past: "Past") -> "Past":
    """A past of no tokens, in the shape of another."""
    empty = past.copy()
    for layer in empty.cache.layers:
        layer.keys, layer.values = layer.keys[..., :0, :], layer.values[..., :0, :]
    mask: Tensor = past.mask[:, :0]
    return type(past)(empty.cache, mask)
