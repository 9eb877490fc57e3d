"""The work of a run: edit, measure at the marks, save as it goes; start again where it ended.

An edit is planned on top of all edits before it and settled at once, so that memory stays flat. Whatever was done after
the last checkpoint is done again after a kill, with the same bits: plans are functions of session and settings, and
:mod:`nmke.lifelong.checkpoint` gives back the session's bits. One entrant that fails does not stop the others; calling
:func:`run` again tries it once more from its last checkpoint.
"""

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from nmke.ability.running import state_of as state_of_session
from nmke.edit import Edit
from nmke.errors import Cancelled, FactRefused, ResourceError
from nmke.facts import Fact
from nmke.lifelong.abilities import Suite
from nmke.lifelong.checkpoint import load_checkpoint, save_checkpoint
from nmke.lifelong.failing import Failed, failing, require_finite, require_same_editor
from nmke.lifelong.files import (
    CHECKPOINT,
    EVENTS,
    EventLog,
    held,
    predictions_file,
    run_folder,
    state_of,
)
from nmke.lifelong.measures import (
    drift,
    peak_memory_mb,
    rows_of,
    scores_of,
    timing,
    with_neighbors_before,
)
from nmke.lifelong.results import write_summary
from nmke.lifelong.spec import Entrant, Spec
from nmke.lifelong.starting import read_spec, require_same_model
from nmke.lifelong.unedited import SAMPLES, Ability, Unedited, find_unedited, judge, write_rows
from nmke.loading import LoadedModel
from nmke.methods import get_method
from nmke.metrics import compare, measure_fact
from nmke.perplexity import mean_nll, perplexity
from nmke.progress import Progress, Silent
from nmke.session import EditSession
from nmke.storage import writing
from nmke.store import plain
from nmke.versions import library_versions

#: Given the digest of a state, what judges the model in it.
_Judging = Callable[[str], Ability]


def run(
    folder: Path, model: LoadedModel, progress: Progress | None = None, ability: Ability | None = None
) -> None:
    """Do everything of a started run that is not done.

    Args:
        folder: as :func:`nmke.lifelong.start` wrote it.
        model: the one it was started with.
        ability: judges general ability in place of the suite that the run's settings name, if any; called with the
            model while it computes with the edits so far. The numbers it returns stand under ``ability`` in every
            mark, and once for the unedited model. It may take its time and report progress of its own.

    Raises:
        SessionError: another model, a damaged folder, or somebody else is running it.
        ResourceError: the folder cannot be written, or the perplexity's text cannot be read.
        Cancelled: from ``progress``; everything done so far is kept.
    """
    progress = progress or Silent()
    spec = read_spec(folder)
    require_same_model(spec, model)
    model.require_conformance()
    with held(folder):
        judging = _judging(spec, folder, progress, ability)
        unedited = find_unedited(folder, spec, model, progress, judging and judging(""))
        for seed in spec.config.seeds:
            for entrant in spec.entrants:
                _run_one(folder, spec, entrant, seed, model, unedited, progress, judging)
        write_summary(folder)


def _judging(spec: Spec, folder: Path, progress: Progress, ability: Ability | None) -> _Judging | None:
    """What judges ability in a state: the caller's own, else the suite of the settings, else nothing."""
    if ability is not None:
        return lambda _: ability
    return Suite(spec.config, folder, progress).at if spec.config.abilities else None


def _run_one(
    folder: Path,
    spec: Spec,
    entrant: Entrant,
    seed: int,
    model: LoadedModel,
    unedited: Unedited,
    progress: Progress,
    judging: _Judging | None,
) -> None:
    own = run_folder(folder, entrant.label, seed)
    with writing(folder):
        own.mkdir(parents=True, exist_ok=True)
    log = EventLog(own / EVENTS)
    log.mend()
    if state_of(log.read())[0] in ("done", "collapsed"):
        return
    if model.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(model.device)
    work: _Work | None = None
    try:
        work = _Work(folder, spec, entrant, seed, model, unedited, progress, judging)
        work.go()
    except Failed as failure:
        log.append("failed", work.position if work else 0, message=str(failure))
        write_summary(folder)
    finally:
        del work
        gc.collect()  # the session's inverses, before the next entrant makes its own


