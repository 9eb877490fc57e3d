"""Saving and loading sessions."""

import json
from pathlib import Path

import pytest
import torch

from nmke.bundle import load_session
from nmke.errors import ResourceError, SessionError
from nmke.loading import LoadedModel, load_model
from nmke.session import EditSession
from tests.tiny import make_tiny
from tests.unit.test_session import make_edit


def edited(model: LoadedModel, edits: int = 3) -> EditSession:
    session = EditSession(model)
    for seed in range(edits):
        session.apply(make_edit(model, seed))
    return session


def test_a_saved_session_comes_back_bit_by_bit(tiny: LoadedModel, tmp_path: Path) -> None:
    session = edited(tiny)
    session.save(tmp_path / "bundle")
    again, identical = load_session(tiny, tmp_path / "bundle")
    assert identical
    assert again.version == 3
    assert all(torch.equal(again.master(layer), session.master(layer)) for layer in range(4))
    assert torch.equal(again.history_keys(2), session.history_keys(2))
    assert again.edits[1].facts == session.edits[1].facts


def test_the_record_names_model_and_library_versions(llama: LoadedModel, tmp_path: Path) -> None:
    edited(llama, 1).save(tmp_path / "bundle")
    record = json.loads((tmp_path / "bundle" / "session.json").read_text())
    assert record["model"]["weight_hash"] == llama.weight_hash
    assert record["libraries"]["torch"] == torch.__version__


def test_an_empty_session_can_be_saved_too(llama: LoadedModel, tmp_path: Path) -> None:
    EditSession(llama).save(tmp_path / "bundle")
    assert EditSession.load(llama, tmp_path / "bundle").version == 0


def test_a_bundle_of_another_model_is_refused_by_name(llama: LoadedModel, tmp_path: Path) -> None:
    other = load_model(str(make_tiny("llama", tmp_path / "other", seed=5)), device="cpu")
    edited(other, 1).save(tmp_path / "bundle")
    with pytest.raises(SessionError, match="made for other, whose weights are not those of llama"):
        load_session(llama, tmp_path / "bundle")


def test_an_older_bundle_is_replaced_and_another_folder_is_not(llama: LoadedModel, tmp_path: Path) -> None:
    edited(llama, 1).save(tmp_path / "bundle")
    edited(llama, 2).save(tmp_path / "bundle")
    assert EditSession.load(llama, tmp_path / "bundle").version == 2
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep me")
    with pytest.raises(SessionError, match="no edit bundle"):
        edited(llama, 1).save(tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep me"


def test_a_folder_that_is_no_bundle_is_named(llama: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"no edit bundle: it has no session\.json"):
        load_session(llama, tmp_path)


def test_a_truncated_bundle_is_reported_as_damaged(llama: LoadedModel, tmp_path: Path) -> None:
    folder = edited(llama, 1).save(tmp_path / "bundle")
    factors = folder / "factors.safetensors"
    factors.write_bytes(factors.read_bytes()[:100])
    with pytest.raises(SessionError, match="damaged"):
        load_session(llama, folder)


def test_a_full_disk_leaves_nothing_behind(
    llama: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nmke.bundle.save_file", full)
    with pytest.raises(ResourceError, match="disk is full"):
        edited(llama, 1).save(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
