"""Which abilities are judged, and on how many questions."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from nmke.config import Config

Task = Literal["mmlu", "gsm8k", "commonsense_qa", "bbh", "humaneval"]
TASKS: tuple[Task, ...] = ("mmlu", "gsm8k", "commonsense_qa", "bbh", "humaneval")
TITLES: Mapping[str, str] = MappingProxyType(
    {
        "mmlu": "MMLU",
        "gsm8k": "GSM8K",
        "commonsense_qa": "CommonsenseQA",
        "bbh": "BIG-Bench Hard",
        "humaneval": "HumanEval",
    }
)


class AbilityConfig(Config):
    """The tasks, how many questions of each, and how they are asked. All are zero-shot by default, as in the paper."""

    tasks: tuple[Task, ...] = Field(
        ("mmlu",),
        min_length=1,
        title="Tasks",
        description="MMLU and CommonsenseQA compare the probabilities of the answer letters; the others are written.",
    )
    subjects: tuple[str, ...] = Field(
        (),
        title="MMLU subjects",
        description="For example high_school_biology; empty takes all 57.",
    )
    limit: int | None = Field(
        None,
        ge=1,
        title="Questions",
        description="At most so many of each task; of MMLU of each subject, of BBH of each of its 27 tasks. "
        "Empty takes all.",
    )
    seed: int = Field(
        0,
        ge=0,
        title="Seed",
        description="Which questions a limit takes: 0 the first ones, as the harness does; others draw.",
    )
    mmlu_fewshot: int = Field(
        0,
        ge=0,
        le=5,
        title="MMLU examples",
        description="Solved questions of the same subject in front of each question; they come from the dev split.",
    )
    gsm8k_fewshot: int = Field(
        0,
        ge=0,
        le=8,
        title="GSM8K examples",
        description="0 is the harness's gsm8k without examples; 1 to 8 its gsm8k_cot with that many of the eight "
        "usual worked examples.",
    )
    batch_size: int = Field(
        8, ge=1, le=512, title="Batch size", description="Questions computed at once; changes only rounding."
    )
    most_tokens: int | None = Field(
        None,
        ge=1,
        le=4096,
        title="Longest answer",
        description="Tokens written at most; empty takes the harness's own: 256, for HumanEval 1024.",
    )
    run_code: bool = Field(
        False,
        title="Run the code the model writes",
        description="HumanEval is scored by running it, in a separate process that has no network and little time, "
        "and can write no file.",
    )

    @field_validator("tasks", "subjects")
    @classmethod
    def _none_twice(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("each only once")
        return names

    def fewshot(self, task: str) -> int:
        """How many solved examples stand in front of a question of the task."""
        return {"mmlu": self.mmlu_fewshot, "gsm8k": self.gsm8k_fewshot}.get(task, 0)
