"""MELO's vector database and the blocks of ranks that it switches on; see :mod:`nmke.methods.melo` (arXiv 2312.11795).

A cluster's centre is the mean of its points, its radius holds them all and is never under the initial one. A token in
a cluster (:mod:`nmke.methods.balls`) is answered by the block of that cluster's point nearest to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nmke.methods.balls import APART, CENTERS, LABELS, NONE, RADII, Balls, Placement, distances

POINTS, OWNERS, BLOCKS = "points", "owners", "blocks"
DOWN, UP, ENDS, SCALES = "A", "B", "ends", "scales"


class DynamicLoRA(Balls):
    """MELO's vector database and its blocks of ranks.

    Tensors, float32 where nothing else is said:
        centers [cluster, d_mlp], radii [cluster].
        points: the queries that clusters are made of [point, d_mlp].
        owners: each point's cluster [point], integers.
        blocks: the block each point switches on [point], integers; -1 for none.
        A [rank, d_mlp], B [rank, d_model]: all blocks' ranks, one block after the other.
        ends: where each block's ranks end [block], integers.
        scales: alpha / rank of each block [block].

    Settings:
        labels: of each cluster the target's tokens.
        edits: how many facts were written into it.
    """

    kind = "dynamic LoRA"

    @property
    def points(self) -> Float[Tensor, "point d_mlp"]:
        return self.tensors[POINTS]

    @property
    def owners(self) -> Int[Tensor, " point"]:
        return self.tensors[OWNERS]

    @property
    def blocks(self) -> Int[Tensor, " point"]:
        return self.tensors[BLOCKS]

    @property
    def n_blocks(self) -> int:
        return len(self.tensors[ENDS])

    @property
    def edits(self) -> int:
        return int(self.settings["edits"])

    def block(self, number: int) -> tuple[Float[Tensor, "rank d_mlp"], Float[Tensor, "rank d_model"], float]:
        """One block's two matrices and its scale."""
        ends = [0, *self.tensors[ENDS].tolist()]
        ranks = slice(ends[number], ends[number + 1])
        return self.tensors[DOWN][ranks], self.tensors[UP][ranks], float(self.tensors[SCALES][number])

    def within(
        self,
        inputs: Float[Tensor, "token d_mlp"],
        output: Float[Tensor, "token d_model"],
        balls: Int[Tensor, " token"],
    ) -> Float[Tensor, "token d_model"]:
        """The nearest point of a token's cluster chooses the block that is added."""
        answered, chosen = output.clone(), self.choose(inputs, balls)
        for number in chosen.unique().tolist():
            if number != NONE:
                rows = chosen == number
                A, B, scale = self.block(number)
                added = inputs[rows] @ A.to(inputs.device).T @ B.to(inputs.device) * scale
                answered[rows] = output[rows] + added.to(output.dtype)
        return answered

    @torch.no_grad()
    def choose(
        self, inputs: Float[Tensor, "token d_mlp"], balls: Int[Tensor, " token"]
    ) -> Int[Tensor, " token"]:
        """The block of each token in these clusters."""
        owners = self.owners.to(inputs.device)
        apart = distances(inputs, self.points.to(inputs.device))
        apart = apart.masked_fill(owners[None] != balls[:, None], float("inf"))
        return self.blocks.to(inputs.device)[apart.argmin(1)]

    def admitting(
        self,
        query: Float[Tensor, " d_mlp"],
        label: Sequence[int],
        block: int,
        initial: float,
        rounding: float,
    ) -> tuple["DynamicLoRA", Placement]:
        """The database with one more point.

        Args:
            block: what the point switches on.
            initial: the radius of new clusters.
            rounding: how far two readings of the query may differ.
        """
        placed = self.place(query, label, initial, rounding)
        table = _Table.of(self)
        if placed.nearest is None or placed.move == "added":
            table.add(query, label, block, initial)
        elif placed.move in ("kept", "grown"):
            table.join(placed.nearest, query, block, initial, rounding)
        elif placed.move == "split":
            table.add(query, label, block, placed.distance / 2 + APART)
            table.shrink(placed.nearest, placed.distance / 2 - APART)
        else:
            table.take_over(placed.nearest, query, label, block)
        return DynamicLoRA(
            self.layer, {**self.tensors, **table.tensors()}, table.settings(self.settings)
        ), placed

    def with_block(
        self, A: Float[Tensor, "rank d_mlp"], B: Float[Tensor, "rank d_model"], scale: float, edits: int
    ) -> "DynamicLoRA":
        """The patch with one more block, and so many more facts."""
        ends, scales = self.tensors[ENDS], self.tensors[SCALES]
        last = int(ends[-1]) if len(ends) else 0
        tensors = {
            **self.tensors,
            DOWN: torch.cat([self.tensors[DOWN], A]),
            UP: torch.cat([self.tensors[UP], B]),
            ENDS: torch.cat([ends, ends.new_tensor([last + len(A)])]),
            SCALES: torch.cat([scales, scales.new_tensor([scale])]),
        }
        return DynamicLoRA(self.layer, tensors, {**self.settings, "edits": self.edits + edits})


