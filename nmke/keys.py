"""What facts put into the edited layers: keys ``K`` and the present output of the last one, for the layer loop.

:class:`PlainKeys` is the published procedure: for each layer, whole prompts through the whole model, with the layers
written so far. :class:`KeyWalk` gives the same from one pass, by three observations:

- Nothing is read after the subject's last token, so nothing after it is run.
- A layer's update changes only what follows it, so the walk keeps the residual that enters the layer being written and
  runs on from there (:mod:`nmke.replay`).
- A layer's keys depend on the layers before it alone, so those found in the loop, where the earlier layers are already
  written, are the very keys that joining the history asks for; they are not collected anew.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nmke.facts import Fact
from nmke.model import EditableModel
from nmke.replay import Replay
from nmke.session import EditSession
from nmke.sites import POST, RESID_POST
from nmke.tokens import Batch, encode, fill_template, find_subject_last, pad, pad_id


@dataclass(frozen=True)
class Keys:
    """What the facts put into one layer.

    Attributes:
        K: down-projection inputs at the subject's last token, averaged over contexts [d_mlp, fact].
        output: output of the last edited layer there, of the bare prompts [d_model, fact].
    """

    K: Float[Tensor, "d_mlp fact"]
    output: Float[Tensor, "d_model fact"]


class KeySource(ABC):
    """Gives a layer's keys; layers are asked for in rising order.

    Attributes:
        ran: what is run for it, in words.
    """

    ran: str

    @abstractmethod
    def at(self, layer: int, scratch: Mapping[int, Tensor]) -> Keys:
        """Keys of ``layer`` with the matrices of ``scratch`` in the place of the session's."""


def key_source(
    session: EditSession, facts: Sequence[Fact], layers: Sequence[int], templates: Sequence[str]
) -> KeySource:
    """The walk where this model's layers can be replayed, or else whole prompts."""
    return KeyWalk.begin(session, facts, layers, templates) or PlainKeys(session, facts, layers, templates)


class PlainKeys(KeySource):
    """Whole prompts through the whole model for every layer: the plain twin of :class:`KeyWalk`."""

    ran = "whole prompts"

    def __init__(
        self, session: EditSession, facts: Sequence[Fact], layers: Sequence[int], templates: Sequence[str]
    ) -> None:
        self._session, self._last, self._n = session, layers[-1], len(templates)
        rows, self._subject = _rows(session.model, facts, templates)
        self._batch = pad(rows, pad_id(session.model.tokenizer))

    @torch.no_grad()
    def at(self, layer: int, scratch: Mapping[int, Tensor]) -> Keys:
        model = self._session.model
        sites = [(POST, layer), (RESID_POST, self._last)]
        with self._session.active(scratch):
            kept = model.run(self._batch, sites)
        rows = torch.arange(len(self._subject))
        keys, output = (kept[site][rows, self._subject].float().to(model.device) for site in sites)
        return Keys(average_contexts(keys.view(-1, self._n, model.d_mlp)).T, output[:: self._n].T)


class KeyWalk(KeySource):
    """One pass over the edited layers, in step with the layer loop.

    Example:
        >>> walk = KeyWalk.begin(session, facts, layers=[4, 5], templates=templates)
        >>> keys = walk.at(4, {})
        >>> keys = walk.at(5, {4: written})
    """

    ran = "the edited layers, up to the subject"

    def __init__(self, session: EditSession, contexts: Replay, bare: Replay, last: Tensor, n: int) -> None:
        self._session, self._contexts, self._bare = session, contexts, bare
        self._last, self._n, self._at = last, n, contexts.first
        self._entering, self._bare_entering = contexts.entry, bare.entry

    @classmethod
    @torch.no_grad()
    def begin(
        cls, session: EditSession, facts: Sequence[Fact], layers: Sequence[int], templates: Sequence[str]
    ) -> "KeyWalk | None":
        """Run up to the first edited layer; None where the model's layers cannot be replayed."""
        model, n = session.model, len(templates)
        rows, subject = _rows(model, facts, templates)
        cut = [row[: place + 1] for row, place in zip(rows, subject.tolist(), strict=True)]
        with session.active():
            contexts = Replay.record(model, _padded(model, cut), layers[0], layers[-1])
            if contexts is None:
                return None
            bare = (
                contexts if n == 1 else Replay.record(model, _padded(model, cut[::n]), layers[0], layers[-1])
            )
        return None if bare is None else cls(session, contexts, bare, subject, n)

    @torch.no_grad()
    def at(self, layer: int, scratch: Mapping[int, Tensor]) -> Keys:
        """As :meth:`KeySource.at`.

        Raises:
            ValueError: when a layer before the walk's place is asked for; its input is gone.
        """
        if layer < self._at:
            raise ValueError(f"the walk has passed layer {layer}; it stands at {self._at}")
        model = self._session.model
        with self._session.active(scratch):
            if layer > self._at:
                self._entering = self._contexts.run(self._entering, self._at, layer - 1)
                self._bare_entering = self._bare.run(self._bare_entering, self._at, layer - 1)
                self._at = layer
            keys, _ = self._contexts.keys(self._entering, layer)
            output = self._bare.run(self._bare_entering, layer)
        keys = keys[torch.arange(len(self._last)), self._last].float().to(model.device)
        bare_last = self._last[:: self._n]
        output = output[torch.arange(len(bare_last)), bare_last].float().to(model.device)
        return Keys(average_contexts(keys.view(-1, self._n, model.d_mlp)).T, output.T)


def average_contexts(activations: Float[Tensor, "fact context d_mlp"]) -> Float[Tensor, "fact d_mlp"]:
    """Half the bare prompt (the first context), half the mean of the others."""
    if activations.shape[1] == 1:
        return activations[:, 0]
    return (activations[:, 0] + activations[:, 1:].mean(1)) / 2


def _rows(
    model: EditableModel, facts: Sequence[Fact], templates: Sequence[str]
) -> tuple[list[list[int]], Int[Tensor, " row"]]:
    """Every fact's prompt under every template, facts outermost, and each row's subject position."""
    rows, subject = [], []
    for fact in facts:
        for template in templates:
            rows.append(encode(model.tokenizer, fill_template(template, fact.prompt)))
            subject.append(find_subject_last(model.tokenizer, fact, template))
    return rows, torch.tensor(subject)


def _padded(model: EditableModel, rows: Sequence[Sequence[int]]) -> Batch:
    return pad(rows, pad_id(model.tokenizer))
