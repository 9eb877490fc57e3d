"""The files of a sweep's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nmke.errors import SessionError
from nmke.lifelong.files import read_json
from nmke.store import write_json
from nmke.sweep.planning import Plan
from nmke.versions import library_versions

MANIFEST, SUMMARY, RUNS = "sweep.json", "summary.json", "runs"
FORMAT = 1


def write_manifest(folder: Path, plan: Plan) -> None:
    """Write ``sweep.json``. Runs of an earlier start may be left out or added to, but not changed.

    Raises:
        SessionError: a run of the same name has other settings there.
        ResourceError: the folder cannot be written.
    """
    runs = [{**run.to_dict(), "command": run.command()} for run in plan.runs]
    if (folder / MANIFEST).exists():
        before = {run["name"]: run for run in read_manifest(folder)["runs"]}
        for run in runs:
            old = before.get(run["name"])
            different = [name for name in run if old is not None and old.get(name) != run[name]]
            if different:
                told = _different(old or {}, run, different[0])
                raise SessionError(
                    f"The folder {folder.name} holds another sweep: of {run['name']} {told}.",
                    "Give a new folder, or repeat the settings of that sweep to go on with it.",
                )
    elif folder.is_dir() and (strange := [path.name for path in folder.iterdir() if path.name != ".lock"]):
        raise SessionError(
            f"The folder {folder.name} holds something that is no sweep ({strange[0]}).",
            "Choose a new folder.",
        )
    write_json(folder / MANIFEST, {"format": FORMAT, "runs": runs, "versions": library_versions()})


def read_manifest(folder: Path) -> dict[str, Any]:
    """What :func:`write_manifest` wrote.

    Raises:
        ResourceError: there is none, or it is damaged.
        SessionError: of another version.
    """
    found: dict[str, Any] = read_json(folder / MANIFEST)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise SessionError(
            f"{MANIFEST} has a form this program does not read.", "Use the version that wrote it."
        )
    return found


def _different(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> str:
    if name == "config":
        name = next(key for key in new["config"] if new["config"][key] != old.get("config", {}).get(key))
        old, new = old.get("config", {}), new["config"]
    return f"{name} is {str(old.get(name))[:60]} there and {str(new[name])[:60]} here"
