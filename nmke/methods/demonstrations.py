"""What IKE shows a model: solved examples of new facts, found by a sentence encoder, and the new fact itself.

A demonstration is made of another fact, in one of three kinds (Zheng et al., EMNLP 2023, section 3.2):

    copy      New Fact: p t*    Prompt: p t*       the model shall repeat the new fact
    update    New Fact: p t*    Prompt: p' t*      ... also where it is asked in other words
    retain    New Fact: p t*    Prompt: o o*       ... and answer as before where something else is asked

Facts without a paraphrase, or without a neighbour whose answer is known, are copied instead.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nmke.encoder import SentenceEncoder
from nmke.errors import EditError, FactError
from nmke.examples import builtin_facts
from nmke.facts import Fact
from nmke.methods.in_front import shown, statement
from nmke.progress import Progress
from nmke.readers import read_facts
from nmke.storage import home
from nmke.store import content_key, written_atomically

#: Demonstrations are made of the built-in examples.
BUILTIN = "builtin"
COPY, UPDATE, RETAIN = "copy", "update", "retain"


@dataclass(frozen=True)
class Pool:
    """Facts that demonstrations are made of.

    Attributes:
        facts: each may be shown once.
        vectors: of each as a copy, by the encoder [fact, width].
    """

    facts: tuple[Fact, ...]
    vectors: Float[Tensor, "fact width"]

    def nearest(self, fact: Fact, query: Float[Tensor, " width"]) -> list[Fact]:
        """The facts by falling cosine with the query, but for those about the subject itself."""
        order = torch.argsort(self.vectors @ query, descending=True, stable=True).tolist()
        subject = fact.subject.casefold()
        return [self.facts[index] for index in order if self.facts[index].subject.casefold() != subject]


def read_pool(source: str, encoder: SentenceEncoder, progress: Progress) -> Pool:
    """The facts of a file, or the built-in examples, with their vectors; those are kept on the disk.

    Raises:
        EditError: the file cannot be read as facts.
        Cancelled: from ``progress``.
    """
    facts = facts_of(source)
    texts = [shown(statement(fact), statement(fact)) for fact in facts]
    told = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    file = home() / "embeddings" / f"{content_key(encoder=encoder.digest, texts=told)}.safetensors"
    vectors = _read_vectors(file, len(facts), encoder.width)
    if vectors is None:
        vectors = encoder.encode(texts, progress, "encoding the demonstrations")
        with written_atomically(file) as temporary:
            save_file({"vectors": vectors}, temporary)
    return Pool(facts, vectors)


def facts_of(source: str) -> tuple[Fact, ...]:
    """The facts of a file, or the built-in examples.

    Raises:
        EditError: the file cannot be read as facts.
    """
    return builtin_facts() if source == BUILTIN else _read_file(Path(source).expanduser())


def kinds_of(k: int, copies: int, updates: int, retains: int) -> list[str]:
    """The kinds of ``k`` demonstrations, at these weights; what is left over goes to the largest rests."""
    weights = {COPY: copies, UPDATE: updates, RETAIN: retains}
    whole = sum(weights.values())
    counts = {kind: k * weight // whole for kind, weight in weights.items()}
    rests = sorted(weights, key=lambda kind: -(k * weights[kind] % whole))
    for kind in rests[: k - sum(counts.values())]:
        counts[kind] += 1
    return [kind for kind, count in counts.items() for _ in range(count)]


def demonstrate(fact: Fact, near: Sequence[Fact], kinds: Sequence[str], seed: int) -> list[str]:
    """One demonstration of each fact, the farthest first, so that the nearest stands right before the new fact.

    Args:
        fact: which is edited; its own prompts are never shown.
        near: the nearest first.
        kinds: shuffled over the facts, as published.
    """
    draw = random.Random(f"{seed} {statement(fact)}")
    shuffled = list(kinds)
    draw.shuffle(shuffled)
    own = {fact.prompt, *fact.paraphrases}
    own |= {each.prompt for each in fact.neighborhood} | {each.prompt for each in fact.portability}
    made = []
    for other, kind in zip(near, shuffled, strict=False):
        asked = statement(other)
        choices: list[str] = []
        if kind == UPDATE:
            choices = [f"{text} {other.target_new}" for text in other.paraphrases if text not in own]
        elif kind == RETAIN:
            known = [each for each in other.neighborhood if each.answer and each.prompt not in own]
            choices = [f"{each.prompt} {each.answer}" for each in known]
        made.append(shown(statement(other), draw.choice(choices) if choices else asked))
    return made[::-1]


def _read_file(path: Path) -> tuple[Fact, ...]:
    try:
        facts = read_facts(path.read_bytes(), name=path.name).facts
    except OSError as problem:
        raise EditError(
            f"The file of demonstrations {str(path)!r} cannot be read ({problem.strerror}).",
            f"Name a file of facts, or {BUILTIN!r}.",
        ) from problem
    except FactError as problem:
        raise EditError(
            f"The file of demonstrations cannot be used: {problem.what}", problem.remedy
        ) from problem
    return facts


def _read_vectors(file: Path, count: int, width: int) -> Tensor | None:
    try:
        vectors = load_file(file)["vectors"]
    except (OSError, KeyError, ValueError, SafetensorError):
        return None
    return vectors if vectors.shape == (count, width) else None
