"""KN: rewrite the value vectors of the neurons that a fact's answer is attributed to (Dai et al., arXiv 2104.08696).

1. Attribution (section 3.2; :mod:`nmke.methods.integrated`): integrated gradients of the probability of the present
   answer's first token. The present answer is ``target_true`` where the fact has one, else what the model itself says
   first after the edit prompt.
2. Refining (section 3.3): per prompt the neurons with at least ``coarse`` times the largest attribution; of these the
   ones that at least a ``share`` of the prompts have. The share moves by 0.05 up or down, up to five times, until
   between ``fewest`` and ``most`` neurons are left.
3. Editing (section 5.1), for each of those neurons, ``v`` its value vector and ``e`` word embeddings::

       v += -lambda_old * |v| / |e(old)| * e(old)  +  lambda_new * |v| / |e(new)| * e(new)

   with the authors' 1 and 8. Their code scales by ``|v| / |e|``, the paper's formula has no such factor (``scale``).

BERT's neurons are never far below zero (GELU). Those of gated MLPs often are, also where their product with a value
vector speaks for the answer; written as published, such a neuron takes the new answer away and brings the old one.
``follow_sign``, which is not published, turns the change of these neurons around; it is off unless asked for.

The prompts are the edit prompt alone and behind the five context texts, so that every fact has six; the fact's
paraphrases are taken only if asked for (``prompts``): generalisation would then be measured on what was used.

Where this differs from the authors' code: it works on BERT's masked token, this on the prompt's last token; it tunes
the share for the average over a relation's facts, this for the fact; it drops neurons that a tenth of the relation's
other facts have too, which one fact alone cannot tell; a neuron there needs three prompts at least. EasyEdit's port
attributes with one step on the edit prompt alone and reads a gated MLP before its gate is multiplied in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from nmke.config import Config
from nmke.contexts import context_templates
from nmke.edit import Edit, WeightPatch
from nmke.errors import FactError, FactRefused
from nmke.facts import Fact
from nmke.methods.base import Method
from nmke.methods.closed_form import Stopwatch
from nmke.methods.forced import Answers
from nmke.methods.integrated import integrate_gradients
from nmke.model import EditableModel
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.sites import FINAL
from nmke.tokens import encode, encode_continuation, fill_template, pad, require_fits

#: How far the share moves at a time, and how often it is tried.
SHARE_STEP = 0.05
SHARE_TRIES = 6


class KNConfig(Config):
    """Settings of KN; defaults are the authors'."""

    layers: tuple[int, ...] | None = Field(
        None, title="Searched layers", description="Where neurons are looked for. Empty: in every layer."
    )
    prompts: Literal["contexts", "paraphrases", "both"] = Field(
        "contexts",
        title="Prompts",
        description="What the edit prompt is joined by: itself behind context texts, the fact's paraphrases, or both. "
        "Generalisation measured on paraphrases that were used here means little.",
    )
    steps: int = Field(
        20, ge=1, le=1000, title="Integration steps", description="Scalings of the activations."
    )
    coarse: float = Field(
        0.2,
        gt=0,
        le=1,
        title="Coarse threshold",
        description="Per prompt, neurons with this share of the largest attribution are kept.",
    )
    share: float = Field(
        0.7,
        gt=0,
        le=1,
        title="Share of prompts",
        description="Neurons that so many of the prompts kept are edited; moved until there are few but some.",
    )
    fewest: int = Field(
        2, ge=1, title="Fewest neurons", description="With fewer, the share of prompts is lowered."
    )
    most: int = Field(5, ge=1, title="Most neurons", description="With more, the share of prompts is raised.")
    lambda_old: float = Field(
        1.0, ge=0, title="Weight of the old answer", description="How much of its embedding is taken out."
    )
    lambda_new: float = Field(
        8.0, ge=0, title="Weight of the new answer", description="How much of its embedding is put in."
    )
    scale: Literal["value norm", "none"] = Field(
        "value norm",
        title="Scale",
        description="Embeddings scaled to the length of the value vector (the authors' code), or as they are (the "
        "paper's formula).",
    )
    embedding: Literal["input", "output"] = Field(
        "input",
        title="Embeddings",
        description="Word embeddings, or rows of the unembedding, where a model has both.",
    )
    tokens: Literal["first", "mean"] = Field(
        "first", title="Answer tokens", description="Whose embedding stands for an answer of several tokens."
    )
    follow_sign: bool = Field(
        False,
        title="Follow the sign",
        description="Turn the change around for neurons that are negative after the edit prompt. Not part of the "
        "published method, which was made for a model whose neurons are never far below zero.",
    )
    context_seed: int = Field(0, ge=0, title="Context seed", description="Seed of the five context texts.")

    @model_validator(mode="after")
    def _fewest_is_not_above_most(self) -> "KNConfig":
        if self.fewest > self.most:
            raise ValueError(f"the fewest neurons, {self.fewest}, are more than the most, {self.most}")
        return self


