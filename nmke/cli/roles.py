"""``nmke roles``: which neurons work for all tasks, for one domain, for one task."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nmke.cli.options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    OutOption,
    SetOption,
    TrustOption,
    change_settings,
    make_folder,
    parse_layers,
)
from nmke.cli.report import model_record
from nmke.cli.terminal import TerminalProgress, note, say

if TYPE_CHECKING:
    from nmke.roles import Roles


def roles(
    out: OutOption,
    model: ModelOption = "smollm2-135m",
    questions: Annotated[
        str, typer.Option("--questions", "-q", help="mmlu, builtin, or a file of questions (JSONL or CSV).")
    ] = "mmlu",
    subjects: Annotated[
        str, typer.Option(help="As a,b,c; by default MMLU's high school and college biology and chemistry.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="So many questions of each subject.")
    ] = None,
    layers: Annotated[str, typer.Option(help="For example 4-8, or 4,6,8, or all.")] = "all",
    attribution: Annotated[
        Literal["lps", "psa", "mpc"],
        typer.Option(
            help="Score: rise of log-probability, of probability, or activation (by far the fastest)."
        ),
    ] = "lps",
    settings: SetOption = None,
    keep_scores: Annotated[
        bool, typer.Option("--keep-scores", help="Write the ranks too, two bytes a neuron and question.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
) -> None:
    """Score every neuron on the questions of several subjects, and tell general, domain and task neurons apart.

    Writes roles.parquet (one row a neuron: role, and per subject whether it is active, its mean score and activation)
    and summary.json (counts per role and layer with intervals, stability, overlaps, settings, source). Scores are
    kept in the user's cache, so that the same command with another rule takes seconds.
    """
    chosen_layers = parse_layers(layers)
    from nmke.loading import load_model
    from nmke.questions import load_questions
    from nmke.roles import RolesConfig, assign_roles, save_roles, save_scores, score_once
    from nmke.roles.config import TOLERANCE
    from nmke.roles.scores import require_tasks
    from nmke.scores import AttributionConfig

    start = RolesConfig(attribution=AttributionConfig(kind=attribution, tolerance=TOLERANCE))
    config = change_settings(start, settings)
    with TerminalProgress() as progress:
        names = [name.strip() for name in subjects.split(",") if name.strip()]
        asked = load_questions(questions, names, limit, config.seed, progress)
        require_tasks(asked)
        make_folder(out)
        loaded = load_model(model, device, dtype, trust_remote_code=trust_remote_code, progress=progress)
        loaded.require_conformance()
        scores = score_once(loaded, asked, chosen_layers, config, progress)
        found = assign_roles(scores, config, progress)
        progress.update("writing files", 0, 1)
        more = {
            "model": model_record(loaded),
            "questions_asked": {"source": questions, "subjects": names, "limit": limit, "seed": config.seed},
        }
        save_roles(found, out, **more)
        if keep_scores:
            save_scores(scores, out)
    note(_sentence(found))
    say(str(out))


def _sentence(found: "Roles") -> str:
    counts = ", ".join(f"{count} {role}" for role, count in sorted(found.totals().items()))
    text = (
        f"{sum(found.sizes)} questions of {len(found.tasks)} subjects, {len(found.layers)} layers: {counts}."
    )
    if found.stability is not None:
        text += f" {found.stability.kept[0]:.1%} keep their role when the questions are drawn anew."
    return text
