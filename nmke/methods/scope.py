"""The scope of an edit: how likely a text asks for what was edited, from one cosine (SERAC's classifier, section 3.2).

SERAC's embedding variant compares vectors of the edit and of the text. Here the vectors are a ready sentence encoder's,
and only the head is trained: ``p = sigmoid(slope * cosine + intercept)``, a logistic regression on facts whose
paraphrases are in scope and whose neighbours are not, both sides with the same weight.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nmke.encoder import SentenceEncoder
from nmke.errors import EditError
from nmke.facts import Fact
from nmke.progress import Progress
from nmke.storage import home
from nmke.store import content_key, written_atomically

#: Weight of the squared slope, so that sides that do not overlap have a solution.
RIDGE = 1e-4
_STEPS = 100


@dataclass(frozen=True)
class ScopeHead:
    """``p = sigmoid(slope * cosine + intercept)``.

    Attributes:
        accuracy: on the pairs it was trained on, mean of both sides, at p = 0.5.
    """

    slope: float
    intercept: float
    accuracy: float

    def probability(self, cosine: float) -> float:
        """That a text is in scope, whose cosine with an edit this is."""
        logit = self.slope * cosine + self.intercept
        return 1 / (1 + math.exp(-logit)) if logit > -500 else 0.0


def train_head(facts: Sequence[Fact], encoder: SentenceEncoder, progress: Progress) -> ScopeHead:
    """The head for an encoder, from facts with paraphrases and neighbours; their cosines are kept on the disk.

    Raises:
        EditError: the facts have no paraphrases, or no neighbours.
        Cancelled: from ``progress``.
    """
    pairs = [(fact.prompt, text, 1) for fact in facts for text in fact.paraphrases]
    pairs += [(fact.prompt, each.prompt, 0) for fact in facts for each in fact.neighborhood]
    labels = torch.tensor([label for _, _, label in pairs], dtype=torch.long)
    if not 0 < int(labels.sum()) < len(labels):
        raise EditError(
            "The scope classifier needs facts with paraphrases and with neighbours to be trained on.",
            "Name another file of facts, or 'builtin'.",
        )
    return fit(_cosines(pairs, encoder, progress), labels)


def fit(cosines: Float[Tensor, " pair"], labels: Int[Tensor, " pair"]) -> ScopeHead:
    """Logistic regression by Newton's method in float64, both labels weighted alike."""
    x = torch.stack([cosines.double(), torch.ones(len(cosines), dtype=torch.float64)], dim=1)
    y = labels.double()
    weight = torch.where(y == 1, 0.5 / y.sum(), 0.5 / (1 - y).sum())
    penalty = torch.diag(torch.tensor([RIDGE, 0.0], dtype=torch.float64))
    w = torch.zeros(2, dtype=torch.float64)
    for _ in range(_STEPS):
        p = (x @ w).sigmoid()
        gradient = x.T @ (weight * (p - y)) + penalty @ w
        hessian = (x.T * (weight * p * (1 - p))) @ x + penalty
        step = torch.linalg.solve(hessian + 1e-12 * torch.eye(2, dtype=torch.float64), gradient)
        w = w - step * min(1.0, 5.0 / float(step.norm()))
        if float(step.norm()) < 1e-10:
            break
    right = ((x @ w > 0) == (y == 1)).double()
    sides = [float(right[y == side].mean()) for side in (0, 1)]
    return ScopeHead(float(w[0]), float(w[1]), sum(sides) / 2)


def _cosines(
    pairs: Sequence[tuple[str, str, int]], encoder: SentenceEncoder, progress: Progress
) -> Float[Tensor, " pair"]:
    told = hashlib.sha256("\0".join(text for pair in pairs for text in pair[:2]).encode()).hexdigest()
    file = home() / "embeddings" / f"{content_key(encoder=encoder.digest, pairs=told)}.safetensors"
    try:
        kept = load_file(file)["cosines"]
        if kept.shape == (len(pairs),):
            return kept
    except (OSError, KeyError, ValueError, SafetensorError):
        pass
    texts = list(dict.fromkeys(text for pair in pairs for text in pair[:2]))
    vectors = encoder.encode(texts, progress, "encoding the scope examples")
    place = {text: number for number, text in enumerate(texts)}
    cosines = torch.stack([vectors[place[a]] @ vectors[place[b]] for a, b, _ in pairs])
    with written_atomically(file) as temporary:
        save_file({"cosines": cosines}, temporary)
    return cosines
