"""Benchmark runs on disk and in work, without drawing anything: which there are, what they hold, start and resume."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dashboard import jobs, state
from dashboard.benchmark_tables import with_abilities
from nmke.errors import ConfigError, FactError, NmkeError, ResourceError
from nmke.progress import Progress
from nmke.storage import PARTIAL, home

if TYPE_CHECKING:
    from nmke.lifelong import Entrant, LifelongConfig
    from nmke.lifelong.data import Data
    from nmke.loading import LoadedModel

PURPOSE = "benchmark"
SPEC = "spec.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")

Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Run:
    """A run as it stands on disk.

    Attributes:
        name: what the page calls it.
        folder: where it lies.
        key: changes with every file of the run.
        results: the engine's ``Results``.
        table: one row a label, seed and T.
        numbers: changes with the numbers of the table, not with every edit.
    """

    name: str
    folder: Path
    key: Fingerprint
    results: Any
    table: pd.DataFrame
    numbers: str

    @property
    def spec(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.results.spec
        return found

    @property
    def complete(self) -> bool:
        return bool(self.results.complete)

    @property
    def at_work(self) -> bool:
        """Whether somebody works on it: this window's job, another window or a program."""
        return bool(self.results.at_work)

    @property
    def model(self) -> tuple[str, str]:
        """The model's name and the hash of its weights, as far as the specification tells them."""
        told = self.spec.get("model", {})
        if not isinstance(told, Mapping):
            return str(told), ""
        name = Path(str(told.get("name", ""))).name
        return name, str(told.get("weight_hash") or told.get("hash") or "")


# ---- on disk ----------------------------------------------------------------------------------------------------


def runs_folder() -> Path:
    """Where the page keeps its own runs."""
    return home() / "runs"


def list_runs() -> list[str]:
    """The names of the page's own runs, the newest first."""
    specs = runs_folder().glob(f"*/{SPEC}")
    return [spec.parent.name for spec in sorted(specs, key=_made, reverse=True)]


def _made(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def folder_of(name: str) -> Path:
    """The folder of one of the page's own runs, or of a path."""
    path = Path(name).expanduser()
    return path if path.is_absolute() or len(path.parts) > 1 else runs_folder() / name


def short_name(name: str) -> str:
    """What a run is called on the screen: the last part of its path."""
    return Path(name).name or name


def require_run(folder: Path) -> None:
    """Refuse a path that is no run.

    Raises:
        ResourceError: there is no such folder, or it holds no specification.
    """
    remedy = f"Name the folder that a run wrote; it holds a file {SPEC}."
    if not folder.is_dir():
        raise ResourceError(f"There is no folder {folder}.", remedy)
    if not (folder / SPEC).is_file():
        raise ResourceError(f"The folder {folder} is no benchmark run: it holds no {SPEC}.", remedy)


def fingerprint(folder: Path) -> Fingerprint:
    """Names, times and sizes of a run's files: equal fingerprints hold the same numbers."""
    found = []
    # os.walk passes over folders that are gone by the time it reads them; Path.rglob raises.
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(PARTIAL)]
        for path in (Path(place, name) for name in names if ".json" in name):
            try:
                told = path.stat()
            except OSError:  # it is being replaced
                continue
            found.append((path.relative_to(folder).as_posix(), told.st_mtime_ns, told.st_size))
    return tuple(sorted(found))


def is_at_work(name: str) -> bool:
    """Whether somebody works on the run at this moment, which no file tells."""
    from nmke.lifelong.files import is_held

    try:
        return is_held(folder_of(name))
    except OSError:  # opening the run tells what is wrong with it
        return False


def open_run(name: str) -> Run:
    """A run as it stands on disk; read again only when one of its files changed.

    Raises:
        NmkeError: it is no run, or its files are damaged.
    """
    folder = folder_of(name)
    require_run(folder)
    key = (*fingerprint(folder), ("", int(is_at_work(name)), 0))
    kept, called = state.get().kept, f"benchmark.run.{folder}"
    before: Run | None = kept.newest(called)
    found: Run = kept.get(called, key, lambda: _read(name, folder, key, before))
    return found


