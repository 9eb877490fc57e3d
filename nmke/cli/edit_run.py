"""The work of ``nmke edit``: one edit per fact, each measured, undone exactly, and written down as it goes."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmke.cli.report import model_record
from nmke.cli.terminal import TerminalProgress, warn
from nmke.config import Config
from nmke.edit import Edit
from nmke.errors import EditError, FactError
from nmke.facts import Fact
from nmke.loading import LoadedModel
from nmke.methods import Method
from nmke.metrics import FORMULAS, FactMeasure, FactReport, compare, mean_scores, measure_fact
from nmke.session import EditSession
from nmke.store import write_json
from nmke.versions import library_versions

STAGES = ("total", "target", "attribution", "keys", "solve")
SECONDS_BETWEEN_REPORTS = 10.0


@dataclass
class EditRun:
    """Edits ``facts`` one after the other and reports on each.

    Attributes:
        independent: take each edit back before the next; otherwise they pile up.
        tokens: length of the greedy continuations.
        about: more entries for the report (where the facts and settings came from).
    """

    model: LoadedModel
    method: Method
    config: Config
    facts: Sequence[Fact]
    out: Path
    independent: bool
    tokens: int
    progress: TerminalProgress
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.session = EditSession(self.model)
        self.reports: list[FactReport] = []
        self.entries: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []
        self.edits: list[Mapping[str, float]] = []
        self.final: list[FactReport] = []
        self.undos: list[bool] = []
        self.undo_exact: bool | None = None  # not known before everything is undone
        self.interrupted = False
        self._written = 0.0

    def run(self) -> None:
        """Do everything; Ctrl-C ends it early, with what is done written down."""
        untouched = weight_digests(self.session)
        try:
            for index, fact in enumerate(self.facts):
                self.progress.whole("Facts", index, len(self.facts))
                self._edit_or_tell(index, fact, untouched)
                if time.monotonic() - self._written > SECONDS_BETWEEN_REPORTS:
                    self.write_report(complete=False)
            if not self.independent and self.session.version:
                self._measure_at_the_end()
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            # Also when a bundle could not be saved: what was measured is written down first.
            bundle = self.out / "bundle"
            try:
                if not self.independent and self.session.version:
                    self.session.save(bundle)
            finally:
                self._undo_all(untouched)
                self.write_report(complete=self.complete)

    @property
    def complete(self) -> bool:
        """Whether every fact was edited, or tried and refused."""
        return len(self.entries) + len(self.failures) == len(self.facts) and not self.interrupted

    def _undo_all(self, untouched: Mapping[str, str]) -> None:
        while self.session.version:
            self.session.undo()
        self.undo_exact = weight_digests(self.session) == untouched and all(self.undos)

    def _edit_or_tell(self, index: int, fact: Fact, untouched: Mapping[str, str]) -> None:
        try:
            self._edit(index, fact, untouched)
        except (EditError, FactError) as error:
            warn(f"fact {index + 1}: {error}")
            self.failures.append({"index": index, "fact": fact.to_dict(), "error": str(error)})

    def _edit(self, index: int, fact: Fact, untouched: Mapping[str, str]) -> None:
        before = self._measure(fact, self.session.original)
        known = before.new.share == 1.0
        if known:
            warn(f"fact {index + 1}: the model says {fact.target_new!r} already.")
        edit = self.method.plan(self.session, [fact], self.config, self.progress)
        self.session.apply(edit)
        report = compare(fact, before, self._measure(fact, self.session.active))
        entry = {
            "index": index,
            **report.to_dict(),
            "known_before": known,
            "changes": self._changes(edit),
            "seconds": dict(edit.seconds),
        }
        if self.independent:
            folder = self.out / "edits" / f"{index + 1:04d}"
            self.session.save(folder)
            self.session.undo()
            exact = weight_digests(self.session, edit.layers) == {
                name: untouched[name] for name in weight_names(self.session, edit.layers)
            }
            self.undos.append(exact)
            entry |= {"bundle": str(folder.relative_to(self.out)), "undo_exact": exact}
        self.reports.append(report)
        self.entries.append(entry)
        self.edits.append(edit.seconds)

    def _measure(self, fact: Fact, weights: Callable[[], Any]) -> FactMeasure:
        self.progress.update("measuring", 0, 1, fact.subject)
        with weights():
            return measure_fact(self.model, fact, self.tokens)

    def _measure_at_the_end(self) -> None:
        """Every fact once more, with all edits in force: what later edits did to earlier ones."""
        for done, report in enumerate(self.reports):
            self.progress.whole("Measuring again with all edits", done, len(self.reports))
            after = self._measure(report.fact, self.session.active)
            last = compare(report.fact, report.before, after)
            self.final.append(last)
            self.entries[done]["final"] = {**last.scores, "target_probability": after.target_probability}

    def _changes(self, edit: Edit) -> list[dict[str, float]]:
        with self.session.original():
            return edit.changes({layer: self.model.W_out(layer) for layer in edit.layers})

    def write_report(self, complete: bool) -> None:
        """Write ``report.json`` with what is done so far."""
        write_json(self.out / "report.json", self.report(complete))
        self._written = time.monotonic()

    def report(self, complete: bool) -> dict[str, Any]:
        """The report as plain values."""
        config = self.config.model_dump(mode="json")
        content: dict[str, Any] = {
            "complete": complete,
            "mode": "independent" if self.independent else "sequential",
            "method": self.method.name,
            "model": model_record(self.model),
            **self.about,
            "config": config,
            "seeds": seeds_in(config),
            "means": mean_scores(self.reports),
            "seconds_per_edit": seconds_per_edit(self.edits),
            "undo_exact": self.undo_exact,
            "undone_one_by_one": {"count": len(self.undos), "exact": sum(self.undos)},
            "formulas": dict(FORMULAS),
            "facts": self.entries,
            "failures": self.failures,
            "versions": library_versions(),
        }
        if self.final:
            content["means_at_the_end"] = mean_scores(self.final)
        return content


def seconds_per_edit(edits: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean seconds of each stage over the edits.

    ``preparation`` (contexts, statistics and null space, computed at the first edit and kept on disk) is told
    apart: it is the first edit's alone and is not in ``total``.
    """
    if not edits:
        return dict.fromkeys((*STAGES, "preparation"), 0.0)
    preparation = edits[0].get("statistics", 0.0)
    means = {stage: sum(edit.get(stage, 0.0) for edit in edits) / len(edits) for stage in STAGES}
    means["total"] -= preparation / len(edits)
    return {**means, "preparation": preparation}


def seeds_in(config: Mapping[str, Any], prefix: str = "") -> dict[str, int]:
    """Every seed among the settings, by its dotted name."""
    found: dict[str, int] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= seeds_in(value, f"{prefix}{name}.")
        elif "seed" in name:
            found[prefix + name] = value
    return found


def weight_names(session: EditSession, layers: Sequence[int] | None = None) -> list[str]:
    """Names of all parameters, or of the down projections of ``layers``."""
    model = session.model
    wanted = None if layers is None else {id(model.down_projection(layer)) for layer in layers}
    return [
        name for name, weight in model.bridge.named_parameters() if wanted is None or id(weight) in wanted
    ]


def weight_digests(session: EditSession, layers: Sequence[int] | None = None) -> dict[str, str]:
    """SHA-256 of the bytes of every parameter (or of some layers' down projections) as the session computes."""
    import torch

    names = set(weight_names(session, layers))
    digests = {}
    with session.active():
        for name, weight in session.model.bridge.named_parameters():
            if name in names:
                flat = weight.detach().contiguous().cpu().view(-1).view(torch.uint8)
                digests[name] = hashlib.sha256(flat.numpy()).hexdigest()
    return digests
