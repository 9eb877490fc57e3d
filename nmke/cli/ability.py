"""``nmke ability``: how much a model can still do, before and after edits, by public benchmarks."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nmke.cli.options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    OutOption,
    TrustOption,
    make_folder,
)
from nmke.cli.terminal import TerminalProgress, note, say, warn

if TYPE_CHECKING:
    from nmke.ability import AbilityReport
    from nmke.loading import LoadedModel
    from nmke.session import EditSession


def ability(
    out: OutOption,
    tasks: Annotated[
        str, typer.Option("--tasks", "-t", help="As a,b,c of: mmlu, gsm8k, commonsense_qa, bbh, humaneval.")
    ] = "mmlu",
    model: ModelOption = "smollm2-135m",
    edits: Annotated[
        Path | None,
        typer.Option(
            "--edits",
            "-e",
            help="Folder of saved edits, or of a lifelong run (of one entrant in it, where there are several); "
            "without, the model as loaded.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            "-n",
            help="Questions of each task; of MMLU of each subject, of BBH of each of its tasks.",
        ),
    ] = None,
    subjects: Annotated[str, typer.Option(help="MMLU subjects, as a,b,c; without, all.")] = "",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with mmlu_test.jsonl, gsm8k_test.jsonl, commonsense_qa_dev.jsonl, bbh.jsonl, "
            "humaneval.jsonl; without, package index or hub."
        ),
    ] = None,
    run_code: Annotated[
        bool,
        typer.Option(
            "--run-code",
            help="Yes, run the code the model writes for HumanEval, confined. Off for good reason.",
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Which questions a limit takes: 0 the first ones, others draw.")
    ] = 0,
    mmlu_fewshot: Annotated[int, typer.Option(help="Solved examples before each MMLU question, 0 to 5.")] = 0,
    gsm8k_fewshot: Annotated[
        int, typer.Option(help="Worked examples before each GSM8K question, 0 to 8.")
    ] = 0,
    most_tokens: Annotated[
        int | None, typer.Option(help="Longest written answer; without, the harness's own length.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Questions computed at once.")] = 8,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
) -> None:
    """Judge general abilities with lm-evaluation-harness, zero-shot as in the paper unless told otherwise.

    Writes summary.json and answers.parquet. Answers are kept by model, edits and question, so that the same command
    costs nothing the second time and goes on where it was stopped.
    """
    from nmke.ability.config import AbilityConfig

    config = AbilityConfig.make(
        tasks=_names(tasks),
        subjects=_names(subjects),
        limit=limit,
        seed=seed,
        mmlu_fewshot=mmlu_fewshot,
        gsm8k_fewshot=gsm8k_fewshot,
        most_tokens=most_tokens,
        batch_size=batch_size,
        run_code=run_code,
    )
    from nmke.ability.harness import harness_version
    from nmke.ability.running import judge_abilities, read_task, require_consent, state_of

    # What can be refused is refused before a model is loaded.
    require_consent(config)
    harness_version()
    make_folder(out)
    with TerminalProgress() as progress:
        for task in config.tasks:
            read_task(task, config, data, progress)
        from nmke.ability.results import save_report
        from nmke.cli.report import model_record
        from nmke.loading import load_model
        from nmke.session import EditSession

        loaded = load_model(model, device, dtype, trust_remote_code=trust_remote_code, progress=progress)
        about: dict = {"model": model_record(loaded), "edits": None, "config": config.model_dump(mode="json")}
        session = EditSession(loaded)
        if edits is not None:
            session, about["edits"] = _open_edits(loaded, edits)
            if not about["edits"]["bit_identical"]:
                warn("The edited weights differ in the last bit from those that were saved.")
        with session.active():
            report = judge_abilities(loaded, config, state_of(session), data, progress)
        save_report(report, out, about)
    _tell(report)
    say(str(out / "summary.json"))


def _open_edits(model: "LoadedModel", folder: Path) -> "tuple[EditSession, dict[str, Any]]":
    from nmke.bundle import load_session
    from nmke.lifelong.saved import is_run, only_run

    if is_run(folder):
        run = only_run(model, folder)
        # A checkpoint that does not give its bits is refused.
        session, exact, name = run.open(model), True, run.label
    else:
        session, exact = load_session(model, folder)
        name = folder.name
    about = {
        "bundle": name,
        "count": session.version,
        "digest": session.digest,
        "bit_identical": exact,
    }
    return session, about


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _tell(report: "AbilityReport") -> None:
    for score in report.scores:
        told = (
            f"{score.task}: {score.value:.3f} ({score.interval.low:.3f} to {score.interval.high:.3f}) on "
            f"{score.n} question{'' if score.n == 1 else 's'}, {score.metric}, {score.fewshot} examples; "
        )
        note(told + ("known already" if score.cached else f"{score.seconds:.0f} s"))
        if score.truncated:
            warn(f"{score.truncated} prompts of {score.task} were too long and lost their beginning.")