@dataclass(frozen=True)
class Refined:
    """The neurons chosen.

    Attributes:
        neurons: (place in the layers searched, neuron), in order.
        share: of the prompts that had to have them.
        coarse: how many neurons each prompt kept.
    """

    neurons: tuple[tuple[int, int], ...]
    share: float
    coarse: tuple[int, ...]


class KN(Method):
    """Knowledge neurons."""

    name = "kn"
    title = "KN"
    about = (
        "Finds the few neurons the present answer is attributed to and writes the new answer's embedding into their "
        "value vectors (Dai et al., ACL 2022)."
    )
    config_class = KNConfig
    facts_at_once = 1

    def _plan(
        self, session: EditSession, facts: Sequence[Fact], config: KNConfig, progress: Progress
    ) -> Edit:
        watch, model, fact = Stopwatch(), session.model, facts[0]
        with watch.stage("total"):
            layers = model.check_layers(range(model.n_layers) if config.layers is None else config.layers)
            prompts = find_prompts(model, fact, config, progress)
            with session.active():
                old, new = find_answers(model, fact)
                with watch.stage("attribution"):
                    found = integrate_gradients(model, prompts, old[0], layers, config.steps, progress)
            refined = refine(found.scores, config)
            if not refined.neurons:
                raise FactRefused(
                    f"The prompts about {fact.subject!r} share no neuron; nothing was changed.",
                    "Lower the share of prompts or the coarse threshold.",
                )
            patches = tuple(
                write_values(
                    session, layers[place], chosen, found.activations[0, place, chosen], old, new, config
                )
                for place, chosen in _by_layer(refined.neurons).items()
            )
            said = {patch.layer: patch.added_to(session.master(patch.layer)) for patch in patches}
            with session.active(instead=said):
                probability = _probability(model, fact)
        return Edit(
            method=self.name,
            config=config.model_dump(mode="json"),
            facts=(fact,),
            patches=patches,
            keys={},
            seconds=watch.seconds,
            details={
                "target_probability": [probability],
                "neurons": [[layers[place], neuron] for place, neuron in refined.neurons],
                "activations": [float(found.activations[0, place, n]) for place, n in refined.neurons],
                "share": refined.share,
                "coarse_neurons": list(refined.coarse),
                "prompts": [model.tokenizer.decode(ids) for ids in prompts],
                "old_answer": model.tokenizer.decode(old),
                "ran": {"attribution": found.ran},
            },
        )


def find_prompts(model: EditableModel, fact: Fact, config: KNConfig, progress: Progress) -> list[list[int]]:
    """Token ids of the prompts attributed, the edit prompt first.

    Raises:
        FactError: one of them does not fit the model's context.
    """
    templates: tuple[str, ...] = ("{}",)
    if config.prompts != "paraphrases":
        templates = context_templates(model, config.context_seed, progress)
    require_fits(model.tokenizer, fact, model.context_length, templates)
    texts = [fill_template(template, fact.prompt) for template in templates]
    if config.prompts != "contexts":
        texts += fact.paraphrases
    prompts = [encode(model.tokenizer, text) for text in texts]
    for text, ids in zip(texts, prompts, strict=True):
        if len(ids) > model.context_length:
            raise FactError(
                f"The paraphrase {text[:40]!r} needs {len(ids)} tokens; this model reads at most "
                f"{model.context_length}.",
                "Shorten the paraphrase.",
                field="paraphrases",
            )
    return prompts


