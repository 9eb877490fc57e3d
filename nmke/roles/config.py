"""Settings of roles: what is read on a question, and when a neuron counts as active."""

from typing import Literal

from pydantic import Field

from nmke.config import Config
from nmke.questions import Form
from nmke.scores import AttributionConfig

#: Looser than for an edit's masks: a role asks where a score stands among thousands, not for its last digit.
TOLERANCE = 1e-2

Rule = Literal["top share", "sign test"]


class RolesConfig(Config):
    """How neurons are scored on questions, and the rule that makes one active in a task."""

    attribution: AttributionConfig = Field(
        AttributionConfig(tolerance=TOLERANCE),
        title="Attribution",
        description="How a neuron is scored on one question.",
    )
    form: Form = Field(
        "letters",
        title="Form of the question",
        description="Letters: MMLU's own form with lettered choices. Cloze: the question alone, answered in words.",
    )
    target: Literal["top1", "answer"] = Field(
        "answer",
        title="Token followed",
        description="Which token's probability is followed: the first token of the right answer, or the model's own "
        "next token (the authors' choice for facts; on questions a small model often ends or breaks the line "
        "instead of answering). MPC follows none.",
    )
    rule: Rule = Field(
        "top share",
        title="Active in a task when",
        description="Top share: its score is among its layer's top q on at least the share s of the task's "
        "questions. Sign test: its score is above its layer's mean on significantly more than half of them.",
    )
    top_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        title="Top share q",
        description="On one question, a neuron is active when its score is among this share of its layer's highest.",
    )
    task_share: float = Field(
        0.5,
        gt=0,
        le=1,
        title="Share of questions s",
        description="A neuron is active in a task when it is active on at least this share of its questions.",
    )
    level: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        title="Level a",
        description="Of the one-sided exact binomial test that a score is above its layer's mean on more than half "
        "of the task's questions.",
    )
    correction: Literal["none", "bonferroni", "fdr"] = Field(
        "bonferroni",
        title="Many tests",
        description="A layer's neurons are tested together on each task. Bonferroni: level a divided by their "
        "number. FDR: Benjamini and Hochberg's rule, a the share of false ones among the active. None: each test "
        "alone.",
    )
    resamples: int = Field(
        200,
        ge=0,
        le=5000,
        title="Resamples",
        description="How often the questions of each task are drawn anew, for intervals and stability; 0: never.",
    )
    seed: int = Field(0, ge=0, title="Seed", description="Of the resampling.")


#: The settings that scores depend on; the others only re-assign.
SCORED = ("attribution", "form", "target")
