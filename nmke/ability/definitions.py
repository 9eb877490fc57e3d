"""The tasks as lm-evaluation-harness defines them, with their questions from memory.

The harness is asked for its own definitions (the YAML files it is installed with); only where the questions come from
is exchanged, so prompts, answer filters and metrics are the published ones. HumanEval alone keeps its prompt and stops
but is scored by :mod:`nmke.ability.sandbox`: the harness's own metric runs the code unconfined, and asks the hub when
it is imported.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from nmke.ability.harness import INSTALL, Harness
from nmke.ability.origins import Document
from nmke.errors import ConfigError, ResourceError

#: Tokens the harness lets a model write where its definition names no number.
DEFAULT_TOKENS = 256


@dataclass(frozen=True)
class Definition:
    """Where the harness defines a task, and which of its figures is the score.

    Attributes:
        file: below the harness's task folder; ``{}`` is the part.
        metric: the harness's name of the score, with its answer filter after a comma where it has several.
        formula: one sentence.
    """

    file: str
    metric: str
    formula: str


DEFINITIONS: Mapping[str, Definition] = MappingProxyType(
    {
        "mmlu": Definition(
            "mmlu/default/mmlu_{}.yaml",
            "acc",
            "Share of questions whose right letter (A to D) is the likeliest next token of the four.",
        ),
        "gsm8k": Definition(
            "gsm8k/gsm8k.yaml",
            "exact_match,flexible-extract",
            "Share of questions whose last number in the written answer is the right one.",
        ),
        "commonsense_qa": Definition(
            "commonsense_qa/default.yaml",
            "acc",
            "Share of questions whose right letter (A to E) is the likeliest next token of the five.",
        ),
        "bbh": Definition(
            "bbh/zeroshot/{}.yaml",
            "exact_match,flexible-extract",
            "Share of questions whose answer, found in the written text by the task's own rule, is the right one, over "
            "all questions.",
        ),
        "humaneval": Definition(
            "humaneval/humaneval.yaml",
            "pass@1",
            "Share of problems whose first written program passes all its tests.",
        ),
    }
)
#: With examples GSM8K is the harness's gsm8k_cot, which brings the eight usual ones.
_GSM8K_COT = "gsm8k/gsm8k-cot.yaml"


def settings_of(
    harness: Harness, task: str, part: str, fewshot: int, most_tokens: int | None
) -> dict[str, Any]:
    """The harness's definition of one part of a task, for data in memory.

    Raises:
        ResourceError: this harness defines no such task.
    """
    file = _GSM8K_COT if task == "gsm8k" and fewshot else DEFINITIONS[task].file.format(part)
    try:
        # HumanEval's functions are not resolved: importing them asks the hub for a metric.
        settings = copy.deepcopy(harness.load_yaml(harness.folder / file, resolve_func=task != "humaneval"))
    except OSError:
        raise ResourceError(
            f"lm-evaluation-harness {harness.version} does not define {task} as expected ({file} is missing).",
            INSTALL,
        ) from None
    for name in ("tag", "group", "dataset_path", "dataset_name", "dataset_kwargs"):
        settings.pop(name, None)
    settings["num_fewshot"] = fewshot
    if task == "commonsense_qa" or not fewshot:
        settings["training_split"] = None
    if not fewshot:
        settings["fewshot_split"] = None
        settings.pop("fewshot_config", None)
    if settings["output_type"] == "generate_until" and most_tokens is not None:
        settings["generation_kwargs"]["max_gen_toks"] = most_tokens
    return settings


def written_tokens(settings: Mapping[str, Any]) -> int:
    """How many tokens the model may write; 0 where it writes nothing."""
    if settings["output_type"] != "generate_until":
        return 0
    return int(settings["generation_kwargs"].get("max_gen_toks", DEFAULT_TOKENS))


def require_room(name: str, settings: Mapping[str, Any], longest: int) -> None:
    """Refuse answers that leave a model no room for the question.

    Raises:
        ConfigError: naming the setting.
    """
    tokens = written_tokens(settings)
    if tokens >= longest:
        raise ConfigError(
            f"{settings['task']} lets a model write {tokens} tokens, and {name} reads at most {longest}.",
            f"Set most_tokens to less than {longest}, for example {max(1, longest // 4)}.",
        )


def make_task(
    harness: Harness,
    settings: Mapping[str, Any],
    documents: Sequence[Document],
    examples: Sequence[Document],
    judge: Callable[[Document, str], Mapping[str, Any]] | None = None,
) -> Any:
    """The harness's task over documents in memory.

    Args:
        examples: solved ones, for definitions that take them from a split.
        judge: scores a written text where the harness's own metric is not used.
    """
    split = settings.get("test_split") or settings.get("validation_split")
    splits = {split: harness.Dataset.from_list([dict(one) for one in documents])}
    if settings.get("fewshot_split"):
        splits[settings["fewshot_split"]] = harness.Dataset.from_list([dict(one) for one in examples])
    own = {**settings, "custom_dataset": lambda **_: splits}
    if judge is not None:
        own |= {
            "unsafe_code": False,
            "process_results": lambda document, results: judge(document, results[0]),
            "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
            "filter_list": None,
        }
    return _quiet_task(harness)(config=own)


@cache
def _quiet_task(harness: Harness) -> Any:
    plain: Any = harness.ConfigurableTask

    class QuietTask(plain):
        """The harness's task, whose requests are built without a progress bar of its own."""

        def build_all_requests(self, **_: Any) -> None:
            self._instances = []
            for number, document in self.doc_iterator(rank=0, limit=None, world_size=1):
                context = self.fewshot_context(
                    document, num_fewshot=self.config.num_fewshot, gen_prefix=self.doc_to_prefix(document)
                )
                made = self.construct_requests(
                    doc=document,
                    ctx=context,
                    metadata=(self.config["task"], number, self.config.repeats),
                    apply_chat_template=False,
                    chat_template=None,
                )
                self._instances += made if isinstance(made, list) else [made]

    return QuietTask