@torch.no_grad()
def find_answers(model: EditableModel, fact: Fact) -> tuple[list[int], list[int]]:
    """Token ids of the present answer and of the new one; the former is the model's own top-1 without target_true."""
    new = encode_continuation(model.tokenizer, fact.prompt, fact.target_new)
    if fact.target_true:
        return encode_continuation(model.tokenizer, fact.prompt, fact.target_true), new
    final = model.run(pad([encode(model.tokenizer, fact.prompt)], 0), [FINAL])[FINAL]
    return [int(model.logits(final[0, -1]).argmax())], new


def keep_coarse(
    scores: Float[Tensor, "prompt layer d_mlp"], threshold: float
) -> Bool[Tensor, "prompt layer d_mlp"]:
    """Per prompt the neurons with at least ``threshold`` times its largest attribution over all layers.

    A prompt on which no neuron speaks for the answer keeps none.
    """
    largest = scores.amax((1, 2), keepdim=True)
    return (scores >= threshold * largest) & (largest > 0)


def refine(scores: Float[Tensor, "prompt layer d_mlp"], config: KNConfig) -> Refined:
    """The neurons that enough prompts share; see the module."""
    kept = keep_coarse(scores, config.coarse)
    counts = kept.sum(0)
    share = config.share
    for attempt in range(SHARE_TRIES):
        # Thirds and twentieths have no exact binary form: a count that equals the share must not fail by a rounding.
        chosen = (counts > 0) & (counts >= share * len(scores) - 1e-9)
        n_chosen = int(chosen.sum())
        if config.fewest <= n_chosen <= config.most or attempt == SHARE_TRIES - 1:
            break
        # More than all prompts can keep no neuron: however many all of them share, these are found.
        share = min(share + SHARE_STEP, 1.0) if n_chosen > config.most else share - SHARE_STEP
    neurons = tuple((place, neuron) for place, neuron in chosen.nonzero().tolist())
    return Refined(neurons, share, tuple(kept.sum((1, 2)).tolist()))


def write_values(
    session: EditSession,
    layer: int,
    neurons: Sequence[int],
    activations: Float[Tensor, " neuron"],
    old: Sequence[int],
    new: Sequence[int],
    config: KNConfig,
) -> WeightPatch:
    """The change of one layer's value vectors: one-hot columns for the neurons, a row for each.

    Args:
        activations: of these neurons after the edit prompt.
        old, new: token ids of the answers.
    """
    W_out = session.master(layer)
    values = W_out[list(neurons)]
    right = torch.zeros_like(values)
    for ids, factor in ((old, -config.lambda_old), (new, config.lambda_new)):
        e = embed(session.model, ids, config).to(values)
        scale = values.norm(dim=1, keepdim=True) / e.norm() if config.scale == "value norm" else 1.0
        right = right + factor * scale * e
    if config.follow_sign:
        right = torch.where(activations.to(right)[:, None] < 0, -right, right)
    left = torch.zeros(W_out.shape[0], len(neurons), device=W_out.device)
    left[list(neurons), range(len(neurons))] = 1.0
    return WeightPatch(layer, left, right)


def embed(model: EditableModel, ids: Sequence[int], config: KNConfig) -> Float[Tensor, " d_model"]:
    """The vector that stands for an answer, float32."""
    table: Tensor = model.readout.unembedding
    if config.embedding == "input":
        table = model.bridge.original_model.get_input_embeddings().weight.detach()
    chosen = table[list(ids) if config.tokens == "mean" else list(ids[:1])]
    return chosen.float().mean(0)


def _by_layer(neurons: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    places: dict[int, list[int]] = {}
    for place, neuron in neurons:
        places.setdefault(place, []).append(neuron)
    return places


@torch.no_grad()
def _probability(model: EditableModel, fact: Fact) -> float:
    """Geometric mean of the probabilities of the new answer's tokens, teacher-forced."""
    answers = Answers.of(model.tokenizer, [fact], "target")
    final = model.run(answers.batch, [FINAL])[FINAL]
    return float((-answers.losses(model.logits(final[answers.rows, answers.places]))).exp())