def _read(name: str, folder: Path, key: Fingerprint, before: Run | None = None) -> Run:
    from nmke import lifelong

    try:
        results = lifelong.read(folder, before.results if before is not None else None)
        table = with_abilities(results.table(), _abilities(results))
        numbers = f"{table.to_csv(index=False)}{results.unedited}"
        digest = hashlib.sha256(numbers.encode()).hexdigest()
        return Run(short_name(name), folder, key, results, table, digest)
    except NmkeError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as problem:
        raise ResourceError(
            f"The run in {folder} cannot be read: {type(problem).__name__}: {problem}.",
            "Its files are damaged or of another version. Restore them from a copy, or start the run again.",
        ) from problem


def _abilities(results: Any) -> dict[tuple[str, int, int], Mapping[str, Any]]:
    """The abilities of every mark, which stand in the events alone."""
    return {
        (entry["label"], entry["seed"], event["position"]): event["ability"]
        for entry in results.status
        for event in results.events(entry["label"], entry["seed"])
        if event["event"] == "mark" and event.get("ability")
    }


def predictions_of(run: Run, label: str, seed: int, mark: int) -> pd.DataFrame:
    """What the model said after ``mark`` edits, one row a prompt.

    Raises:
        NmkeError: the file is missing or damaged.
    """

    from nmke.lifelong.files import predictions_file

    def read() -> pd.DataFrame:
        try:
            found: pd.DataFrame = run.results.predictions(label, seed, mark)
        except NmkeError:
            raise
        except (KeyError, TypeError, ValueError, OSError) as problem:
            raise ResourceError(
                f"The predictions of {label}, seed {seed}, T = {mark} cannot be read "
                f"({type(problem).__name__}: {problem}).",
                "Their file is missing or damaged; resume the run, or restore the folder from a copy.",
            ) from problem
        return found

    path = predictions_file(run.folder, label, seed, mark)
    # A run that is at work changes with every edit; what was said at an earlier mark does not.
    told = path.stat() if path.is_file() else None
    key = (str(path), told and told.st_mtime_ns, told and told.st_size)
    found: pd.DataFrame = state.get().kept.get("benchmark.predictions", key, read)
    return found


# ---- facts ------------------------------------------------------------------------------------------------------


def facts_from(text: str) -> "Data":
    """The facts of ``counterfact:FILE``, ``zsre:FILE`` or a plain path; read again only when the file changed.

    Raises:
        FactError: there is no such file, or it holds no facts or those of the other data set.
    """
    from nmke.lifelong import read_data

    text = text.strip()
    name, colon, file = text.partition(":")
    path = Path(file if colon and name in ("counterfact", "zsre") else text).expanduser()
    if not text or not path.is_file():
        raise FactError(
            f"There is no file {path}." if text else "No file of facts is named yet.",
            "Write its path, for example counterfact:facts.json or zsre:zsre.json.",
        )
    told = path.stat()
    source = f"{name}:{path}" if colon and name in ("counterfact", "zsre") else str(path)
    key = (source, told.st_mtime_ns, told.st_size)
    found: Data = state.get().kept.get("benchmark.facts", key, lambda: read_data(source))
    return found


def examples() -> "Data":
    """The built-in examples."""
    from nmke.lifelong import read_data
    from nmke.lifelong.data import EXAMPLES

    found: Data = state.get().kept.get("benchmark.facts", EXAMPLES, lambda: read_data(EXAMPLES))
    return found


