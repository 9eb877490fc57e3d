"""UltraEdit: training-, subject- and memory-free lifelong editing (Gu et al., arXiv 2505.14679).

One forward and one backward pass of the teacher-forced answers give, at every token and every edited layer, the down
projection's input ``h`` and the loss's gradient ``g`` at its output. Each feature of ``(h, g)`` is normalised by its
mean and standard deviation over all tokens of all edits so far ("lifelong normalisation"), the present ones included
and all edited layers taken together. With ``h^, g^`` the normalised features the wanted change of a token's output, and
the update of a layer, are::

    v = -eta |h^|^2 g^              X = (H^T H + lambda I)^-1 H^T V

the tokens' ``h`` and ``v`` in the rows of ``H`` and ``V``. Nothing is optimised, no text is read and no subject sought.

Defaults are the published settings for Mistral-7B, the Llama-like model whose down projections they edit: layers 29 and
30 of 32, ``eta`` 1e-6, all tokens, ten facts a pass; ``lambda`` is 1, the identity of the published formula. As in the
published code the spread is not quite the variance: a pass of ``n`` tokens adds ``n`` times its *unbiased* variance.

Where this differs: down projections alone are edited (the published settings for LLaMA-3 and Qwen take the gate and up
projections); a pass of one token adds nothing to the spread, where the published code turns to nan; running figures are
kept in float32, as published, but computed with in float64.

The running mean and spread lie in the edit's ``keys`` under :data:`STATISTICS`, which is no layer: they join the
session's history, so an undo, a saved session and a checkpoint bring back the very bits, and no method that protects
the keys of a layer ever sees them. That is four columns an edit, fewer than AlphaEdit's keys for five layers. UltraEdit
itself protects no keys and leaves none to be protected.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import cross_entropy

from nmke.config import Config
from nmke.edit import Edit, WeightPatch
from nmke.errors import EditError
from nmke.facts import Fact
from nmke.history import exactly
from nmke.methods.base import Method
from nmke.methods.closed_form import Stopwatch, factored_norm
from nmke.methods.forced import Answers
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.sites import FINAL, MLP_OUT, POST
from nmke.solve import ridge_factors
from nmke.tokens import require_fits

#: Where the running figures lie among an edit's keys; no layer has this number.
STATISTICS = -1
_EPS = torch.finfo(torch.float32).eps


class UltraEditConfig(Config):
    """Settings of UltraEdit."""

    layers: tuple[int, ...] = Field(
        (29, 30), title="Edited layers", description="Which layers' down projections are changed."
    )
    learning_rate: float = Field(
        1e-6,
        gt=0,
        title="Learning rate eta",
        description="How far the outputs move. The step also grows with the number of neurons, so models with fewer "
        "neurons need a larger one.",
    )
    tokens: Literal["all", "answer"] = Field(
        "all",
        title="Tokens",
        description="Whose keys and gradients are taken: all tokens of prompt and answer, or those that predict the "
        "answer.",
    )
    ridge: float = Field(
        1.0,
        gt=0,
        title="Ridge lambda",
        description="Pulls the update towards zero; larger writes more timidly.",
    )
    batch_size: int = Field(
        10, ge=1, le=1024, title="Facts a pass", description="Facts that share a forward and a backward pass."
    )

    @field_validator("layers")
    @classmethod
    def _layers_are_named(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if not layers:
            raise ValueError("name at least one layer")
        return tuple(sorted(set(layers)))


@dataclass(frozen=True)
class Features:
    """What tokens put into one layer and what the loss asks of it.

    Attributes:
        H: down-projection inputs.
        G: gradients of the loss at the down projection's output.
    """

    H: Float[Tensor, "token d_mlp"]
    G: Float[Tensor, "token d_model"]

    def together(self) -> Float[Tensor, "token feature"]:
        """``(h, g)`` side by side, in the precision that is computed with."""
        return exactly(torch.cat([self.H, self.G], dim=1))


@dataclass(frozen=True)
class Running:
    """Mean and spread of every feature over all tokens so far.

    Attributes:
        count: tokens, counted once a layer.
        spread: what the variance is, times ``count - 1``.
    """

    count: int
    mean: Float[Tensor, " feature"]
    spread: Float[Tensor, " feature"]

    def with_pass(self, x: Float[Tensor, "token feature"]) -> "Running":
        """The figures once these tokens are counted too."""
        old, new = self.count, len(x)
        delta = x.mean(0) - self.mean
        within = x.var(0) if new > 1 else torch.zeros_like(delta)
        return Running(
            old + new,
            self.mean + new / (old + new) * delta,
            self.spread + new * within + old * new / (old + new) * delta**2,
        )

    def normalised(self, x: Float[Tensor, "token feature"]) -> Float[Tensor, "token feature"]:
        return (x - self.mean) / ((self.spread / (self.count - 1)).sqrt() + _EPS)


def wanted_change(
    h: Float[Tensor, "token d_mlp"], g: Float[Tensor, "token d_model"], eta: float
) -> Float[Tensor, "token d_model"]:
    """``v = -eta |h|^2 g`` per token, of normalised features."""
    return -eta * (h**2).sum(1, keepdim=True) * g


def shift_factors(
    H: Float[Tensor, "token d_mlp"], V: Float[Tensor, "token d_model"], ridge: float
) -> tuple[Float[Tensor, "d_mlp token"], Float[Tensor, "token d_model"]]:
    """``X = (H^T H + ridge I)^-1 H^T V`` as two thin factors."""
    K = exactly(H).T
    return ridge_factors(K, V.T.to(K), K[:, :0], lambda keys: keys, ridge)


def shift_solve(
    H: Float[Tensor, "token d_mlp"], V: Float[Tensor, "token d_model"], ridge: float
) -> Float[Tensor, "d_mlp d_model"]:
    """The same by one dense solve, as published: the plain twin of :func:`shift_factors`."""
    H, V = H.double(), V.double()
    identity = torch.eye(H.shape[1], dtype=H.dtype, device=H.device)
    return torch.linalg.solve(H.T @ H + ridge * identity, H.T @ V)


def read_features(
    session: EditSession, facts: Sequence[Fact], layers: Sequence[int], tokens: Literal["all", "answer"]
) -> tuple[dict[int, Features], float]:
    """Each layer's features with the session's edits in force, and the mean loss a token of the answers."""
    model = session.model
    answers = Answers.of(model.tokenizer, facts, "target")
    leaves: dict[int, Tensor] = {}

    def watched(layer: int) -> Any:
        def with_leaf(value: Tensor) -> Tensor:
            leaves[layer] = torch.zeros_like(value, requires_grad=True)
            return value + leaves[layer]

        return with_leaf

    sites = [FINAL, *((POST, layer) for layer in layers)]
    with session.active(), torch.enable_grad():
        kept = model.run(answers.batch, sites, hooks={(MLP_OUT, layer): watched(layer) for layer in layers})
        logits = model.logits(kept[FINAL][answers.rows, answers.places])
        loss = cross_entropy(logits, answers.tokens.to(logits.device))
        gradients = torch.autograd.grad(loss, [leaves[layer] for layer in layers])
    if tokens == "all":
        rows, places = answers.batch.mask.bool().nonzero(as_tuple=True)
    else:
        rows, places = answers.rows, answers.places
    found = {
        layer: Features(
            *(
                value[rows, places].detach().float().to(model.device)
                for value in (kept[(POST, layer)], gradient)
            )
        )
        for layer, gradient in zip(layers, gradients, strict=True)
    }
    return found, float(loss.detach())


def running_figures(session: EditSession) -> Running:
    """What the session's last UltraEdit edit left; nothing counted where there is none."""
    width = session.model.d_mlp + session.model.d_model
    for edit in reversed(session.edits):
        if STATISTICS in edit.keys:
            flat = exactly(edit.keys[STATISTICS]).reshape(-1)
            return Running(edit.details["tokens_counted"], flat[:width], flat[width : 2 * width])
    nothing = exactly(torch.zeros(1, width, device=session.model.device))[0]
    return Running(0, nothing, nothing)


