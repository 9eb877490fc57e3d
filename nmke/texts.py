"""The statistics text: a file, a hub data set, or the default Wikipedia articles, cut into windows of tokens."""

import hashlib
import random
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from nmke.errors import EditError, ResourceError
from nmke.model import EditableModel
from nmke.progress import Progress
from nmke.resources import default_corpus

HUB_PREFIX = "hf:"
HUB_PARAGRAPHS = 20_000


def text_hash(text: str) -> str:
    """Identifies a text: a file by its bytes, the default and hub data sets by name."""
    path = Path(text)
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return text


def read_paragraphs(text: str, progress: Progress) -> list[str]:
    """The paragraphs of a text, one a line.

    Raises:
        ResourceError: no such file, not UTF-8, or the hub cannot be reached.
    """
    if text.startswith(HUB_PREFIX):
        return _hub_paragraphs(text.removeprefix(HUB_PREFIX), progress)
    path = default_corpus(progress) if text == "wikipedia" else Path(text)
    if not path.is_file():
        raise ResourceError(
            f"There is no text file {text!r}.", "Give the path of a UTF-8 text, or 'wikipedia'."
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ResourceError(f"{path.name} is not UTF-8 text.", "Save it as UTF-8.") from None
    return [line.strip() for line in lines if line.strip()]


def read_windows(
    model: EditableModel, text: str, tokens: int, window: int, seed: int, progress: Progress
) -> Int[Tensor, "window position"]:
    """Token windows drawn from shuffled paragraphs, -1 where the last one is not full.

    Paragraphs are joined by their own order after shuffling; a window may cross from one into the next.

    Raises:
        EditError: fewer than one window of tokens.
    """
    paragraphs = read_paragraphs(text, progress)
    random.Random(seed).shuffle(paragraphs)
    ids: list[int] = []
    for number, paragraph in enumerate(paragraphs):
        if number % 64 == 0:
            progress.update("tokenizing the statistics text", len(ids), tokens)
        ids.extend(paragraph_tokens(model, paragraph))
        if len(ids) >= tokens:
            break
    if len(ids) < window:
        raise EditError(
            f"The statistics text has only {len(ids)} tokens; one window needs {window}.",
            "Give a longer text or a shorter window.",
        )
    ids = ids[:tokens]
    ids += [-1] * (-len(ids) % window)
    return torch.tensor(ids, dtype=torch.long).view(-1, window)


def paragraphs_read(model: EditableModel, text: str, tokens: int, seed: int, progress: Progress) -> list[str]:
    """The paragraphs that :func:`read_windows` reads with these settings, by the same draw."""
    paragraphs = read_paragraphs(text, progress)
    random.Random(seed).shuffle(paragraphs)
    count = 0
    for number, paragraph in enumerate(paragraphs, 1):
        if number % 64 == 1:
            progress.update("finding what the statistics read", count, tokens)
        count += len(paragraph_tokens(model, paragraph))
        if count >= tokens:
            return paragraphs[:number]
    return paragraphs


def paragraph_tokens(model: EditableModel, paragraph: str) -> list[int]:
    """A paragraph's tokens as statistics read them: with the line's end, without a start token."""
    return model.tokenizer(paragraph + "\n", add_special_tokens=False).input_ids


def _hub_paragraphs(name: str, progress: Progress) -> list[str]:
    from datasets import load_dataset

    paragraphs: list[str] = []
    try:
        rows = load_dataset(name, split="train", streaming=True)
        for row in rows:
            paragraphs += [line.strip() for line in row["text"].splitlines() if line.strip()]
            progress.update("fetching the statistics text", len(paragraphs), HUB_PARAGRAPHS)
            if len(paragraphs) >= HUB_PARAGRAPHS:
                break
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        raise ResourceError(
            f"The hub data set {name!r} could not be read: {str(problem).splitlines()[0][:200]}",
            "Give the path of a text file, or 'wikipedia'.",
        ) from problem
    return paragraphs
