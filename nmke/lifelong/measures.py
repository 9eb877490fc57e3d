"""What a mark measures: scores of all facts so far with their intervals, rows to look at, and drift of the weights."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nmke.drift.numbers import in_double, relative_norm
from nmke.forcing import Answer
from nmke.intervals import bootstrap_mean
from nmke.lifelong.results import SCORES
from nmke.metrics import FactMeasure, FactReport
from nmke.model import EditableModel
from nmke.session import EditSession

DRAWS, LEVEL, BOOTSTRAP_SEED = 1000, 0.95, 0


def scores_of(reports: Sequence[FactReport]) -> dict[str, float | None]:
    """Mean of every score over the facts that have it, with ``<name>_low`` and ``<name>_high``; None without any."""
    found: dict[str, float | None] = {}
    for name in SCORES:
        values = [score for report in reports if (score := getattr(report, name)) is not None]
        found[name] = sum(values) / len(values) if values else None
        found[f"{name}_low"], found[f"{name}_high"] = bootstrap(values)
    return found


def bootstrap(
    values: Sequence[float], draws: int = DRAWS, level: float = LEVEL, seed: int = BOOTSTRAP_SEED
) -> tuple[float | None, float | None]:
    """The percentile interval of the mean: facts are drawn with replacement, ``draws`` times (Efron, 1979).

    The draws are the same for equally many values, whoever asks.
    """
    if not values:
        return None, None
    found = bootstrap_mean(values, seed, draws, level)
    return found.low, found.high


def with_neighbors_before(measure: FactMeasure, argmax: Sequence[Sequence[int]]) -> FactMeasure:
    """The measure as far as locality compares with it: with the unedited model's argmax tokens at the neighbours."""
    own = (
        replace(answer, argmax=tuple(tokens))
        for answer, tokens in zip(measure.neighbors_own, argmax, strict=True)
    )
    return replace(measure, neighbors_own=tuple(own))


def rows_of(report: FactReport, decode: Any, **about: Any) -> list[dict[str, Any]]:
    """One row per prompt of a fact: its edit prompt, paraphrases, neighbourhood prompts and portability questions.

    ``share`` is what the row adds to its token score: the share of target tokens that are the argmax, and for a
    neighbourhood prompt the share of argmax tokens that are the unedited model's; ``kept`` says that all are. A
    neighbourhood row's ``target_true`` is its own answer, a portability row's ``target_new``.

    Args:
        decode: makes a text of token ids.
        about: more columns, first in every row.
    """
    fact, after = report.fact, report.after
    common = {**about, "subject": fact.subject}

    def row(kind: str, new: Answer, true: Answer | None, text: str, **more: Any) -> dict[str, Any]:
        return {
            **common,
            "prompt": new.prompt,
            "target_new": fact.target_new,
            "target_true": true.target if true else None,
            "kind": kind,
            "share": new.share,
            "log_p_new": new.log_probability,
            "log_p_true": true.log_probability if true else None,
            "predicted": decode(list(new.argmax)),
            "kept": None,
            "continuation": text,
            **more,
        }

    rows = [row("prompt", after.new, after.true, after.continuation)]
    for number, new in enumerate(after.paraphrases_new):
        true = after.paraphrases_true[number] if after.paraphrases_true else None
        rows.append(row("paraphrase", new, true, _at(after.paraphrase_continuations, number)))
    for number, (own, new) in enumerate(zip(after.neighbors_own, after.neighbors_new, strict=True)):
        same = [a == b for a, b in zip(report.before.neighbors_own[number].argmax, own.argmax, strict=True)]
        more = {
            "target_true": own.target or None,
            "log_p_true": own.log_probability if own.target else None,
            "share": sum(same) / len(same),
            "predicted": decode(list(own.argmax)),
            "kept": all(same),
        }
        rows.append(row("neighborhood", new, None, _at(after.neighbor_continuations, number), **more))
    for number, own in enumerate(after.portability):
        text = _at(after.portability_continuations, number)
        rows.append(row("portability", own, None, text, target_new=own.target))
    return rows


def drift_of(
    W: Float[Tensor, "d_mlp d_model"], original: Float[Tensor, "d_mlp d_model"]
) -> tuple[float, float]:
    """``|W - W_0| / |W_0|`` (Frobenius) and the cosine between the flattened matrices, in float64 where there is."""
    W, W0 = in_double(W), in_double(original)
    return relative_norm(W, W0), float((W * W0).sum() / (W.norm() * W0.norm()))


def drift(session: EditSession) -> dict[str, Any]:
    """``drift`` and ``drift_cosine``, means over the changed matrices, and both for each ``layer`` in ``layers``.

    Methods that put modules beside unchanged matrices, or text in front, have drift 0 and cosine 1;
    ``module_parameters`` counts what they added.
    """
    layers = []
    for layer in session.changed_layers:
        with session.original():
            relative, cosine = drift_of(session.master(layer), session.model.W_out(layer))
        layers.append({"layer": layer, "drift": relative, "drift_cosine": cosine})
    count = len(layers)
    return {
        "drift": sum(one["drift"] for one in layers) / count if count else 0.0,
        "drift_cosine": sum(one["drift_cosine"] for one in layers) / count if count else 1.0,
        "layers": layers,
        "module_parameters": sum(module.n_parameters for module in session.modules.values())
        + (session.prompt.n_parameters if session.prompt is not None else 0),
    }


def peak_memory_mb(model: EditableModel) -> float | None:
    """The most memory this process ever held, in MB: on the model's GPU, else resident; None where unknown."""
    if model.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(model.device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def timing(edits: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Median and mean seconds per fact written, over edit events; a batch's seconds are shared by its facts."""
    seconds = [edit["seconds"] / len(edit["facts"]) for edit in edits]
    return {
        "seconds_per_edit": float(np.median(seconds)) if seconds else None,
        "seconds_per_edit_mean": float(np.mean(seconds)) if seconds else None,
    }


def _at(texts: Sequence[str], number: int) -> str:
    return texts[number] if texts else ""
