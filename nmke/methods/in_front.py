"""What methods share whose edit is text in front: its form, what fits, what was there before, and what comes of it."""

from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from nmke.config import Config
from nmke.edit import Edit
from nmke.encoder import SentenceEncoder, load_encoder
from nmke.errors import EditError, FactError
from nmke.facts import Fact
from nmke.forcing import answer_all
from nmke.model import EditableModel
from nmke.progress import Progress
from nmke.prompting import PromptPatch
from nmke.session import EditSession
from nmke.tokens import encode, encode_continuation

_Patch = TypeVar("_Patch", bound=PromptPatch)


class NearestFact(PromptPatch):
    """Facts, one of which may stand in front of a text: the one whose prompt a sentence encoder finds nearest.

    ``tensors["prompts"]`` are the vectors of the facts' prompts, ``settings["facts"]`` the facts,
    ``settings["encoder"]`` the encoder's name.
    """

    def nearest(self, text: str) -> tuple[int, float]:
        """The nearest fact's place, and the cosine between its prompt and the text."""
        cosines = self.tensors["prompts"] @ self.encoder().encode([text])[0]
        place = int(cosines.argmax())
        return place, float(cosines[place])

    def encoder(self) -> SentenceEncoder:
        """The encoder, loaded when it is first needed."""
        return load_encoder(self.settings["encoder"])


def edit_in_front(name: str, config: Config, facts: Sequence[Fact], patch: PromptPatch) -> Edit:
    """A method's edit whose only change is what stands in front."""
    return Edit(name, config.model_dump(mode="json"), tuple(facts), (), {}, prompt=patch)


def statement(fact: Fact) -> str:
    """The fact as one sentence."""
    return f"{fact.prompt} {fact.target_new}"


def shown(new_fact: str, asked: str) -> str:
    """One demonstration, or with an empty ``asked`` what stands right before a question."""
    return f"New Fact: {new_fact}\nPrompt: {asked}\n\n" if asked else f"New Fact: {new_fact}\nPrompt: "


def head(new_fact: str) -> str:
    """What stands in front without demonstrations."""
    return shown(new_fact, new_fact) + shown(new_fact, "")


def fitting(model: EditableModel, fact: Fact, demonstrations: Sequence[str], room: int) -> list[str]:
    """The last of the demonstrations that fit the context with the fact itself and some room.

    Raises:
        FactError: not even the new fact fits.
    """
    tokenizer, own = model.tokenizer, head(statement(fact))
    asked = len(encode(tokenizer, fact.prompt)) + len(
        encode_continuation(tokenizer, fact.prompt, fact.target_new)
    )
    left = model.context_length - len(encode(tokenizer, own)) - asked
    if left < 0:
        raise FactError(
            f"The new fact about {fact.subject!r} does not fit in front of its own prompt: this model reads at most "
            f"{model.context_length} tokens.",
            "Shorten the prompt.",
            field="prompt",
        )
    left -= min(room, model.context_length // 2)
    kept: list[str] = []
    for text in reversed(demonstrations):
        left -= len(tokenizer(text, add_special_tokens=False).input_ids)
        if left < 0:
            break
        kept.insert(0, text)
    return kept


def check(session: EditSession, edit: Edit, progress: Progress) -> list[float]:
    """P(first token of the target) after each fact's prompt, with the edit in force."""
    found = []
    with session.trying(edit):
        for done, fact in enumerate(edit.facts):
            progress.update("reading behind the edit", done, len(edit.facts), fact.subject)
            (answer,) = answer_all(session.model, [(fact.prompt, fact.target_new)])
            found.append(answer.first_probability)
    return found


def kept_facts(
    before: PromptPatch | None, prompts: Collection[str], vectors: Float[Tensor, "new width"]
) -> tuple[list[dict[str, Any]], Float[Tensor, "fact width"]]:
    """The facts in front so far, but for those whose prompt is edited again; and their vectors with the new ones."""
    entries = list(before.settings["facts"]) if before else []
    kept = [place for place, entry in enumerate(entries) if entry["prompt"] not in prompts]
    rows = torch.cat([before.tensors["prompts"][kept], vectors]) if before and kept else vectors
    return [entries[place] for place in kept], rows


def prompt_of(session: EditSession, kind: type[_Patch]) -> _Patch | None:
    """What the session has in front, for a method that would let it grow.

    Raises:
        EditError: another method's prompt stands there.
    """
    there = session.prompt
    if there is not None and not isinstance(there, kind):
        raise EditError(
            f"A {there.kind} already stands in front of everything that is read.", "Undo those edits first."
        )
    return there
