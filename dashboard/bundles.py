"""A session's edits as one zip file: safetensors and JSON, nothing else."""

import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from nmke.errors import SessionError

T = TypeVar("T")
SUFFIXES = (".safetensors", ".json")
MAX_BYTES = 4 * 2**30
_REMEDY = "Choose a zip file that was saved on this page."


def zip_saved(save: Callable[[Path], object]) -> bytes:
    """Let ``save`` write a folder and return it zipped."""
    with tempfile.TemporaryDirectory(prefix="nmke-") as name:
        folder = Path(name) / "edits"
        save(folder)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(folder).as_posix())
        return buffer.getvalue()


def with_unzipped(data: bytes, load: Callable[[Path], T]) -> T:
    """Unzip into a folder that lives as long as ``load`` works on it.

    Raises:
        SessionError: no zip file, too large, or it holds anything but safetensors and JSON.
    """
    with tempfile.TemporaryDirectory(prefix="nmke-") as name:
        folder = Path(name)
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                _unpack(archive, folder)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as problem:
            raise SessionError("The file is no readable zip file.", _REMEDY) from problem
        return load(_bundle_root(folder))


def _unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    members = [member for member in archive.infolist() if not member.is_dir()]
    if sum(member.file_size for member in members) > MAX_BYTES:
        raise SessionError(f"The zip file unpacks to more than {MAX_BYTES // 2**30} GB.", _REMEDY)
    for member in members:
        path = PurePosixPath(member.filename)
        if path.suffix not in SUFFIXES or path.is_absolute() or ".." in path.parts:
            raise SessionError(f"The zip file holds {path.name!r}, which is no part of saved edits.", _REMEDY)
        target = folder.joinpath(*path.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)


def _bundle_root(folder: Path) -> Path:
    """The folder with the files, also when the zip wraps them in one more folder."""
    inner = list(folder.iterdir())
    if not inner:
        raise SessionError("The zip file is empty.", _REMEDY)
    return inner[0] if len(inner) == 1 and inner[0].is_dir() else folder
