"""Presets of a method by name: the standard one everywhere, others where they were measured."""

import pytest

from nmke.cli.lifelong import read_entrants
from nmke.errors import EditError
from nmke.loading import LoadedModel
from nmke.methods import methods
from nmke.presets import STANDARD, _Verified, preset_for, presets_for


@pytest.fixture
def careful(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """A model for which NMKE has a second preset."""
    key = ("nmke", "careful", tiny.n_layers, tiny.d_model, tiny.d_mlp, tiny.d_vocab)
    found = _Verified({"layers": (1,), "ridge": 7.0}, "Measured in a test.")
    monkeypatch.setattr("nmke.presets._MORE", {key: found})
    return tiny


def test_every_method_has_a_standard_preset_that_comes_first(tiny: LoadedModel) -> None:
    for name in methods():
        known = presets_for(tiny, name)
        assert next(iter(known)) == STANDARD
        assert known[STANDARD] == preset_for(tiny, name)
        assert known[STANDARD].status == "guessed"


def test_a_further_preset_is_found_by_its_name(careful: LoadedModel) -> None:
    assert list(presets_for(careful, "nmke")) == [STANDARD, "careful"]
    assert list(presets_for(careful, "alphaedit")) == [STANDARD]
    found = preset_for(careful, "nmke", "careful")
    assert (found.name, found.status, found.figures) == ("careful", "verified", "Measured in a test.")
    assert found.config.model_dump()["ridge"] == 7.0
    assert preset_for(careful, "nmke").config.model_dump()["ridge"] != 7.0


def test_a_preset_there_is_not_names_those_that_are(careful: LoadedModel) -> None:
    with pytest.raises(EditError, match=r"NMKE has no preset 'reckless'.*Presets: standard, careful\."):
        preset_for(careful, "nmke", "reckless")


def test_an_entrant_begins_with_the_preset_it_names(careful: LoadedModel) -> None:
    named, own, plain = read_entrants(
        "nmke@careful", ["mine=nmke@careful:ridge=8", "plain = nmke : layers=0"], ["nmke.context_seed=3"]
    )
    assert [one.label for one in (named, own, plain)] == ["nmke careful", "mine", "plain"]
    assert named.on(careful).config.model_dump()["ridge"] == 7.0
    assert own.on(careful).config.model_dump()["ridge"] == 8.0
    assert plain.on(careful).config.model_dump()["ridge"] != 7.0
    assert all(one.on(careful).config.model_dump()["context_seed"] == 3 for one in (named, own, plain))
