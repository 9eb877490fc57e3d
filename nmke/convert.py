"""GGUF to safetensors, once: afterwards the model loads in about a second.

The work runs in a child process (``python -m nmke.convert SOURCE TARGET``), so that a cancel ends it
at once and the memory for the dequantized weights is given back.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from nmke import child
from nmke.errors import ModelError, NmkeError
from nmke.progress import Progress, Silent
from nmke.storage import (
    disk_full,
    locked,
    partial_folder,
    publish,
    require_space,
    sha256_of,
    size_of,
    writing,
)
from nmke.versions import library_versions

RECORD = "nmke.json"
GIVE_WHOLE = "Get the file again, or choose another GGUF file or a folder with safetensors."
_STAGES = ("Reading the GGUF file", "Converting weights", "Reading the tokenizer", "Writing safetensors")


def convert_gguf(source: Path, target: Path, progress: Progress | None = None, origin: str = "") -> Path:
    """Convert a GGUF file to the folder ``target``; a folder made earlier from the same file is kept.

    The folder appears whole or not at all, also when two processes convert at once.

    Raises:
        ModelError: the file is truncated, or of an architecture that cannot be read.
        ResourceError: the disk is full.
        Cancelled: when the progress says so; nothing is left behind.
    """
    progress = progress or Silent()
    require_magic(source)
    digest = sha256_of(source, progress)
    with locked(target.parent, progress):
        if is_converted(target, digest):
            return target
        require_space(target.parent, 6 * source.stat().st_size)
        with partial_folder(target.parent) as scratch:
            made, temporary = scratch / target.name, scratch / "tmp"
            made.mkdir()
            temporary.mkdir()

            def tick(out: str) -> None:
                stage = max(out.count("\n") - 1, 0)
                note = f"{size_of(made) >> 20} MiB written" if stage == len(_STAGES) - 1 else source.name
                progress.update(_STAGES[min(stage, len(_STAGES) - 1)], stage, len(_STAGES), note)

            # Nothing is asked of the hub: a converted file needs nothing from there.
            quiet = {
                "HF_HUB_OFFLINE": "1",
                "TRANSFORMERS_VERBOSITY": "error",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            }
            done = child.run_module(
                ["nmke.convert", str(source), str(made)], scratch=temporary, environment=quiet, tick=tick
            )
            if done.code != 0:
                raise _conversion_error(source, done, target.parent)
            record = {"source": origin or source.name, "sha256": digest, "versions": library_versions()}
            (made / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            return publish(made, target)


def require_magic(source: Path) -> None:
    """Refuse at once what is no GGUF file.

    Raises:
        ModelError: naming the file.
    """
    try:
        with source.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"{source} cannot be read ({error.strerror}).", "Check the path.") from error
    if magic != b"GGUF":
        raise ModelError(f"{source.name} is no GGUF file.", GIVE_WHOLE)


def is_converted(folder: Path, sha256: str) -> bool:
    """Whether the folder was converted, whole, from the file with this checksum."""
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))["sha256"] == sha256
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _conversion_error(source: Path, done: child.Finished, folder: Path) -> NmkeError:
    try:
        problem = json.loads(done.out.strip().splitlines()[-1])["problem"]
    except (ValueError, KeyError, IndexError, TypeError):
        problem = f"the converter stopped with code {done.code}"
        if done.code in (-9, 137):
            problem = "the system ended the converter, most likely for want of memory"
    if _tells_full_disk(problem) or _tells_full_disk(done.err):
        return disk_full(folder)
    if "not supported" in problem:
        return ModelError(f"{source.name} is of a kind that cannot be read: {problem}", GIVE_WHOLE)
    return ModelError(f"{source.name} is damaged or cut off and cannot be converted ({problem}).", GIVE_WHOLE)


def _tells_full_disk(text: str) -> bool:
    return "No space left" in text or "os error 28" in text or "Disk quota exceeded" in text


def write_safetensors(source: Path, target: Path) -> None:
    """Read a GGUF file with transformers and save it, dequantized to float32, with its tokenizer.

    Raises:
        ModelError: weights are missing in the file, or its architecture is unknown.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _tell("weights")
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    reader: Any = AutoModelForCausalLM
    model, report = reader.from_pretrained(**where, dtype=torch.float32, output_loading_info=True)
    # transformers fills what the file lacks with random numbers and only logs it.
    lacking = sorted({*report["missing_keys"]} - {*(getattr(model, "_tied_weights_keys", None) or ())})
    if lacking:
        raise ModelError(f"{len(lacking)} weights are missing, {lacking[0]} among them")
    _tell("tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # The weights are plain float32 now, and saving refuses a model that says it is quantized.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    _tell("writing")
    with writing(target):
        tokenizer.save_pretrained(target)
        model.save_pretrained(target)


def _tell(stage: str) -> None:
    sys.stdout.write(json.dumps({"stage": stage}) + "\n")
    sys.stdout.flush()


def _main(source: str, target: str) -> int:
    os.umask(0o022)
    _tell("start")
    try:
        write_safetensors(Path(source), Path(target))
    except Exception as error:  # whatever the readers trip over in a damaged file becomes one sentence
        detail = next(iter(str(error).splitlines()), "")[:300]
        known = isinstance(error, NmkeError)
        sys.stdout.write(
            json.dumps({"problem": detail if known else f"{type(error).__name__}: {detail}"}) + "\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
