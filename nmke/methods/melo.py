"""MELO: neuron-indexed dynamic LoRA, blocks of ranks that clusters of activations switch on (Yu et al., AAAI 2024).

arXiv 2312.11795. A vector database of clusters, built as GRACE's balls are (:mod:`nmke.methods.balls`; the patch is in
:mod:`nmke.methods.dynamic_lora`), says which block of a LoRA answers for a token; where no cluster reaches, none does
and the layer's own output comes back, to the bit. The facts of an edit go into blocks of ``edits_a_block``; each block
is trained for its own facts and then left alone,

    out + (alpha / rank) B_b A_b x,    b the block of the nearest point in the cluster the token lies in

by Adam with a learning rate halved every 20 steps, on the mean cross-entropy of the targets' tokens behind the bare
prompts. Points of one label that come near share a cluster; where a query of another label comes near, the two part,
and the older cluster forgets the points it no longer holds. Without any left it switches nothing on.

A block is a LoRA layer of ``peft`` (start, forward and scaling are its own), trained around a down projection that
gives nothing; what is kept of it are its two matrices. The published scaling, 1 for all 700 ranks and then
``sqrt(350)`` in either of the two matrices for blocks of 2, is peft's with ``lora_alpha`` 700 and rank 2.

Differences to the published code (EasyEdit's, with the authors' changed copy of peft): one layer instead of two, whose
own activations are the query, where theirs reads the layer before; the LoRA stands at the down projection, theirs at
the up projection. TransformerLens' bridge shares its parameters with unedited sessions, so peft cannot wrap a module in
place; a patch behind the down projection holds the matrices instead. Every token asks, not one a text (the reasons are
in :mod:`nmke.methods.balls`), so each token that predicts the target is a point of its own, with the target as label;
theirs lets one token decide for all of a text. The queries of an edit enter the database one after the other, where
theirs are all compared with the database before it. A block starts with the range of peft, theirs with one for all
ranks. A radius is a hair larger than its furthest point asks (0.1% of its length).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from nmke.config import Config
from nmke.edit import Edit
from nmke.facts import Fact
from nmke.methods.balls import check, descend, read_tokens, rounding_of
from nmke.methods.base import Method, module_at
from nmke.methods.closed_form import Stopwatch
from nmke.methods.dynamic_lora import DynamicLoRA, empty_lora
from nmke.methods.side_memory import mixed_seed
from nmke.methods.wise_training import Forward, Lesson
from nmke.model import EditableModel
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.tokens import require_fits

_ADAPTER = "block"


class MELOConfig(Config):
    """Settings of MELO; defaults are the authors' for GPT2-XL."""

    layer: int = Field(
        36, ge=0, title="Edited layer", description="Which layer's down projection the LoRA stands beside."
    )
    radius: float = Field(
        0.5,
        gt=0,
        title="Initial radius",
        description="Radius of a new cluster. Larger reaches more paraphrases and more unrelated prompts.",
    )
    rank: int = Field(
        2, ge=1, le=256, title="Ranks a block", description="The rank of each block of the LoRA."
    )
    alpha: int = Field(
        700,
        ge=1,
        title="Alpha",
        description="LoRA's alpha: a block's output is multiplied by alpha / rank. Published: 350 blocks of 2 ranks.",
    )
    edits_a_block: int = Field(
        4,
        ge=1,
        le=1024,
        title="Facts a block",
        description="So many facts of one edit are trained into one block.",
    )
    steps: int = Field(50, ge=1, le=1000, title="Steps", description="Optimisation steps per block.")
    learning_rate: float = Field(
        1e-3, gt=0, le=1e30, title="Learning rate", description="Adam's step size at the start."
    )
    halve_every: int = Field(
        20, ge=1, title="Halved every", description="After so many steps the learning rate is halved."
    )
    seed: int = Field(0, ge=0, title="Seed", description="Seed of the blocks' start.")


