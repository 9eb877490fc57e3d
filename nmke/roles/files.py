"""Roles and kept scores on disk.

A folder of roles holds ``roles.parquet`` (one row a neuron) and ``summary.json``; a folder of scores holds
``scores.safetensors`` and ``scores.json``. The two may be one folder.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nmke.errors import ResourceError
from nmke.model import EditableModel
from nmke.progress import Progress
from nmke.questions import QuestionSet
from nmke.resources import home
from nmke.roles.config import SCORED, RolesConfig
from nmke.roles.resampling import Stability
from nmke.roles.results import Roles
from nmke.roles.rules import ROLE_FORMULA, ROLES, RULE_FORMULAS
from nmke.roles.scores import QuestionScores, score_questions
from nmke.store import content_key, plain, write_json, written_atomically
from nmke.versions import library_versions

FORMAT = 1
#: Scores that the user's cache holds; the oldest go first.
KEPT = 8
_TABLE, _SUMMARY = "roles.parquet", "summary.json"
_TENSORS, _ABOUT = "scores.safetensors", "scores.json"


# ---- roles ----------------------------------------------------------------------------------------------------------


def save_roles(roles: Roles, folder: Path, **more: Any) -> Path:
    """Write ``roles.parquet`` and ``summary.json``; the summary last, so that a folder with one is complete.

    Args:
        more: further entries of the summary, for example a record of the model.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    with written_atomically(folder / _TABLE) as temporary:
        roles.frame().to_parquet(temporary, index=False)
    write_json(folder / _SUMMARY, {**summarise(roles), **more})
    return folder


def summarise(roles: Roles) -> dict[str, Any]:
    """Everything but the neurons, as JSON values: counts with intervals, stability, overlaps, settings, source."""
    stability = roles.stability
    rows: list[Any] = [{"role": role, "count": count} for role, count in roles.totals().items()]
    rows.sort(key=lambda row: ROLES.index(row["role"]))
    layers = roles.counts()
    if stability is not None:
        rows, layers = stability.roles.to_dict("records"), stability.layers
    overlaps = roles.overlaps()
    return {
        "format": FORMAT,
        "model_name": roles.model_name,
        "model_hash": roles.model_hash,
        "edits": roles.edits,
        "questions": {
            "source": roles.source,
            "sha256": roles.sha256,
            "tasks": [
                {"task": task, "domain": roles.domains[task], "questions": n}
                for task, n in zip(roles.tasks, roles.sizes, strict=True)
            ],
        },
        "neurons": sum(len(codes) for codes in roles.codes.values()),
        "roles": [_plain_row(row) for row in rows],
        "stability": None
        if stability is None
        else {
            "kept": list(stability.kept),
            "kept_active": list(stability.kept_active),
            "resamples": stability.resamples,
            "seed": stability.seed,
            "method": "questions drawn anew within each task; interval: count + quantiles (2.5%, 97.5%) of the drawn "
            "counts about their mean; shift: mean drawn count minus count; kept: mean share of neurons that keep their "
            "role with its 2.5% and 97.5% quantiles",
        },
        "layers": [_plain_row(row) for row in layers.to_dict("records")],
        "overlaps": [_plain_row(row) for row in overlaps.to_dict("records")],
        "formula": {"active": RULE_FORMULAS[roles.config.rule], "roles": ROLE_FORMULA},
        "config": roles.config.model_dump(mode="json"),
        "scored_layers": list(roles.layers),
        "seconds": roles.seconds,
        "versions": library_versions(),
    }


def load_roles(folder: Path) -> Roles:
    """Roles from a folder of :func:`save_roles`.

    Raises:
        ResourceError: no such folder, or a damaged one.
    """
    path = Path(folder)
    missing = [name for name in (_SUMMARY, _TABLE) if not (path / name).is_file()]
    if missing:
        raise ResourceError(
            f"{path} holds no roles: it has no {' and no '.join(missing)}.",
            "Give a folder that `nmke roles` wrote.",
        )
    try:
        return _roles(
            json.loads((path / _SUMMARY).read_text(encoding="utf-8")), pd.read_parquet(path / _TABLE)
        )
    except (ValueError, KeyError, TypeError, OSError) as problem:
        raise ResourceError(
            f"The roles in {path} cannot be read: {' '.join(str(problem).split())[:200]}",
            "Run `nmke roles` again.",
        ) from None


def _roles(summary: Mapping[str, Any], table: pd.DataFrame) -> Roles:
    about = summary["questions"]["tasks"]
    tasks = tuple(row["task"] for row in about)
    layers = tuple(summary["scored_layers"])
    groups = {layer: rows.sort_values("neuron") for layer, rows in table.groupby("layer")}

    def columns(kind: str) -> dict[int, Tensor]:
        names = [f"{kind}.{task}" for task in tasks]
        return {layer: torch.from_numpy(groups[layer][names].to_numpy().T.copy()) for layer in layers}

    return Roles(
        model_name=summary["model_name"],
        model_hash=summary["model_hash"],
        edits=summary["edits"],
        tasks=tasks,
        domains={row["task"]: row["domain"] for row in about},
        sizes=tuple(row["questions"] for row in about),
        layers=layers,
        active=columns("active"),
        strength=columns("strength"),
        activation=columns("activation"),
        codes={
            layer: torch.tensor([ROLES.index(role) for role in groups[layer]["role"]], dtype=torch.int8)
            for layer in layers
        },
        config=RolesConfig.make(**summary["config"]),
        source=summary["questions"]["source"],
        sha256=summary["questions"]["sha256"],
        seconds=summary["seconds"],
        stability=_stability(summary, tasks),
    )


