"""``nmke ablate``: what a model still answers when some of its neurons are switched off."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nmke.cli.options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    OutOption,
    TrustOption,
    make_folder,
    parse_layers,
    read_fact_file,
)
from nmke.cli.terminal import TerminalProgress, note, say
from nmke.errors import AblationError, ConfigError

if TYPE_CHECKING:
    from nmke.ablation import AblationConfig, AblationResults, NeuronSet
    from nmke.loading import LoadedModel
    from nmke.progress import Progress

_ROLES = ("general", "domain", "task", "mixed", "inactive")


def ablate(
    out: OutOption,
    model: ModelOption = "smollm2-135m",
    roles: Annotated[Path | None, typer.Option(help="Folder that `nmke roles` wrote.")] = None,
    facts: Annotated[
        str,
        typer.Option(
            "--facts",
            "-f",
            help="File of facts, or 'examples': neurons their masks call general or specific.",
        ),
    ] = "",
    neurons: Annotated[
        Path | None, typer.Option(help="A set saved as JSON, or a file with one layer:neuron a line.")
    ] = None,
    role: Annotated[
        str,
        typer.Option(
            help="general, domain, task, mixed or inactive of --roles (domain:biology and task:college_biology name "
            "one), general or specific of --facts; several with commas.",
        ),
    ] = "general",
    k: Annotated[str, typer.Option("--k", help="How many neurons, as 10,50.")] = "10,50",
    layers: Annotated[str, typer.Option(help="For example 4-8, or 4,6,8, or all.")] = "all",
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="k neurons of each layer, not of all together.")
    ] = False,
    how: Annotated[
        Literal["zero", "mean"], typer.Option(help="Switch off by zero or by mean activation.")
    ] = "zero",
    questions: Annotated[
        str, typer.Option("--questions", "-q", help="mmlu, builtin, or a file of questions.")
    ] = "mmlu",
    subjects: Annotated[
        str, typer.Option(help="As a,b,c; by default MMLU's high school and college biology and chemistry.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="So many of each subject.")
    ] = None,
    scores: Annotated[
        str, typer.Option(help="Of letters, cloze, written, loss.")
    ] = "letters,cloze,written,loss",
    tokens: Annotated[int, typer.Option(min=1, help="Length of the written answers.")] = 20,
    controls: Annotated[
        int, typer.Option(min=0, help="Random sets of the same size in the same layers.")
    ] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the random sets and the questions drawn.")] = 0,
    edits: Annotated[Path | None, typer.Option(help="A bundle of edits that is in force throughout.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
) -> None:
    """Switch neurons off and answer the same questions, beside random neurons and beside none.

    Writes summary.json (per condition: accuracy by letters, by cloze, by the written answer, the loss, intervals, and
    the paired change against none) and answers.parquet. Answers are kept in the folder as they come, so the same
    command again goes on where it was stopped.
    """
    chosen_layers = parse_layers(layers)
    if sum(map(bool, (roles, facts, neurons))) != 1:
        raise ConfigError(
            "It is not said where the neurons come from."
            if not (roles or facts or neurons)
            else "The neurons come from one place.",
            "Give one of --roles DIR (from `nmke roles`), --facts FILE, or --neurons FILE.",
        )
    from nmke.ablation import AblationConfig, run_ablation
    from nmke.answers import AnswersConfig
    from nmke.bundle import load_session
    from nmke.loading import load_model
    from nmke.questions import load_questions
    from nmke.session import EditSession

    answers = AnswersConfig.make(scores=tuple(_names(scores)), written_tokens=tokens)
    config = AblationConfig.make(
        ks=_ks(k),
        counted="per layer" if per_layer else "in all",
        how=how,
        controls=controls,
        seed=seed,
        answers=answers,
    )
    if not neurons:
        _require_roles(_names(role), bool(facts))
    with TerminalProgress() as progress:
        asked = load_questions(questions, _names(subjects), limit, seed, progress)
        make_folder(out)
        loaded = load_model(model, device, dtype, trust_remote_code=trust_remote_code, progress=progress)
        session = EditSession(loaded) if edits is None else load_session(loaded, edits)[0]
        if neurons:
            sets = [_from_file(loaded, neurons)]
        elif roles:
            sets = _from_roles(roles, _names(role), config, chosen_layers)
        else:
            sets = _from_facts(loaded, facts, _names(role), config, chosen_layers, progress)
        results = run_ablation(session, asked, sets, config, progress, folder=out)
        results.save(out)
    _tell(results)
    say(str(out / "summary.json"))


def _from_roles(
    folder: Path, named: list[str], config: "AblationConfig", layers: list[int] | None
) -> "list[NeuronSet]":
    from nmke.ablation import of_role
    from nmke.roles import load_roles

    found, sets = load_roles(folder), []
    for text in named:
        role, _, which = text.partition(":")
        which = which.strip()
        task = which if which in found.tasks else None
        domain = which if which and task is None else None
        sets += [
            of_role(found, role.strip(), k, layers=layers, task=task, domain=domain, counted=config.counted)
            for k in config.ks
        ]
    return sets


def _from_facts(
    model: "LoadedModel",
    file: str,
    named: list[str],
    config: "AblationConfig",
    layers: list[int] | None,
    progress: "Progress",
) -> "list[NeuronSet]":
    from nmke.ablation import of_kind
    from nmke.attribution import attribute, prompts_of

    attribution = attribute(model, prompts_of(read_fact_file(file, None)), layers, None, progress)
    return [of_kind(model, attribution, kind, k, counted=config.counted) for kind in named for k in config.ks]


def _from_file(model: "LoadedModel", path: Path) -> "NeuronSet":
    from nmke.ablation import by_hand, load_set

    if path.suffix == ".json":
        return load_set(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AblationError(f"The neurons in {path} cannot be read ({error}).", "Check the path.") from None
    return by_hand(model, text, path.stem)


def _require_roles(named: list[str], facts: bool) -> None:
    known = ("general", "specific") if facts else _ROLES
    if not named:
        raise ConfigError("No role is named.", f"Give --role with {', '.join(known)}.")
    for text in named:
        if text.partition(":")[0].strip() not in known:
            where = "--facts tells" if facts else "--roles tells"
            raise ConfigError(f"There is no role {text!r}.", f"{where} {', '.join(known)}.")


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _ks(text: str) -> tuple[int, ...]:
    parts = _names(text)
    if not parts or not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise ConfigError(f"--k {text} is no list of whole numbers.", "Write for example --k 10,50.")
    return tuple(map(int, parts))


def _tell(results: "AblationResults") -> None:
    """One line a condition, on standard error."""
    for one in results.conditions:
        parts = []
        for score in results.scores:
            found = results.estimate(one.name, score)
            if found is not None:
                parts.append(f"{score} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}]")
        note(f"{one.name}: {'; '.join(parts)}")
    for score in results.scores:
        chance = results.chance(score)
        if chance is not None:
            word = "beats" if chance["beats"] else "does not beat"
            note(
                f"By {score} the unablated model {word} chance ({chance['value']:.3f} against {chance['chance']:.3f}, "
                f"p = {chance['p_value']:.2g})."
            )
