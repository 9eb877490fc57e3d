"""Integrated gradients of an answer's probability with respect to neurons, over all layers.

For neuron ``i`` of a layer, its activation ``w_i`` at a prompt's last token, all of the layer's neurons scaled together
(Dai et al., arXiv 2104.08696, equations 4 and 5)::

    Attr_i = w_i / m  *  sum over k = 1 .. m of  d P(y | k/m * w) / d w_i

(the paper's Riemann sum; the authors' code takes the left one, ``k = 0 .. m-1``). Only the last position of a prompt is
touched and read, so the keys and values of the tokens before it are computed once; the ``m`` scalings of a layer, of
several prompts, are one batch of single tokens that runs through the later layers only (:mod:`nmke.replay`). A layer's
output is linear in its activations, so with ``g_k`` the gradient at that output, the sum is ``W_out (sum_k g_k)``.

Where the later layers cannot be replayed, and in tests (``plain=True``), every layer runs whole prompts with the
activations put in their place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nmke.model import EditableModel
from nmke.past import Past
from nmke.progress import Progress, Silent
from nmke.replay import Replay
from nmke.sites import FINAL, POST
from nmke.tokens import pad, pad_id

#: So many prompts share a batch, each with all of its scalings.
PROMPTS_TOGETHER = 8


@dataclass(frozen=True)
class Gradients:
    """Attributions of neurons.

    Attributes:
        scores: [prompt, layer, d_mlp], in the order of the layers asked for; float32, on the CPU.
        activations: of the same neurons at the prompts' last tokens.
        ran: what each layer ran.
    """

    scores: Float[Tensor, "prompt layer d_mlp"]
    activations: Float[Tensor, "prompt layer d_mlp"]
    ran: str


def integrate_gradients(
    model: EditableModel,
    prompts: Sequence[Sequence[int]],
    answer: int,
    layers: Sequence[int],
    steps: int,
    progress: Progress | None = None,
    plain: bool = False,
) -> Gradients:
    """Attribute the probability of ``answer`` after each prompt, with whatever weights are active.

    Args:
        prompts: token ids.
        answer: the token whose probability is followed.
        steps: ``m``.
        plain: by whole prompts; the same up to rounding.

    Raises:
        Cancelled: from ``progress``, between layers.
    """
    progress = progress or Silent()
    groups = [prompts[start : start + PROMPTS_TOGETHER] for start in range(0, len(prompts), PROMPTS_TOGETHER)]
    found: list[tuple[Tensor, Tensor]] = []
    ran = "later layers"
    with model.lock:
        for number, group in enumerate(groups):
            replay = None if plain else _record(model, group, steps)
            if replay is None:
                ran = "whole prompts"
                both = _by_prompts(model, group, answer, layers, steps, progress, (number, len(groups)))
            else:
                both = _by_layers(replay, answer, layers, steps, progress, (number, len(groups)))
            found.append(both)
    progress.update("integrating gradients", len(groups) * len(layers), len(groups) * len(layers))
    scores, activations = (torch.cat(part).float().cpu() for part in zip(*found, strict=True))
    return Gradients(scores, activations, ran)


def _record(model: EditableModel, prompts: Sequence[Sequence[int]], steps: int) -> Replay | None:
    """Every layer on the prompts' last tokens, each prompt ``steps`` times, behind the tokens before it."""
    if model.unhooked is None:
        return None
    fill = pad_id(model.tokenizer)
    past: Past | None = None
    if max(len(ids) for ids in prompts) > 1:
        past = model.remember(pad([ids[:-1] for ids in prompts], fill), model.unhooked.network).copy()
        past.cache.batch_repeat_interleave(steps)
        past = Past(past.cache, past.mask.repeat_interleave(steps, dim=0))
    last = pad([ids[-1:] for ids in prompts for _ in range(steps)], fill)
    return Replay.record(model, last, 0, model.n_layers - 1, past)


