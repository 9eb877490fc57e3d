"""Context templates: short texts put in front of a prompt, so that an edit does not hang on one opening.

``{}`` and five continuations of 10 tokens sampled from "The", "Therefore", "Because", "I", "You", each followed by
``. {}`` (MEMIT, section 4.3, and its code). Made once per model and seed, then read from disk.
"""

import json

import torch

from nmke.model import EditableModel
from nmke.progress import Progress, Silent
from nmke.resources import home
from nmke.store import content_key, written_atomically
from nmke.tokens import encode, pad

OPENINGS = ("The", "Therefore", "Because", "I", "You")
TOKENS = 10
TOP_K = 5


def context_templates(
    model: EditableModel, seed: int = 0, progress: Progress | None = None
) -> tuple[str, ...]:
    """The six templates of a model, the bare ``{}`` first.

    Computed with the unedited model, so that they do not drift with the edits.
    """
    key = content_key(weights=model.weight_hash, seed=seed, openings=OPENINGS, tokens=TOKENS, top_k=TOP_K)
    path = home() / "contexts" / f"{key}.json"
    if path.exists():
        return tuple(json.loads(path.read_text(encoding="utf-8")))
    with model.weights_in({}):
        templates = ("{}", *(_as_template(text) for text in _sample(model, seed, progress or Silent())))
    with written_atomically(path) as temporary:
        temporary.write_text(json.dumps(templates, ensure_ascii=False), encoding="utf-8")
    return templates


def _as_template(text: str) -> str:
    return text.replace("{", " ").replace("}", " ").strip() + ". {}"


@torch.no_grad()
def _sample(model: EditableModel, seed: int, progress: Progress) -> list[str]:
    """Continue every opening by top-k sampling; on the CPU generator, so that a seed means the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    rows = [encode(model.tokenizer, opening) for opening in OPENINGS]
    for step in range(TOKENS):
        progress.update("writing contexts", step, TOKENS)
        batch = pad(rows, 0)
        final = model.run(batch, [("final", -1)])[("final", -1)]
        places = torch.arange(len(rows)), batch.last
        logits, tokens = model.logits(final[places]).cpu().topk(TOP_K, dim=-1)
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        for row, token in zip(rows, tokens.gather(1, drawn)[:, 0].tolist(), strict=True):
            row.append(token)
    return [model.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
