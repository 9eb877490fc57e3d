"""A prompt patch for tests: what any method's might do, without a sentence encoder."""

from torch import Tensor, ones

from nmke.edit import Edit
from nmke.facts import Fact
from nmke.prompting import PromptPatch

FACTS = (Fact("The capital of France is", "France", "the boat"),)


class Note(PromptPatch):
    """Puts one text in front of whatever holds a word, another in front of the rest."""

    kind = "test note"

    def front(self, text: str) -> str:
        found: str = self.settings["then" if self.settings["word"] in text else "otherwise"]
        return found


def note(then: str, otherwise: str = "", word: str = "", number: float = 0.0) -> Note:
    tensors: dict[str, Tensor] = {"numbers": ones(3) * number}
    return Note(tensors, {"then": then, "otherwise": otherwise, "word": word})


def edit_of(prompt: PromptPatch) -> Edit:
    return Edit("test", {}, FACTS, (), {}, prompt=prompt)
