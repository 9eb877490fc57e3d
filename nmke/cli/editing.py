"""``nmke edit``: write facts into a model, measure what changed, take it back."""

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from nmke.cli.options import (
    DeviceOption,
    DtypeOption,
    FactsOption,
    LimitOption,
    ModelOption,
    OutOption,
    SetOption,
    TrustOption,
    change_settings,
    make_folder,
    read_fact_file,
)
from nmke.cli.terminal import INTERRUPTED, TerminalProgress, note, say
from nmke.preset_names import STANDARD


def edit(
    facts: FactsOption,
    out: OutOption,
    model: ModelOption = "smollm2-135m",
    method: Annotated[str, typer.Option(help="Editing method; `nmke methods` lists them.")] = "nmke",
    preset: Annotated[
        str, typer.Option(help="Which of the method's presets for the model, where there are several.")
    ] = STANDARD,
    limit: LimitOption = None,
    independent: Annotated[
        bool,
        typer.Option(
            "--independent/--sequential",
            help="Undo each edit before the next, or keep them all and measure every fact again at the end.",
        ),
    ] = False,
    settings: SetOption = None,
    tokens: Annotated[int, typer.Option(min=0, help="Length of the continuations before and after.")] = 12,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
) -> None:
    """Edit facts into a model, one edit a fact, and report what changed.

    Writes report.json and the edits: bundle/ (all of them, sequential) or edits/0001/ ... (independent).
    The model's own files are never touched. Ctrl-C keeps what is done, with "complete": false in the report.
    """
    fact_list = read_fact_file(facts, limit)
    from nmke.cli.edit_run import EditRun
    from nmke.loading import load_model
    from nmke.methods import get_method
    from nmke.presets import changed_anywhere, preset_for

    chosen = get_method(method)
    # A typing error is told before the model is loaded.
    changed_anywhere(method, lambda base: change_settings(base, settings))
    make_folder(out)
    with TerminalProgress() as progress:
        loaded = load_model(model, device, dtype, trust_remote_code=trust_remote_code, progress=progress)
        loaded.require_conformance()
        base = preset_for(loaded, method, preset)
        about = {
            "facts_file": {"file": facts, "sha256": _checksum(facts), "count": len(fact_list)},
            "preset": {"name": base.name, "status": base.status, "figures": base.figures},
            "changed_settings": settings or [],
        }
        config = change_settings(base.config, settings)
        run = EditRun(loaded, chosen, config, fact_list, out, independent, tokens, progress, about)
        run.run()
    _tell(run.report(run.complete))
    say(str(out / "report.json"))
    if run.interrupted:
        raise typer.Exit(INTERRUPTED)
    if not run.entries:
        raise typer.Exit(1)


def _checksum(facts: str) -> str | None:
    path = Path(facts)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _tell(report: dict) -> None:
    means, seconds = report["means"], report["seconds_per_edit"]
    figures = [
        f"{name} {means[name]:.3f}"
        for name in ("reliability", "generalization", "locality", "portability", "target_probability")
        if means.get(name) is not None
    ]
    done = f"{len(report['facts'])} facts edited" + (
        f", {len(report['failures'])} not" if report["failures"] else ""
    )
    note(f"{done}; {', '.join(figures)}" if figures else done)
    note(
        f"{seconds['total']:.1f} s an edit; undoing everything gave back the weights "
        f"{'bit by bit' if report['undo_exact'] else 'ONLY NEARLY: please report this'}."
    )
    if not report["complete"]:
        note("Stopped early; the report holds what was done.")