class MELO(Method):
    """Blocks of a LoRA, chosen by clusters of activations."""

    name = "melo"
    title = "MELO"
    about = (
        "Trains small blocks of a LoRA beside one layer's down projection and switches each on only for tokens close "
        "to its own facts' (Yu et al., AAAI 2024; the LoRA layer is peft's)."
    )
    config_class = MELOConfig

    def guess(self, n_layers: int) -> Mapping[str, Any]:
        """36 of 48, the first of the two layers that the authors edit in GPT2-XL."""
        return {"layer": min(round(n_layers * 36 / 48), n_layers - 1)}

    def _plan(
        self, session: EditSession, facts: Sequence[Fact], config: MELOConfig, progress: Progress
    ) -> Edit:
        model, watch = session.model, Stopwatch()
        (layer,) = model.check_layers([config.layer])
        before = module_at(session, layer, DynamicLoRA)
        patch = empty_lora(layer, model.d_mlp, model.d_model, model.device) if before is None else before
        moves: list[str] = []
        with watch.stage("total"):
            for fact in facts:
                require_fits(model.tokenizer, fact, model.context_length)
            lessons = [Lesson.of(model, fact, ("{}",)) for fact in facts]
            losses: list[list[float]] = []
            ran = ""
            for start in range(0, len(facts), config.edits_a_block):
                group = slice(start, start + config.edits_a_block)
                named = ", ".join(fact.subject for fact in facts[group])
                with session.active(modules={layer: None}):
                    with watch.stage("reading"):
                        lines = [_Line.read(model, lesson, layer) for lesson in lessons[group]]
                    patch, made = _enter(patch, lines, config, model)
                    with watch.stage("training"):
                        A, B, scale, spent = train_block(lines, patch.n_blocks, config, progress, named)
                patch, ran = patch.with_block(A, B, scale, len(lines)), lines[0].forward.ran
                moves, losses = [*moves, *made], [*losses, spent]
            with watch.stage("checking"), session.active(modules={layer: patch}):
                found = [check(model, lesson, patch) for lesson in lessons]
        return Edit(
            method=self.name,
            config=config.model_dump(mode="json"),
            facts=tuple(facts),
            patches=(),
            keys={},
            modules=(patch,),
            seconds=watch.seconds,
            details={
                "target_probability": [probability for _, probability in found],
                "answered_tokens": [answered for answered, _ in found],
                "moves": moves,
                "clusters": len(patch),
                "points": len(patch.points),
                "blocks": patch.n_blocks,
                "edits_in_lora": patch.edits,
                "losses": losses,
                "ran": ran,
            },
        )


@dataclass(frozen=True)
class _Line:
    """A fact as a block is trained on it: its tokens' activations [token, d_mlp] and the rest of the model."""

    lesson: Lesson
    inputs: Float[Tensor, "token d_mlp"]
    forward: Forward

    @classmethod
    def read(cls, model: EditableModel, lesson: Lesson, layer: int) -> "_Line":
        inputs, _ = read_tokens(model, lesson, layer)
        return cls(lesson, inputs, Forward.prepare(model, lesson, layer))


def _enter(
    patch: DynamicLoRA, lines: Sequence[_Line], config: MELOConfig, model: EditableModel
) -> tuple[DynamicLoRA, list[str]]:
    """Every token of a block's facts into the database, and how each was placed."""
    block, moves = patch.n_blocks, []
    for line in lines:
        for query in line.inputs:
            label, rounding = line.lesson.answer.tolist(), rounding_of(model, query)
            patch, placed = patch.admitting(query, label, block, config.radius, rounding)
            moves.append(str(placed.move))
    return patch, moves


def train_block(
    lines: Sequence[_Line], number: int, config: MELOConfig, progress: Progress, note: str = ""
) -> tuple[Float[Tensor, "rank d_mlp"], Float[Tensor, "rank d_model"], float, list[float]]:
    """A block trained for some facts: A, B, its scale, and the loss before each step.

    Raises:
        EditError: when the loss stops being finite.
        Cancelled: from ``progress``, between steps.
    """
    d_mlp, d_model = lines[0].inputs.shape[1], lines[0].forward.model.d_model
    layer = peft_layer(d_mlp, d_model, config, mixed_seed(config.seed, number), lines[0].inputs.device)
    A, B = (each[_ADAPTER].weight for each in (layer.lora_A, layer.lora_B))

    def loss() -> Tensor:
        return torch.stack([line.forward(layer(line.inputs)[None]).mean() for line in lines]).mean()

    losses = descend(
        [A, B],
        loss,
        config.steps,
        config.learning_rate,
        progress,
        "training the block",
        note,
        config.halve_every,
    )
    return A.detach(), B.detach().T.contiguous(), float(layer.scaling[_ADAPTER]), losses


def peft_layer(d_mlp: int, d_model: int, config: MELOConfig, seed: int, device: torch.device) -> Any:
    """peft's own LoRA layer, at its own start, around a down projection that gives nothing."""
    from peft import LoraConfig  # takes seconds to import
    from peft.tuners.lora import Linear

    base = nn.Linear(d_mlp, d_model, bias=False, device="meta")
    base.weight = nn.Parameter(torch.zeros(1, 1, device=device).expand(d_model, d_mlp), requires_grad=False)
    settings = LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):  # peft draws a start; the one used is drawn again below
        layer: Any = Linear(base, _ADAPTER, config=settings, r=config.rank, lora_alpha=config.alpha)
    start = torch.empty(config.rank, d_mlp)
    nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        layer.lora_A[_ADAPTER].weight.copy_(start)
    return layer
