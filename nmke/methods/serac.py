"""SERAC: a memory of edits, a classifier of their scope, and a model for what lies in it (Mitchell et al., ICML 2022).

arXiv 2206.06520, section 3. Nothing of the model changes. Each text is compared with every edit in the memory; where
the likeliest edit's probability exceeds the threshold, the counterfactual model answers with that edit at hand, and
else the model answers as if it had never been edited. Neither part is trained for the model at hand.

What stands in for the parts of the paper, whose classifier is a DistilBERT and whose counterfactual model a T5-small,
both trained on thousands of edits:

* The scope classifier is the paper's embedding variant with vectors of a ready sentence encoder and a logistic head,
  trained in a second on facts with paraphrases and neighbours (:mod:`nmke.methods.scope`); the paper's threshold is
  0.5.
* The counterfactual model is the same model with the edit put in front: the edit and the question stand in IKE's form
  without its demonstrations. The paper concatenates the two as well, but has a small model of its own for the answer.

The text that is classified is all that is read up to the answer; the encoder sees its first 256 word pieces.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from nmke.config import Config
from nmke.edit import Edit
from nmke.encoder import DEFAULT, SentenceEncoder, load_encoder
from nmke.facts import Fact
from nmke.methods.base import Method
from nmke.methods.closed_form import Stopwatch
from nmke.methods.demonstrations import BUILTIN, facts_of
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
from nmke.methods.scope import ScopeHead, train_head
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.tokens import encode, require_fits


class SERACConfig(Config):
    """The scope classifier's settings."""

    threshold: float = Field(
        0.5,
        ge=0,
        lt=1,
        title="Threshold",
        description="A text is in an edit's scope above this probability; 0.5 in the paper, 0 takes everything in.",
    )
    trained_on: str = Field(
        BUILTIN,
        min_length=1,
        title="Trained on",
        description="A file of facts with paraphrases and neighbours for the scope classifier, or 'builtin' for the "
        "built-in examples.",
    )
    encoder: str = Field(
        DEFAULT,
        min_length=1,
        title="Sentence encoder",
        description="Compares texts with edits: a known name, a local folder, or a Hugging Face id.",
    )


class EditMemory(NearestFact):
    """Edits, one of which stands in front of texts in its scope."""

    kind = "memory of edits"

    def front(self, text: str) -> str:
        place, probability = self.scope(text)
        if probability <= self.settings["threshold"]:
            return ""
        return head(self.settings["facts"][place]["new_fact"])

    def scope(self, text: str) -> tuple[int, float]:
        """The edit nearest to a text, and the probability that the text is in its scope."""
        place, cosine = self.nearest(text)
        classifier = ScopeHead(self.settings["slope"], self.settings["intercept"], 0.0)
        return place, classifier.probability(cosine)

    def helper_parameters(self) -> int:
        return self.encoder().n_parameters + 2


class SERAC(Method):
    """A memory of edits behind a scope classifier; the model itself, told of the edit, is the counterfactual model."""

    name = "serac"
    title = "SERAC"
    about = (
        "Keeps edits in a memory beside the model; a scope classifier decides which texts they concern (Mitchell et "
        "al., ICML 2022). In the place of its counterfactual model the model itself answers, with the edit in front."
    )
    config_class = SERACConfig
    in_front = True

    def _plan(
        self, session: EditSession, facts: Sequence[Fact], config: SERACConfig, progress: Progress
    ) -> Edit:
        model, watch = session.model, Stopwatch()
        before = prompt_of(session, EditMemory)
        with watch.stage("total"):
            for fact in facts:
                require_fits(model.tokenizer, fact, model.context_length)
                fitting(model, fact, (), 0)
            with watch.stage("scope"):
                encoder = load_encoder(config.encoder, progress)
                classifier = train_head(facts_of(config.trained_on), encoder, progress)
            patch = grown(before, facts, encoder, classifier, config)
            edit = edit_in_front(self.name, config, facts, patch)
            with watch.stage("checking"):
                probabilities = check(session, edit, progress)
        details: dict[str, Any] = {
            "target_probability": probabilities,
            "scope": {
                "slope": classifier.slope,
                "intercept": classifier.intercept,
                "accuracy_in_training": classifier.accuracy,
            },
            "tokens_in_front": [len(encode(model.tokenizer, head(statement(fact)))) for fact in facts],
            "facts_in_session": len(patch.settings["facts"]),
        }
        return replace(edit, seconds=watch.seconds, details=details)


def grown(
    before: EditMemory | None,
    facts: Sequence[Fact],
    encoder: SentenceEncoder,
    classifier: ScopeHead,
    config: SERACConfig,
) -> EditMemory:
    """The memory with some facts more; a prompt that is there already gets the new answer.

    The classifier is this edit's, for all that is in the memory.
    """
    prompts = [fact.prompt for fact in facts]
    entries, rows = kept_facts(before, prompts, encoder.encode(prompts))
    entries += [{"prompt": fact.prompt, "new_fact": statement(fact)} for fact in facts]
    settings = {
        "encoder": config.encoder,
        "facts": entries,
        "slope": classifier.slope,
        "intercept": classifier.intercept,
        "threshold": config.threshold,
    }
    return EditMemory({"prompts": rows}, settings)