def _by_layers(
    replay: Replay,
    answer: int,
    layers: Sequence[int],
    steps: int,
    progress: Progress,
    group: tuple[int, int],
) -> tuple[Float[Tensor, "prompt layer d_mlp"], Float[Tensor, "prompt layer d_mlp"]]:
    number, groups = group
    resid = replay.entry
    scale = (torch.arange(1, steps + 1) / steps).repeat(len(resid) // steps)[:, None, None]
    found: list[Tensor] = []
    activations: list[Tensor] = []
    for layer in range(max(layers) + 1):
        with torch.no_grad():
            post, resid = replay.keys(resid, layer)
        if layer not in layers:
            continue
        progress.update(
            "integrating gradients",
            number * len(layers) + len(found),
            groups * len(layers),
            f"layer {layer}",
        )
        W_out = replay.model.W_out(layer)
        scaled = resid + ((scale.to(resid) - 1) * post) @ W_out
        with torch.enable_grad():
            leaf = scaled.detach().requires_grad_(True)
            out = replay.run(leaf, layer + 1) if layer < replay.last else leaf
            gradient = _slope(replay.logits(replay.final(out)[:, 0]), answer, leaf)
        summed = gradient[:, 0].unflatten(0, (-1, steps)).sum(1)
        activations.append(post[::steps, 0].float())
        found.append(activations[-1] / steps * (summed @ W_out.float().T))
    return torch.stack(found, dim=1), torch.stack(activations, dim=1)


def _by_prompts(
    model: EditableModel,
    prompts: Sequence[Sequence[int]],
    answer: int,
    layers: Sequence[int],
    steps: int,
    progress: Progress,
    group: tuple[int, int],
) -> tuple[Float[Tensor, "prompt layer d_mlp"], Float[Tensor, "prompt layer d_mlp"]]:
    """One prompt and layer at a time, its scalings as a batch, the activations put in place by a hook."""
    number, groups = group
    fill, scale = pad_id(model.tokenizer), torch.arange(1, steps + 1)[:, None] / steps
    rows, activations = [], []
    for index, ids in enumerate(prompts):
        with torch.no_grad():
            kept = model.run(pad([ids], fill), [(POST, layer) for layer in layers])
        batch, scores = pad([ids] * steps, fill), []
        for place, layer in enumerate(layers):
            done = number * len(layers) + place
            progress.update(
                "integrating gradients", done, groups * len(layers), f"layer {layer}, prompt {index + 1}"
            )
            post = kept[(POST, layer)][0, -1]
            leaf = (scale.to(post) * post).requires_grad_(True)

            def put(value: Tensor, leaf: Tensor = leaf) -> Tensor:
                return torch.cat([value[:, :-1], leaf[:, None]], dim=1)

            with torch.enable_grad():
                final = model.run(batch, [FINAL], hooks={(POST, layer): put})[FINAL]
                gradient = _slope(model.logits(final[:, -1]), answer, leaf)
            # Layers of one model may lie on several devices.
            scores.append((post.float() / steps * gradient.sum(0)).cpu())
        rows.append(torch.stack(scores))
        activations.append(torch.stack([kept[(POST, layer)][0, -1].cpu() for layer in layers]))
    return torch.stack(rows), torch.stack(activations)


def _slope(logits: Float[Tensor, "row d_vocab"], answer: int, leaf: Tensor) -> Float[Tensor, "row *width"]:
    """Each row's ``d P(answer) / d leaf`` as ``P * d log P / d leaf``, float32.

    The gradient of a small probability is smaller still: in float16 it would vanish on its way back.
    """
    log_p = logits.log_softmax(-1)[:, answer]
    (gradient,) = torch.autograd.grad(log_p.sum(), leaf)
    p = log_p.detach().exp().to(gradient.device)
    return gradient.float() * p.view(-1, *[1] * (gradient.ndim - 1))
