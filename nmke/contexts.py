"""Context templates: short texts put in front of a prompt, so that an edit does not hang on one opening.

``{}`` and five more, each a text followed by the prompt, made once per model and seed, then read from disk:

- the model's own: continuations of 10 tokens sampled from "The", "Therefore", "Because", "I", "You", each followed by
  ``. {}`` (MEMIT, section 4.3, and its code);
- ordinary text: sentences of 8 to 20 tokens out of different paragraphs of a text. A small model's continuations are
  much alike and hardly English; under whole sentences of a text an edit reaches more paraphrases
  (benchmarks/trade_off.md).
"""

import json
import random
import re

import torch

from nmke.errors import EditError
from nmke.model import EditableModel
from nmke.moments import StatisticsConfig
from nmke.progress import Progress, Silent
from nmke.resources import home
from nmke.sites import FINAL
from nmke.store import content_key, written_atomically
from nmke.texts import paragraphs_read, text_hash
from nmke.tokens import encode, pad

OPENINGS = ("The", "Therefore", "Because", "I", "You")
TOKENS = 10
TOP_K = 5
#: Tokens of a sentence that may stand in front of a prompt, fewest and most.
SENTENCE_TOKENS = (8, 20)
#: From a letter, the paragraph's first or after a sentence's end, to a full stop after a word that is no initial;
#: nothing within that ends a sentence or stands for the prompt.
_SENTENCE = re.compile(r"(?:(?<=^)|(?<=\w{3}[.!?]\s))[^\W\d_][^.!?{}]*\w{3}\.(?=\s|$)")


def context_templates(
    model: EditableModel,
    seed: int = 0,
    progress: Progress | None = None,
    text: StatisticsConfig | None = None,
) -> tuple[str, ...]:
    """The six templates of a model, the bare ``{}`` first.

    The model's own are computed with the unedited model, so that they do not drift with the edits.

    Args:
        text: take sentences from the paragraphs that statistics with these settings read, so that text held out from
            them is held out from the contexts too; None has the model write its own.

    Raises:
        ResourceError: the text cannot be read.
        EditError: too few of its paragraphs have a sentence of that length.
    """
    of = {"openings": OPENINGS, "tokens": TOKENS, "top_k": TOP_K}
    if text is not None:
        of = {"text": text_hash(text.text), "read": (text.tokens, text.seed), "tokens": SENTENCE_TOKENS}
    key = content_key(weights=model.weight_hash, seed=seed, **of)
    path = home() / "contexts" / f"{key}.json"
    if path.exists():
        return tuple(json.loads(path.read_text(encoding="utf-8")))
    progress = progress or Silent()
    if text is None:
        with model.weights_in({}):
            templates = ("{}", *(_as_template(written) for written in _sample(model, seed, progress)))
    else:
        templates = ("{}", *(f"{sentence} {{}}" for sentence in _sentences(model, text, seed, progress)))
    with written_atomically(path) as temporary:
        temporary.write_text(json.dumps(templates, ensure_ascii=False), encoding="utf-8")
    return templates


def sentences_of(paragraph: str) -> list[str]:
    """Its whole sentences; one that begins in lower case, of whatever alphabet, is none."""
    return [text for text in _SENTENCE.findall(paragraph) if not text[0].islower()]


def _as_template(text: str) -> str:
    return text.replace("{", " ").replace("}", " ").strip() + ". {}"


def _sentences(model: EditableModel, text: StatisticsConfig, seed: int, progress: Progress) -> list[str]:
    """As many as there are openings, each the first that fits of its paragraph, paragraphs in an order of the seed."""
    paragraphs = paragraphs_read(model, text.text, text.tokens, text.seed, progress)
    random.Random(seed).shuffle(paragraphs)
    fewest, most = SENTENCE_TOKENS
    found: list[str] = []
    for paragraph in paragraphs:
        for sentence in sentences_of(paragraph):
            if fewest <= len(encode(model.tokenizer, sentence)) <= most and sentence not in found:
                found.append(sentence)
                break
        if len(found) == len(OPENINGS):
            return found
    raise EditError(
        f"The statistics text has {len(found)} paragraphs with a sentence of {fewest} to {most} tokens; "
        f"{len(OPENINGS)} are needed for the contexts.",
        "Give a longer text of whole sentences, or let the model write the contexts.",
    )


@torch.no_grad()
def _sample(model: EditableModel, seed: int, progress: Progress) -> list[str]:
    """Continue every opening by top-k sampling; on the CPU generator, so that a seed means the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    rows = [encode(model.tokenizer, opening) for opening in OPENINGS]
    for step in range(TOKENS):
        progress.update("writing contexts", step, TOKENS)
        batch = pad(rows, 0)
        final = model.run(batch, [FINAL])[FINAL]
        places = torch.arange(len(rows)), batch.last
        logits, tokens = model.logits(final[places]).cpu().topk(TOP_K, dim=-1)
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        for row, token in zip(rows, tokens.gather(1, drawn)[:, 0].tolist(), strict=True):
            row.append(token)
    return [model.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
