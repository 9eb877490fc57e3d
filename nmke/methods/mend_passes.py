"""What MEND runs: the gradient factors of a fact's loss, and a batch with down projections changed by thin updates.

Nothing before the first edited layer ever changes, so its output is computed once a batch and a pass runs the later
layers alone (:mod:`nmke.replay`). Where they cannot be replayed, and in tests (``plain=True``), whole prompts run
through the whole model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from nmke.methods.forced import Answers
from nmke.methods.mend_transform import Factors, Update
from nmke.model import EditableModel
from nmke.replay import Replay
from nmke.sites import FINAL, MLP_OUT, POST
from nmke.tokens import Batch, encode, encode_continuation, pad, pad_id

#: From a layer and its neuron activations to what is added to its down projection's output.
Addition = Callable[[int, Tensor], Tensor]


class Passes(ABC):
    """One batch through the model, something added behind edited down projections; gradients flow.

    Attributes:
        ran: what each pass runs.
    """

    ran: Literal["later layers", "whole prompts"]

    @abstractmethod
    def final(self, add: Addition) -> Float[Tensor, "prompt position d_model"]:
        """The final norm's output. The caller holds the model with the weights the pass was made for."""

    @abstractmethod
    def logits(self, final: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """The unembedding, as float32."""


def passes_of(model: EditableModel, batch: Batch, layers: Sequence[int], plain: bool = False) -> Passes:
    """The quickest form that reproduces the model, with the weights in force; the caller holds them.

    Args:
        layers: the edited layers in rising order.
    """
    replay = None if plain else Replay.record(model, batch, layers[0], model.n_layers - 1)
    return WholePrompts(model, batch, tuple(layers)) if replay is None else LaterLayers(replay, tuple(layers))


@dataclass(frozen=True)
class LaterLayers(Passes):
    """Replays the layers from the first edited one on."""

    replay: Replay
    layers: tuple[int, ...]
    ran: Literal["later layers", "whole prompts"] = "later layers"

    def final(self, add: Addition) -> Float[Tensor, "prompt position d_model"]:
        resid, reached = self.replay.entry, self.replay.first
        for layer in self.layers:
            if reached < layer:
                resid = self.replay.run(resid, reached, layer - 1)
            post, out = self.replay.keys(resid, layer)
            resid, reached = out + add(layer, post), layer + 1
        if reached <= self.replay.last:
            resid = self.replay.run(resid, reached)
        return self.replay.final(resid)

    def logits(self, final: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        return self.replay.logits(final)


@dataclass(frozen=True)
class WholePrompts(Passes):
    """Runs everything, the additions made at the layers' outputs."""

    model: EditableModel
    batch: Batch
    layers: tuple[int, ...]
    ran: Literal["later layers", "whole prompts"] = "whole prompts"

    def final(self, add: Addition) -> Float[Tensor, "prompt position d_model"]:
        posts: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[[Tensor], Tensor]:
            def kept(value: Tensor) -> Tensor:
                posts[layer] = value
                return value

            return kept

        def change(layer: int) -> Callable[[Tensor], Tensor]:
            return lambda value: value + add(layer, posts[layer])

        hooks = {(POST, layer): keep(layer) for layer in self.layers}
        hooks |= {(MLP_OUT, layer): change(layer) for layer in self.layers}
        site = FINAL
        return self.model.run(self.batch, [site], hooks=hooks)[site]

    def logits(self, final: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        return self.model.logits(final)


def nothing_added(d_model: int) -> Addition:
    """The model as it is."""
    return lambda _, post: post.new_zeros(*post.shape[:-1], d_model)


def with_updates(updates: Mapping[int, Update]) -> Addition:
    """What changed down projections add: ``a W~ = a W + (a left) right``, in float32."""

    def add(layer: int, post: Tensor) -> Tensor:
        update = updates[layer]
        left, right = update.left.to(post.device), update.right.to(post.device)
        return ((post.float() @ left) @ right).to(post.dtype)

    return add


def read_factors(
    passes: Passes, answers: Answers, layers: Sequence[int], d_model: int
) -> tuple[dict[int, Factors], Float[Tensor, " fact"]]:
    """Each layer's gradient factors of the answers' summed losses, and these losses.

    The sum, and not the mean, so that each fact's factors are those it would have alone.
    """
    leaves: dict[int, Tensor] = {}
    posts: dict[int, Tensor] = {}

    def watch(layer: int, post: Tensor) -> Tensor:
        posts[layer] = post.detach()
        leaves[layer] = post.new_zeros(*post.shape[:-1], d_model).requires_grad_(True)
        return leaves[layer]

    with torch.enable_grad():
        final = passes.final(watch)
        losses = answers.losses(passes.logits(final[answers.rows, answers.places]))
        gradients = torch.autograd.grad(losses.sum(), [leaves[layer] for layer in layers])
    rows, places = answers.batch.mask.bool().nonzero(as_tuple=True)
    factors = {
        layer: Factors.of(posts[layer][rows, places], gradient[rows, places])
        for layer, gradient in zip(layers, gradients, strict=True)
    }
    return factors, losses.detach()


@dataclass(frozen=True)
class Outcome:
    """What an edit is judged by: the new answer to one prompt, and a text it must leave alone, in one batch.

    Attributes:
        batch: row 0 the prompt with its answer, row 1 the text.
        places, tokens: where each token of the answer is predicted in row 0, and which it is.
        outside: how many tokens the text has.
    """

    batch: Batch
    places: Int[Tensor, " token"]
    tokens: Int[Tensor, " token"]
    outside: int

    @classmethod
    def of(cls, tokenizer: Any, prompt: str, answer: str, text: Sequence[int]) -> "Outcome":
        ids, forced = encode(tokenizer, prompt), encode_continuation(tokenizer, prompt, answer)
        batch = pad([ids + forced[:-1], list(text)], pad_id(tokenizer))
        places = torch.arange(len(ids) - 1, len(ids) - 1 + len(forced))
        return cls(batch, places, torch.tensor(forced), len(text))

    def loss(self, logits: Float[Tensor, "token d_vocab"]) -> Float[Tensor, ""]:
        """``L_e``: mean negative log-likelihood of the answer's tokens."""
        return cross_entropy(logits, self.tokens.to(logits.device))


def kl_divergence(
    before: Float[Tensor, "token d_vocab"], after: Float[Tensor, "token d_vocab"]
) -> Float[Tensor, ""]:
    """``L_loc``: ``KL(p_before || p_after)`` of the next token, mean over tokens; of logits."""
    old, new = before.log_softmax(-1), after.log_softmax(-1)
    return (old.exp() * (old - new)).sum(-1).mean()