def as_columns(figures: Running, d_mlp: int) -> Float[Tensor, "d_mlp column"]:
    """Mean and spread one after the other in as many columns as they need, in float32."""
    flat = torch.cat([figures.mean, figures.spread]).float()
    columns = math.ceil(len(flat) / d_mlp)
    packed = torch.zeros(d_mlp * columns, device=flat.device)
    packed[: len(flat)] = flat
    return packed.view(d_mlp, columns)


class UltraEdit(Method):
    """Lifelong editing by one backward pass and one least-squares solve."""

    name = "ultraedit"
    title = "UltraEdit"
    about = (
        "Turns one gradient, normalised over all edits so far, into an update by least squares, without training or "
        "a search (Gu et al., 2025)."
    )
    config_class = UltraEditConfig

    def guess(self, n_layers: int) -> Mapping[str, Any]:
        """29 and 30 of 32, where the authors edit Mistral-7B: the last layer is left alone."""
        last = max(n_layers - 2, 0)
        return {"layers": tuple(range(max(last - 1, 0), last + 1))}

    def _plan(
        self, session: EditSession, facts: Sequence[Fact], config: UltraEditConfig, progress: Progress
    ) -> Edit:
        watch, model = Stopwatch(), session.model
        with watch.stage("total"):
            model.check_layers(config.layers)
            for fact in facts:
                require_fits(model.tokenizer, fact, model.context_length)
            with watch.stage("gradients"):
                features, losses = self._gather(session, facts, config, progress)
            figures = running_figures(session)
            for found in features:
                for layer in config.layers:
                    figures = figures.with_pass(found[layer].together())
            if figures.count < 2:
                raise EditError(
                    "One token in one layer has no spread to normalise by.",
                    "Take all tokens, edit several layers, or write several facts at once.",
                )
            with watch.stage("solve"):
                patches, details = self._solve(features, figures, config, progress)
        return Edit(
            method=self.name,
            config=config.model_dump(mode="json"),
            facts=tuple(facts),
            patches=tuple(patches),
            keys={STATISTICS: as_columns(figures, model.d_mlp).to(model.device)},
            seconds=watch.seconds,
            details={"tokens_counted": figures.count, "losses": losses, "layers": details},
        )

    def _gather(
        self, session: EditSession, facts: Sequence[Fact], config: UltraEditConfig, progress: Progress
    ) -> tuple[list[dict[int, Features]], list[float]]:
        """Every pass's features and loss, all with the weights before the edit."""
        passes, losses = [], []
        for start in range(0, len(facts), config.batch_size):
            progress.update("reading gradients", start, len(facts), facts[start].subject)
            group = facts[start : start + config.batch_size]
            found, loss = read_features(session, group, config.layers, config.tokens)
            passes.append(found)
            losses.append(loss)
        return passes, losses

    def _solve(
        self,
        passes: Sequence[Mapping[int, Features]],
        figures: Running,
        config: UltraEditConfig,
        progress: Progress,
    ) -> tuple[list[WeightPatch], list[dict[str, Any]]]:
        patches, details = [], []
        for done, layer in enumerate(config.layers):
            progress.update("writing layers", done, len(config.layers), f"layer {layer}")
            H = torch.cat([found[layer].H for found in passes])
            G = torch.cat([found[layer].G for found in passes])
            h, g = figures.normalised(Features(H, G).together()).split([H.shape[1], G.shape[1]], dim=1)
            V = wanted_change(h, g, config.learning_rate)
            left, right = shift_factors(H, V, config.ridge)
            patches.append(WeightPatch(layer, left.float().to(H.device), right.float().to(H.device)))
            details.append(
                {
                    "layer": layer,
                    "tokens": len(H),
                    "wanted_norm": float(V.norm()),
                    "written_norm": factored_norm(left, right),
                }
            )
        return patches, details
