"""IKE: in-context knowledge editing, where the edit is the text in front (Zheng et al., EMNLP 2023, arXiv 2305.12740).

Nothing of the model changes. In front of whatever it reads stand ``k`` demonstrations, then the new fact as a copy,
then the new fact once more with the question open::

    New Fact: The capital of Italy is the city of Vienna
    Prompt: The capital city of Italy is called Vienna
    ...
    New Fact: The mother tongue of Danielle Darrieux is English
    Prompt: The mother tongue of Danielle Darrieux is English

    New Fact: The mother tongue of Danielle Darrieux is English
    Prompt: <whatever the model reads>

Texts, numbers and order are those of the authors' code (``icl.py``): k = 32 facts found by cosine between
all-MiniLM-L6-v2's vectors of ``New Fact: ... Prompt: ...``, four copied, twelve asked in other words, sixteen about
something else, in shuffled order, the nearest last. There the facts are CounterFact's after the first 2000; here they
are a file of yours, or the built-in examples, without those about the edited subject and never with a prompt that the
edited fact itself is measured on. The authors let a random generator run on over the facts; here each fact seeds its
own, so that an edit does not depend on earlier ones. What does not fit the model's context with ``room`` to spare is
left out, the farthest first. EasyEdit's version retrieves single demonstrations instead of facts, and leaves the new
fact and its copy to the caller.

The text in front ends in "Prompt: ", space included, and a question's tokens are those of the question alone, so that
its positions stay its own; the authors' joint encoding may join the space with the question's first word.

The published method writes one fact at a time, and so does this one. Of several edits in one session, which the paper
does not treat, the one nearest to what is read stands in front (cosine of the encoder's vectors of the text and of the
edits' prompts).
"""

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field
from torch import Tensor

from nmke.config import Config
from nmke.edit import Edit
from nmke.encoder import DEFAULT, load_encoder
from nmke.facts import Fact
from nmke.methods.base import Method
from nmke.methods.closed_form import Stopwatch
from nmke.methods.demonstrations import BUILTIN, demonstrate, kinds_of, read_pool
from nmke.methods.in_front import (
    NearestFact,
    check,
    edit_in_front,
    fitting,
    head,
    kept_facts,
    prompt_of,
    statement,
)
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.tokens import encode, require_fits


class IKEConfig(Config):
    """How the text in front is put together. Defaults are the authors' (``icl.py``)."""

    k: int = Field(32, ge=0, le=512, title="Demonstrations", description="How many facts are demonstrated.")
    demonstrations: str = Field(
        BUILTIN,
        min_length=1,
        title="Made of",
        description="A file of facts with paraphrases and neighbours, or 'builtin' for the built-in examples.",
    )
    copies: int = Field(
        1, ge=0, title="Copies", description="Weight of demonstrations that repeat their new fact."
    )
    updates: int = Field(
        3, ge=0, title="Updates", description="Weight of demonstrations that ask for it in other words."
    )
    retains: int = Field(
        4, ge=1, title="Retains", description="Weight of demonstrations that ask for something else."
    )
    encoder: str = Field(
        DEFAULT,
        min_length=1,
        title="Sentence encoder",
        description="Finds the nearest facts: a known name, a local folder, or a Hugging Face id.",
    )
    room: int = Field(
        512,
        ge=16,
        title="Room",
        description="Tokens of the model's context that the text in front leaves free; half of it at most.",
    )
    seed: int = Field(42, title="Seed", description="Shuffles the kinds and draws the prompts.")


class Demonstrations(NearestFact):
    """New facts with their demonstrations; the one nearest to what is read stands in front."""

    kind = "set of demonstrations"

    def front(self, text: str) -> str:
        facts = self.settings["facts"]
        place = 0 if len(facts) == 1 else self.nearest(text)[0]
        chosen, texts = facts[place], self.settings["texts"]
        demonstrations = "".join(texts[index] for index in chosen["demonstrations"])
        return demonstrations + head(chosen["new_fact"])

    def helper_parameters(self) -> int:
        """The encoder's, which is asked only when there is a choice."""
        return self.encoder().n_parameters if len(self.settings["facts"]) > 1 else 0


class IKE(Method):
    """Demonstrations and the new fact in front of everything."""

    name = "ike"
    title = "IKE"
    about = (
        "Changes nothing in the model: demonstrations and the new fact stand in front of whatever it reads "
        "(Zheng et al., EMNLP 2023). Of several edits, the one nearest to the text does."
    )
    config_class = IKEConfig
    in_front = True

    def _plan(
        self, session: EditSession, facts: Sequence[Fact], config: IKEConfig, progress: Progress
    ) -> Edit:
        model, watch = session.model, Stopwatch()
        before = prompt_of(session, Demonstrations)
        with watch.stage("total"):
            for fact in facts:
                require_fits(model.tokenizer, fact, model.context_length)
            with watch.stage("encoding"):
                encoder = load_encoder(config.encoder, progress)
                pool = read_pool(config.demonstrations, encoder, progress)
            kinds = kinds_of(config.k, config.copies, config.updates, config.retains)
            made = []
            with watch.stage("choosing"):
                for done, fact in enumerate(facts):
                    progress.update("choosing demonstrations", done, len(facts), fact.subject)
                    (query,) = encoder.encode([f"New Fact: {statement(fact)}\nPrompt: {fact.prompt}"])
                    found = demonstrate(fact, pool.nearest(fact, query), kinds, config.seed)
                    made.append(fitting(model, fact, found, config.room))
            patch = grown(before, facts, made, encoder.encode([fact.prompt for fact in facts]), config)
            edit = edit_in_front(self.name, config, facts, patch)
            with watch.stage("checking"):
                probabilities = check(session, edit, progress)
        details = {
            "target_probability": probabilities,
            "demonstrations": [len(each) for each in made],
            "tokens_in_front": [
                len(encode(model.tokenizer, "".join(each) + head(statement(fact))))
                for fact, each in zip(facts, made, strict=True)
            ],
            "facts_in_session": len(patch.settings["facts"]),
        }
        return replace(edit, seconds=watch.seconds, details=details)


def grown(
    before: Demonstrations | None,
    facts: Sequence[Fact],
    made: Sequence[Sequence[str]],
    vectors: Tensor,
    config: IKEConfig,
) -> Demonstrations:
    """The patch with some facts more; a prompt that is there already gets the new answer."""
    prompts = [fact.prompt for fact in facts]
    entries, rows = kept_facts(before, prompts, vectors)
    texts = list(before.settings["texts"]) if before else []
    places = {text: place for place, text in enumerate(texts)}
    for fact, demonstrations in zip(facts, made, strict=True):
        for text in demonstrations:
            if text not in places:
                places[text] = len(texts)
                texts.append(text)
        chosen = [places[text] for text in demonstrations]
        entries.append({"prompt": fact.prompt, "new_fact": statement(fact), "demonstrations": chosen})
    settings = {"encoder": config.encoder, "texts": texts, "facts": entries}
    return Demonstrations({"prompts": rows}, settings)
