"""The cache folder: where it lies, and how files come into it whole or not at all."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from safetensors import SafetensorError

from nmke.errors import ResourceError
from nmke.progress import Progress, Silent

PARTIAL = ".partial-"


def home() -> Path:
    """The folder of everything fetched: ``NMKE_HOME``, else the user's cache folder."""
    chosen = os.environ.get("NMKE_HOME", "").strip()
    return Path(chosen).expanduser().resolve() if chosen else user_cache_path("nmke", appauthor=False)


def sha256_of(path: Path, progress: Progress | None = None, stage: str = "") -> str:
    """The file's SHA-256 in hexadecimal."""
    progress, stage = progress or Silent(), stage or f"Checking {path.name}"
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            progress.update(stage, done, total, "bytes")
    return digest.hexdigest()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns the system's refusals to write below ``folder`` into errors with a remedy."""
    try:
        yield
    except OSError as error:
        refused = refusal(error, folder)
        if refused is None:
            raise
        raise refused from error
    except SafetensorError as error:
        # It reports what the system refused in words alone.
        if "No space left" not in str(error):
            raise
        raise disk_full(folder) from error


def refusal(error: OSError, folder: Path) -> ResourceError | None:
    """The error with a remedy for a full disk or a folder that may not be written, else None."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(folder)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return ResourceError(
            f"The folder {folder} cannot be written ({error.strerror}).",
            "Set NMKE_HOME to a folder of yours and try again.",
        )
    return None


def disk_full(folder: Path) -> ResourceError:
    """The error for a full disk."""
    return ResourceError(
        f"The disk is full: not enough room under {folder}.",
        "Free some space, or set NMKE_HOME to a folder on another disk, and try again; "
        "the unfinished files have been removed.",
    )


def require_space(folder: Path, needed: int) -> None:
    """Refuse early what cannot fit on the disk.

    Raises:
        ResourceError: when ``needed`` bytes are not free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"The disk is too full: {megabytes(needed)} are needed under {folder} and {megabytes(free)} "
            "are free.",
            "Free some space, or set NMKE_HOME to a folder on another disk.",
        )


def megabytes(count: float) -> str:
    """A byte count for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


@contextlib.contextmanager
def locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Only one process or thread at a time fills ``folder``; waiting can be cancelled.

    Whatever an earlier, killed process left unfinished there is removed.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", thread_local=False)
        waited = 0
        while True:
            try:
                lock.acquire(timeout=0.2)
                break
            except Timeout:
                waited += 1
                progress.update("Waiting for another nmke that fills the cache", waited, None)
    try:
        for leftover in folder.glob(PARTIAL + "*"):
            remove(leftover)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """A scratch folder on the same disk as ``folder``, removed at the end whatever happens."""
    with writing(folder):
        scratch = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    try:
        with writing(folder):
            yield scratch
    finally:
        remove(scratch)


def publish(source: Path, target: Path) -> Path:
    """Move a finished file or folder to its final name in one step; an older one is replaced."""
    if target.is_dir():
        old = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=target.parent))
        target.rename(old / target.name)
        source.rename(target)
        remove(old)
    else:
        source.replace(target)
    return target


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what vanishes meanwhile counts as nothing."""
    # os.walk passes over folders that are gone by the time it reads them; Path.rglob raises.
    below = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    total = 0
    for item in below if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            total += item.stat().st_size if item.is_file() else 0
    return total