def page_facts() -> "Data":
    """The facts of the Facts page, named by their content."""
    from nmke.lifelong.data import Data
    from nmke.readers import facts_to_jsonl

    mine = state.get()

    def make() -> Data:
        content = facts_to_jsonl(mine.facts).encode()
        about = {
            "source": "the Facts page",
            "name": "the Facts page",
            "sha256": hashlib.sha256(content).hexdigest(),
            "count": len(mine.facts),
            "left_out": 0,
            "format": "facts of the dashboard",
        }
        return Data(mine.facts, about, ())

    found: Data = mine.kept.get("benchmark.facts", ("page", mine.facts_version), make)
    return found


# ---- numbers in a text box --------------------------------------------------------------------------------------


def parse_numbers(text: str, what: str, least: int) -> tuple[int, ...]:
    """``1, 10, 100`` as numbers in order, each once.

    Raises:
        ConfigError: one sentence saying what is wrong with the text.
    """
    parts = [part for part in re.split(r"[,;\s]+", text.strip()) if part]
    bad = [part for part in parts if not part.isdecimal() or len(part) > 9 or int(part) < least]
    if bad:
        raise ConfigError(
            f"{what}: {bad[0]!r} is not a whole number from {least} on.", "Write for example 1, 10, 100."
        )
    if not parts:
        raise ConfigError(f"{what}: there is no number.", "Write at least one, for example 1, 10, 100.")
    return tuple(sorted({int(part) for part in parts}))


# ---- work -------------------------------------------------------------------------------------------------------


def next_name() -> str:
    """A name no run has yet."""
    taken = {path.name for path in runs_folder().glob("*")}
    return next(name for number in range(1, 10**6) if (name := f"run-{number}") not in taken)


def check_name(name: str) -> str:
    """The name, when it can name a folder.

    Raises:
        ConfigError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"A run cannot be called {name!r}.",
            "Use letters, digits, points, - and _ (at most 60), with a letter or digit first.",
        )
    return name


def start(
    name: str,
    model: "LoadedModel",
    data: "Data",
    entrants: "Sequence[Entrant]",
    config: "LifelongConfig",
) -> None:
    """Start a run as this browser session's job.

    Raises:
        JobBusy: another run of this session is at work.
    """
    folder = runs_folder() / name

    def work(progress: Progress) -> str:
        from nmke import lifelong

        lifelong.start(folder, model, data.facts, entrants, config, data.about)
        lifelong.run(folder, model, progress)
        return name

    jobs.start(PURPOSE, f"Benchmark {name}", work)


def resume(name: str, model: "LoadedModel") -> None:
    """Go on with an unfinished run as a job.

    Raises:
        JobBusy: another run of this session is at work.
    """
    folder = folder_of(name)

    def work(progress: Progress) -> str:
        from nmke import lifelong

        lifelong.run(folder, model, progress)
        return name

    jobs.start(PURPOSE, f"Benchmark {short_name(name)}", work)


def say_status(run: Run, edits: int) -> pd.DataFrame:
    """One row a label and seed: how far it is, and about how long the rest takes."""
    rows = []
    for entry in run.results.status:
        done = int(entry.get("edits_done") or 0)
        rows.append(
            {
                "run": run.name,
                "editor": entry["label"],
                "method": entry["method"],
                "seed": entry["seed"],
                "progress": done / edits if edits else 0.0,
                "edits": done,
                "state": entry["state"],
                "left": _left(run.table, entry, edits - done),
                "message": entry.get("message") or "",
            }
        )
    return pd.DataFrame(rows)


def _left(table: pd.DataFrame, entry: Mapping[str, Any], edits: int) -> str:
    """The time the remaining edits take at this editor's pace so far; measuring comes on top."""
    if entry["state"] not in ("waiting", "running"):
        return "–"
    if table.empty or "seconds_per_edit" not in table:
        return "not known yet"
    mine = table[table["label"] == entry["label"]]
    pace = pd.to_numeric(mine["seconds_per_edit"], errors="coerce").dropna()
    if pace.empty:
        return "not known yet"
    return f"about {jobs.say_seconds(float(pace.iloc[-1]) * max(edits, 0))}"