@dataclass
class _Table:
    """A database being changed: per cluster its centre, radius, label and points (query, block)."""

    centers: list[Tensor]
    radii: list[float]
    labels: list[list[int]]
    points: list[list[tuple[Tensor, int]]]

    @classmethod
    def of(cls, patch: DynamicLoRA) -> "_Table":
        points: list[list[tuple[Tensor, int]]] = [[] for _ in range(len(patch))]
        for point, owner, block in zip(
            patch.points, patch.owners.tolist(), patch.blocks.tolist(), strict=True
        ):
            points[owner].append((point, block))
        return cls(list(patch.centers), patch.radii.tolist(), patch.labels, points)

    def add(self, query: Tensor, label: Sequence[int], block: int, radius: float) -> None:
        self.centers.append(query)
        self.radii.append(radius)
        self.labels.append(list(label))
        self.points.append([(query, block)])

    def join(self, cluster: int, query: Tensor, block: int, initial: float, rounding: float) -> None:
        """One more point; the centre becomes the mean, the radius holds all points."""
        self.points[cluster].append((query, block))
        queries = torch.stack([point for point, _ in self.points[cluster]])
        self.centers[cluster] = queries.mean(0)
        furthest = float(distances(queries, self.centers[cluster][None]).max())
        self.radii[cluster] = max(furthest + rounding, initial)

    def shrink(self, cluster: int, radius: float) -> None:
        """A smaller radius; points outside are forgotten, and without any left the cluster switches nothing on."""
        self.radii[cluster] = radius
        centre = self.centers[cluster]
        queries = torch.stack([point for point, _ in self.points[cluster]])
        apart = distances(queries, centre[None])[:, 0].tolist()
        kept = [each for each, far in zip(self.points[cluster], apart, strict=True) if far <= radius]
        self.points[cluster] = kept or [(centre, NONE)]

    def take_over(self, cluster: int, query: Tensor, label: Sequence[int], block: int) -> None:
        self.centers[cluster], self.labels[cluster] = query, list(label)
        self.points[cluster] = [(query, block)]

    def tensors(self) -> dict[str, Tensor]:
        flat = [(point, owner, block) for owner, own in enumerate(self.points) for point, block in own]
        device = self.centers[0].device
        return {
            CENTERS: torch.stack(self.centers),
            RADII: torch.tensor(self.radii, device=device),
            POINTS: torch.stack([point for point, _, _ in flat]),
            OWNERS: torch.tensor([owner for _, owner, _ in flat], device=device),
            BLOCKS: torch.tensor([block for _, _, block in flat], device=device),
        }

    def settings(self, before: Mapping[str, Any]) -> dict[str, Any]:
        return {**before, LABELS: self.labels}


def empty_lora(layer: int, d_mlp: int, d_model: int, device: str | torch.device = "cpu") -> DynamicLoRA:
    """One without clusters and blocks."""
    wide = {
        CENTERS: (0, d_mlp),
        RADII: (0,),
        POINTS: (0, d_mlp),
        DOWN: (0, d_mlp),
        UP: (0, d_model),
        SCALES: (0,),
    }
    tensors = {name: torch.zeros(shape, device=device) for name, shape in wide.items()}
    counts = {name: torch.zeros(0, dtype=torch.long, device=device) for name in (OWNERS, BLOCKS, ENDS)}
    return DynamicLoRA(layer, {**tensors, **counts}, {LABELS: [], "edits": 0})
