"""WISE: facts in a side memory that answers where its activation is strong (Wang et al., NeurIPS 2024, 2405.14768).

One fact an edit, as published. The edited layer's side memory (:mod:`nmke.methods.side_memory`) is trained by plain
gradient descent, only in its shard's entries, on (section 2.3, equations 5 and 6)

    mean over contexts of -log p(target_new)              per token of the target
    + margin loss with alpha, beta, gamma                 the edit's tokens against those of an irrelevant text

and after each step held to ``norm_constraint`` around the layer's own weights, entry by entry. The threshold is
``act_ratio`` times the smallest margin any edit has on its own prompt.

Because routing is per token (see :mod:`nmke.methods.side_memory` for why), "the edit's tokens" are those that predict
the target: the prompt's last token and all but the last of the target. What stands before them is read by the layer's
own weights in training; the tokens a prompt shares with other texts ("The capital of") could not be told from them
anyway. Further differences to the published code: the margin of one edit is its smallest over these tokens of the bare
prompt, not a mean over whole padded texts; contexts are those all methods here share; the irrelevant text is drawn from
the statistics text, where published runs bring a sentence with every fact; no weight decay (the published 1e-5 also
decays entries outside of the shard); and ``decoys``, off by default. WISE-Retrieve and its replay are left out.

The layer's inputs do not change while its side memory is trained, nor does anything before the prompt's last token.
So keys and values before it are computed once, the layer's inputs too, and a step runs only the later layers on the few
tokens of the target (:mod:`nmke.replay`). Plainly (``plain=True``, the twin in tests, and what runs where there is no
replay) a step runs whole prompts through the whole model.
"""

from collections.abc import Sequence
from typing import Any

import torch

from nmke.contexts import context_templates
from nmke.edit import Edit
from nmke.facts import Fact
from nmke.methods.base import Method, module_at
from nmke.methods.closed_form import Stopwatch
from nmke.methods.side_memory import (
    SideMemory,
    grow,
)
from nmke.methods.wise_training import Forward, Lesson, WISEConfig, check, read_decoys, read_outside, train
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.tokens import (
    require_fits,
)


class WISE(Method):
    """A side memory with routing and sharded training."""

    name = "wise"
    title = "WISE"
    about = (
        "Trains facts into a side memory beside one late layer's down projection, which answers for tokens where its "
        "activation is strong (Wang et al., NeurIPS 2024; routed per token, the authors' code routes whole texts)."
    )
    config_class = WISEConfig
    facts_at_once = 1

    def guess(self, n_layers: int) -> dict[str, Any]:
        return {"layer": min(round(n_layers * 27 / 32), n_layers - 1)}

    def _plan(
        self, session: EditSession, facts: Sequence[Fact], config: WISEConfig, progress: Progress
    ) -> Edit:
        model, (fact,), watch = session.model, facts, Stopwatch()
        (layer,) = model.check_layers([config.layer])
        before = module_at(session, layer, SideMemory)
        with watch.stage("total"):
            templates = context_templates(model, config.context_seed, progress)
            require_fits(model.tokenizer, fact, model.context_length, templates)
            # The side memory that is there answers behind this very layer: training starts from it by itself.
            with session.active(modules={layer: None}):
                with watch.stage("reading"):
                    lesson = Lesson.of(model, fact, templates)
                    forward = Forward.prepare(model, lesson, layer)
                    number = before.edits if before else 0
                    outside = read_outside(model, layer, number, config, progress)
                    decoys = read_decoys(session, fact, number, config)
                    outside = torch.cat([outside, decoys.to(outside.device)])
                with watch.stage("training"):
                    trained = train(forward, outside, before, config, progress, fact.subject)
            memory = grow(before, layer, trained.difference, trained.min_act, config.model_dump())
            with watch.stage("checking"), session.active(modules={layer: memory}):
                routed, probability = check(model, lesson, memory)
        return Edit(
            method=self.name,
            config=config.model_dump(mode="json"),
            facts=tuple(facts),
            patches=(),
            keys={},
            modules=(memory,),
            seconds=watch.seconds,
            details={
                "target_probability": [probability],
                "routed_share": routed,
                "losses": trained.losses,
                "steps": len(trained.losses),
                "margin": trained.min_act,
                "largest_irrelevant_margin": trained.outside,
                "threshold": memory.threshold,
                "edits_in_memory": memory.edits,
                "memories": list(memory.memories),
                "ran": forward.ran,
                "templates": list(templates),
            },
        )
