"""The model before any edit: what locality and the perplexity of every mark are compared with.

Measured once for each fact and kept on the disk, so that a run that goes on compares with the same answers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nmke.config import Config
from nmke.errors import EditError, SessionError
from nmke.lifelong.files import HELD_OUT, UNEDITED, UNEDITED_ROWS, read_json
from nmke.lifelong.measures import rows_of, scores_of
from nmke.lifelong.spec import Spec
from nmke.loading import LoadedModel
from nmke.metrics import compare, measure_fact
from nmke.moments import StatisticsConfig
from nmke.perplexity import HeldOut, hold_out, mean_nll, perplexity
from nmke.progress import Progress
from nmke.store import write_json, written_atomically

#: Given the model as it is to be judged; returns numbers by name.
Ability = Callable[[LoadedModel], Mapping[str, float]]
STAGE = "measuring (unedited)"
#: Free text is kept for so many facts.
SAMPLES = 5


@dataclass(frozen=True)
class Unedited:
    """The unedited model's answers.

    Attributes:
        argmax: per fact, in file order, the argmax tokens at each neighbourhood prompt.
        held_out: the perplexity's tokens, None where none is measured.
        figures: scores, perplexity and ability, as they stand in the report.
    """

    argmax: Sequence[Sequence[Sequence[int]]]
    held_out: HeldOut | None
    figures: Mapping[str, Any]


def find_unedited(
    folder: Path, spec: Spec, model: LoadedModel, progress: Progress, ability: Ability | None
) -> Unedited:
    """The unedited model's answers: read from the folder, or measured now and kept there.

    Raises:
        ResourceError: the perplexity's text cannot be read, or the folder cannot be written.
        SessionError: what the folder holds is damaged.
        Cancelled: from ``progress``; a measurement begins again then.
    """
    held_out = _held_out(folder, spec, model, progress)
    if not (folder / UNEDITED).is_file():
        _measure(folder, spec, model, held_out, progress)
    figures = read_json(folder / UNEDITED)
    if ability is not None and "ability" not in figures:
        progress.update(STAGE, len(spec.facts), len(spec.facts), "ability")
        with model.weights_in({}):
            figures["ability"] = judge(ability, model)
        write_json(folder / UNEDITED, figures)
    return Unedited(_read_argmax(folder, spec), held_out, figures)


def judge(ability: Ability, model: LoadedModel) -> dict[str, float]:
    """General ability by name, as plain numbers whatever kind of number the judge hands back."""
    return {str(name): float(value) for name, value in ability(model).items()}


def statistics_in(config: Config) -> list[StatisticsConfig]:
    """Every group of statistics settings within a method's settings."""
    found: list[StatisticsConfig] = []
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, StatisticsConfig):
            found.append(value)
        elif isinstance(value, Config):
            found += statistics_in(value)
    return found


def _held_out(folder: Path, spec: Spec, model: LoadedModel, progress: Progress) -> HeldOut | None:
    if not spec.config.perplexity_tokens:
        return None
    if not (folder / HELD_OUT).is_file():
        read = [one for entrant in spec.entrants for one in statistics_in(entrant.config)]
        try:
            made = hold_out(model, spec.config.perplexity_text, spec.config.perplexity_tokens, read, progress)
        except EditError as problem:  # this folder keeps the settings it was begun with
            raise EditError(
                problem.what, f"{problem.remedy} Then start the run in a new folder."
            ) from problem
        write_json(folder / HELD_OUT, made.to_dict())
    saved = read_json(folder / HELD_OUT)
    held_out = HeldOut.from_dict(saved)
    if held_out.sha256 != saved["sha256"]:
        raise SessionError(f"{HELD_OUT} was changed.", "Start the run again in a new folder.")
    return held_out


def _measure(
    folder: Path, spec: Spec, model: LoadedModel, held_out: HeldOut | None, progress: Progress
) -> None:
    reports, rows = [], []
    for index, fact in enumerate(spec.facts):
        progress.update(STAGE, index, len(spec.facts), fact.subject)
        with model.weights_in({}):
            measure = measure_fact(model, fact, spec.config.generate_tokens if index < SAMPLES else 0)
        report = compare(fact, measure, measure)
        reports.append(report)
        own = iter(measure.neighbors_own)
        for row in rows_of(report, model.tokenizer.decode, fact=index):
            kept = list(next(own).argmax) if row["kind"] == "neighborhood" else None
            rows.append({**row, "argmax": kept})
    figures: dict[str, Any] = {"n": len(reports), **scores_of(reports)}
    if held_out is not None:
        with model.weights_in({}):
            nll = mean_nll(model, held_out, progress, STAGE)
        figures |= {"perplexity": perplexity(nll), "perplexity_nll": nll, "held_out": held_out.about()}
    else:
        figures |= {"perplexity": None, "perplexity_nll": None}
    write_rows(folder / UNEDITED_ROWS, rows)
    write_json(folder / UNEDITED, figures)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table whole or not at all.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    with written_atomically(path) as temporary:
        pd.DataFrame(list(rows)).to_parquet(temporary, index=False)


def _read_argmax(folder: Path, spec: Spec) -> list[list[tuple[int, ...]]]:
    found: list[list[tuple[int, ...]]] = [[] for _ in spec.facts]
    try:
        rows = pd.read_parquet(folder / UNEDITED_ROWS, columns=["fact", "kind", "argmax"])
        rows = rows[rows["kind"] == "neighborhood"]
        for index, tokens in zip(rows["fact"].tolist(), rows["argmax"].tolist(), strict=True):
            found[index].append(tuple(map(int, tokens)))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as problem:
        raise SessionError(
            f"{UNEDITED_ROWS} cannot be read ({type(problem).__name__}).",
            f"Remove {UNEDITED} and {UNEDITED_ROWS} from the run's folder; they are measured again.",
        ) from problem
    if [len(one) for one in found] != [len(fact.neighborhood) for fact in spec.facts]:
        raise SessionError(
            f"{UNEDITED_ROWS} is not of these facts.",
            f"Remove {UNEDITED} and {UNEDITED_ROWS} from the run's folder; they are measured again.",
        )
    return found