def _stability(summary: Mapping[str, Any], tasks: tuple[str, ...]) -> Stability | None:
    kept = summary["stability"]
    if kept is None:
        return None
    overlaps = pd.DataFrame(summary["overlaps"])
    overlaps["pattern"] = [sum(1 << tasks.index(task) for task in row) for row in overlaps["tasks"]]
    overlaps = overlaps.sort_values("pattern", ignore_index=True)[["pattern", "count", "low", "high"]]
    return Stability(
        roles=pd.DataFrame(summary["roles"]),
        layers=pd.DataFrame(summary["layers"]),
        overlaps=overlaps,
        kept=tuple(kept["kept"]),
        kept_active=tuple(kept["kept_active"]),
        resamples=kept["resamples"],
        seed=kept["seed"],
    )


def _plain_row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Numpy's numbers as Python's."""
    values = {str(key): value.item() if hasattr(value, "item") else value for key, value in row.items()}
    found: dict[str, Any] = plain(values)
    return found


# ---- scores ---------------------------------------------------------------------------------------------------------


def scores_folder(
    model: EditableModel,
    questions: QuestionSet,
    layers: tuple[int, ...],
    config: RolesConfig,
    edits: str = "",
) -> Path:
    """Where scores of these questions are kept in the user's cache, whether or not they are there yet."""
    key = content_key(
        format=FORMAT,
        weights=model.weight_hash,
        edits=edits,
        device=model.device,
        dtype=model.dtype,
        questions=questions.sha256,
        layers=list(layers),
        **{name: config.model_dump(mode="json")[name] for name in SCORED},
    )
    return home() / "roles" / key


def score_once(
    model: EditableModel,
    questions: QuestionSet,
    layers: Sequence[int] | None = None,
    config: RolesConfig | None = None,
    progress: Progress | None = None,
    edits: str = "",
) -> QuestionScores:
    """:func:`~nmke.roles.scores.score_questions`, read from the user's cache when it was done before.

    The cache keeps the last few.

    Raises:
        QuestionError, ModelError, Cancelled: as :func:`~nmke.roles.scores.score_questions`.
        ResourceError: the disk is full or the cache cannot be written.
    """
    config = config or RolesConfig()
    chosen = model.check_layers(range(model.n_layers) if layers is None else layers)
    folder = scores_folder(model, questions, chosen, config, edits)
    found = load_scores(folder)
    if found is None:
        found = score_questions(model, questions, chosen, config, progress, edits)
        save_scores(found, folder)
        kept = sorted(folder.parent.glob(f"*/{_ABOUT}"), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in kept[KEPT:]:
            shutil.rmtree(old.parent, ignore_errors=True)
    # The rule's settings are not part of the scores, and neither are the words for where the questions are from.
    rule = {name: getattr(found.config, name) for name in SCORED}
    return replace(found, config=config.model_copy(update=rule), source=questions.source)


def save_scores(scores: QuestionScores, folder: Path) -> Path:
    """Write kept scores, so that the rule can be changed later without a model.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    tensors: dict[str, Tensor] = {"question_tasks": scores.question_tasks}
    for layer in scores.layers:
        for name in ("ranks", "above", "strength", "activation"):
            tensors[f"{name}.{layer}"] = getattr(scores, name)[layer].contiguous()
    about = {
        "format": FORMAT,
        **{
            name: getattr(scores, name)
            for name in (
                "model_name",
                "model_hash",
                "edits",
                "tasks",
                "domains",
                "layers",
                "question_ids",
                "targets",
                "source",
                "sha256",
                "seconds",
            )
        },
        "config": scores.config.model_dump(mode="json"),
    }
    with written_atomically(folder / _TENSORS) as temporary:
        save_file(tensors, temporary)
    write_json(folder / _ABOUT, about)
    return folder


def load_scores(folder: Path) -> QuestionScores | None:
    """Kept scores, or None where there are none that can be read."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        tensors = load_file(folder / _TENSORS)
        layers = tuple(about["layers"])

        def per_layer(name: str) -> dict[int, Tensor]:
            return {layer: tensors[f"{name}.{layer}"] for layer in layers}

        return QuestionScores(
            model_name=about["model_name"],
            model_hash=about["model_hash"],
            edits=about["edits"],
            tasks=tuple(about["tasks"]),
            domains=about["domains"],
            layers=layers,
            question_ids=tuple(about["question_ids"]),
            question_tasks=tensors["question_tasks"],
            targets=tuple(about["targets"]),
            ranks=per_layer("ranks"),
            above=per_layer("above"),
            strength=per_layer("strength"),
            activation=per_layer("activation"),
            config=RolesConfig.make(**about["config"]),
            source=about["source"],
            sha256=about["sha256"],
            seconds=about["seconds"],
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
