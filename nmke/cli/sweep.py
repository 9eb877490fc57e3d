"""``nmke sweep``: methods, settings, layers, seeds, models and data in every combination, here or on a Ray cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nmke.cli.options import OutOption
from nmke.cli.terminal import TerminalProgress, note, say, warn
from nmke.errors import ConfigError

if TYPE_CHECKING:
    from nmke.sweep import Executor, SweepResults


def sweep(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="The sweep's file; see docs/.")],
    out: OutOption,
    executor: Annotated[
        Literal["local", "ray"],
        typer.Option(help="local: one run after the other here; ray: on a Ray cluster."),
    ] = "local",
    address: Annotated[
        str,
        typer.Option(help="Ray: HOST:PORT of the head, or auto; without, Ray is started on this machine."),
    ] = "",
    requirements: Annotated[
        str, typer.Option(metavar="FILE", help="Ray: pip installs these on the workers first.")
    ] = "",
    gpus_per_run: Annotated[float, typer.Option(help="Ray: GPUs of each run; 0.5 puts two on one.")] = 0.0,
    cpus_per_run: Annotated[int, typer.Option(help="Ray: CPU cores of each run.")] = 1,
    memory_per_run: Annotated[float, typer.Option(help="Ray: GB of memory to reserve for each run.")] = 0.0,
    yes: Annotated[bool, typer.Option("--yes", help="Ten thousand runs or more are meant.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print each run's command and do nothing; nothing is loaded.")
    ] = False,
) -> None:
    """Run every combination of a file's methods, settings, layers, seeds, models and data as a lifelong run.

    The same command again goes on where it was stopped or killed: finished runs are passed over. Writes sweep.json
    with the command of each run, summary.json with states, figures and best configurations, and a folder per run.
    """
    from nmke.sweep import plan, read_spec, run_sweep

    planned = plan(read_spec(spec), many=yes)
    note(f"{len(planned.runs)} runs, {planned.edits:,} edits in all.")
    if dry_run:
        for run in planned.runs:
            say(run.command())
        return
    worker = _executor(executor, address, requirements, gpus_per_run, cpus_per_run, memory_per_run)
    with TerminalProgress() as progress:
        results = run_sweep(out, planned, worker, progress, warn)
    _tell(results)
    say(str(out / "summary.json"))
    if not results.complete:
        raise typer.Exit(1)


def _executor(
    kind: str, address: str, requirements: str, gpus: float, cpus: int, memory: float
) -> "Executor | None":
    if kind == "ray":
        from nmke.sweep.ray_config import RayConfig
        from nmke.sweep.ray_executor import RayExecutor

        return RayExecutor(
            RayConfig.make(address=address, requirements=requirements, gpus=gpus, cpus=cpus, memory_gb=memory)
        )
    given = {
        "--address": address,
        "--requirements": requirements,
        "--gpus-per-run": gpus,
        "--cpus-per-run": cpus != 1,
        "--memory-per-run": memory,
    }
    stray = next((option for option, value in given.items() if value), None)
    if stray:
        raise ConfigError(f"{stray} is for Ray.", "Add --executor ray, or leave it out.")
    return None


def _tell(results: "SweepResults") -> None:
    states = [entry["state"] for entry in results.status]
    note(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    for entry in results.status:
        if entry["message"]:
            note(f"{entry['name']}: {entry['state']}. {entry['message']}")
    for best in results.best():
        figures = ", ".join(
            f"{name} {best[name]:.3f}"
            for name in ("reliability", "generalization", "locality")
            if best[name] is not None
        )
        note(f"Best {best['method']} of {best['of']} at {best['T']}: {best['label']} ({figures})")