class _Work:
    """One entrant with one seed, from its last checkpoint to its end."""

    def __init__(
        self,
        folder: Path,
        spec: Spec,
        entrant: Entrant,
        seed: int,
        model: LoadedModel,
        unedited: Unedited,
        progress: Progress,
        judging: _Judging | None,
    ) -> None:
        self.folder, self.spec, self.entrant, self.seed = folder, spec, entrant, seed
        self.model, self.unedited, self.progress, self.judging = model, unedited, progress, judging
        self.method = get_method(entrant.method)
        self.order = spec.orders()[seed]
        self.facts = [spec.facts[index] for index in self.order]
        self.named = f"({entrant.label}, seed {seed})"
        own = run_folder(folder, entrant.label, seed)
        self.log, self.checkpoint = EventLog(own / EVENTS), own / CHECKPOINT
        before = self.log.read()
        with failing():
            saved = load_checkpoint(model, self.checkpoint, self.facts)
        self.session = saved.session if saved else EditSession(model)
        self.position = self.saved = saved.position if saved else 0
        self.events = self.log.cut(self.position)
        if before:
            self._log("resume", versions=library_versions())
        self.fresh = True  # the next edit is this process's first, and prepares what later ones find ready

    def go(self) -> None:
        """Edit and measure to the end.

        Raises:
            Failed: the entrant cannot go on.
            Cancelled, KeyboardInterrupt: the state is saved first.
        """
        config = self.spec.config
        measured: dict[int, Mapping[str, Any]] = {
            event["position"]: event for event in self.events if event["event"] == "mark"
        }
        try:
            while True:
                if self.position in config.marks:
                    if self.position not in measured:
                        self._save()  # before measuring, which may take longer than the edits
                        measured[self.position] = self._mark()
                    # Asked of marks of an earlier start as well: a kill may have come before the answer was written.
                    message = self._collapse(measured[self.position])
                    if message:
                        self._end("collapsed", message)
                        return
                if self.position >= config.edits:
                    break
                self._edit()
                if self.position - self.saved >= config.checkpoint_every:
                    self._save()
        except (Cancelled, KeyboardInterrupt):
            # Ctrl-C may come in the middle of applying an edit or of writing it down; such a session is not kept.
            written = max((event["position"] for event in self.events if event["event"] == "edit"), default=0)
            if written == self.position and self.session.version == -(-self.position // config.batch):
                with suppress(Failed):  # then what came since the last checkpoint is done again
                    self._save()
            self._log("stopped", message="")
            raise
        self._save()
        self._end("done", "")

    def _edit(self) -> None:
        first, last = self.position, min(self.position + self.spec.config.batch, self.spec.config.edits)
        facts = self.facts[first:last]
        stage = f"editing {self.named}"
        self.progress.update(stage, first, self.spec.config.edits, facts[0].subject)
        within = _Within(self.progress, stage, first, self.spec.config.edits)
        started = time.perf_counter()
        with failing(f"Fact {first + 1}: "):
            edit = self._plan(facts, within)
            require_finite(edit)
            require_same_editor(self.session.edits, edit)
            self.session.apply(edit)
            self.session.settle()
        seconds = time.perf_counter() - started
        preparation = float(edit.seconds.get("statistics", 0.0)) if self.fresh else 0.0
        self.fresh = False
        self.position = last
        self._log(
            "edit",
            edit=self.session.version,
            facts=self.order[first:last],
            seconds=seconds - preparation,
            preparation=preparation,
            stages=dict(edit.seconds),
            peak_memory_mb=peak_memory_mb(self.model),
            target_probability=edit.details.get("target_probability"),
            digest=self.session.digest,
            **({"refused": edit.details["refused"]} if "refused" in edit.details else {}),
        )

    def _plan(self, facts: Sequence[Fact], progress: Progress) -> Edit:
        """The method's edit; an empty one where it finds nothing to change for these facts, which then count as
        not written."""
        try:
            return self.method.plan(self.session, facts, self.entrant.config, progress)
        except FactRefused as refusal:
            settings = self.entrant.config.model_dump(mode="json")
            return Edit(self.method.name, settings, tuple(facts), (), {}, details={"refused": str(refusal)})

    def _mark(self) -> Mapping[str, Any]:
        """Measure everything so far and write it down; the figures as they stand in the events."""
        config, stage = self.spec.config, f"measuring {self.named}"
        reports, rows = [], []
        with failing(f"Measuring at {self.position}: "):
            for index, fact in enumerate(self.facts[: self.position]):
                self.progress.update(stage, index, self.position, fact.subject)
                report = self._report(index, fact)
                reports.append(report)
                rows += rows_of(
                    report,
                    self.model.tokenizer.decode,
                    fact=index,
                    position=index // config.batch + 1,
                    file_index=self.order[index],
                )
            figures: dict[str, Any] = {"n": len(reports), **scores_of(reports), **drift(self.session)}
            figures["refused"] = sum(event["event"] == "edit" and "refused" in event for event in self.events)
            nll = self._nll(stage)
            figures |= {"perplexity": None if nll is None else perplexity(nll), "perplexity_nll": nll}
            if self.judging is not None:
                self.progress.update(stage, self.position, self.position, "ability")
                with self.session.active():
                    figures["ability"] = judge(self.judging(state_of_session(self.session)), self.model)
        since = max((event["position"] for event in self.events if event["event"] == "mark"), default=0)
        edits = [event for event in self.events if event["event"] == "edit" and event["position"] > since]
        figures |= {**timing(edits), "peak_memory_mb": peak_memory_mb(self.model)}
        write_rows(predictions_file(self.folder, self.entrant.label, self.seed, self.position), rows)
        self._log("mark", **figures)
        write_summary(self.folder)
        written: Mapping[str, Any] = plain(figures)
        return written

    def _report(self, index: int, fact: Fact) -> Any:
        tokens = self.spec.config.generate_tokens if index < SAMPLES else 0
        with self.session.active():
            after = measure_fact(self.model, fact, tokens)
        return compare(fact, with_neighbors_before(after, self.unedited.argmax[self.order[index]]), after)

    def _nll(self, stage: str) -> float | None:
        if self.unedited.held_out is None:
            return None
        with self.session.active():
            return mean_nll(self.model, self.unedited.held_out, self.progress, stage)

    def _collapse(self, figures: Mapping[str, Any]) -> str:
        """A message when a mark's figures say that the entrant has collapsed; a perplexity of null was no number."""
        config = self.spec.config
        reliability, nll = figures["reliability"], figures["perplexity_nll"]
        if config.stop_reliability is not None and not reliability >= config.stop_reliability:
            return (
                f"Reliability {reliability:.3f} at {self.position} is under {config.stop_reliability:g}, where the run "
                "was to stop."
            )
        if config.stop_perplexity is not None:
            rise = math.nan if nll is None else nll - self.unedited.figures["perplexity_nll"]
            if not rise <= math.log(config.stop_perplexity):
                return (
                    f"Perplexity at {self.position} is {_times(rise)} the unedited model's, over "
                    f"{config.stop_perplexity:g}, where the run was to stop."
                )
        return ""

    def _save(self) -> None:
        if self.saved != self.position:
            with failing(
                f"Saving after {self.position}: ", but=ResourceError
            ):  # a full disk concerns all entrants
                save_checkpoint(self.session, self.position, self.checkpoint)
            self.saved = self.position

    def _end(self, state: str, message: str) -> None:
        self._log(state, message=message)
        write_summary(self.folder)

    def _log(self, event: str, **values: Any) -> None:
        self.log.append(event, self.position, **values)
        self.events.append({"event": event, "position": self.position, **values})


class _Within(Progress):
    """A method's own stages, told as notes to the stage of the whole run."""

    def __init__(self, progress: Progress, stage: str, done: int, total: int) -> None:
        self._progress, self._stage, self._done, self._total = progress, stage, done, total

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        amount = f" {done} of {total}" if total and note != "bytes" else ""
        self._progress.update(self._stage, self._done, self._total, f"{stage}{amount}")


def _times(rise: float) -> str:
    return "no number times" if math.isnan(rise) else f"{perplexity(rise):.3g} times"
