"""Presets of a method by name: the standard one everywhere, others where they were measured."""

import pytest

from nmke.cli.lifelong import read_entrants
from nmke.cli.options import change_settings
from nmke.errors import ConfigError, EditError
from nmke.loading import LoadedModel
from nmke.methods import methods
from nmke.presets import STANDARD, _Verified, changed_anywhere, preset_for, presets_for


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


def test_before_the_model_is_known_a_change_may_fit_any_preset(careful: LoadedModel) -> None:
    def config_with(*changes: str) -> object:
        return changed_anywhere("nmke", lambda base: change_settings(base, changes)).model_dump()["mask"]

    # By the authors' defaults the highest share is 0.4, by a measured preset 0.8.
    assert config_with("mask.general_low=0.5")["general_high"] == 0.8
    assert config_with("mask.general_low=0.2")["general_high"] == 0.4
    with pytest.raises(ConfigError, match=r"lowest share 0.9 is above their highest share 0.85"):
        config_with("mask.general_low=0.9", "mask.general_high=0.85")
    with pytest.raises(ConfigError, match="no setting 'speed'"):
        config_with("speed=1")


@pytest.mark.parametrize(("text", "layers"), [("1-2", [1, 2]), ("2", [2]), ("all", None)])
def test_layers_are_written_the_same_way_where_none_are_the_default(
    text: str, layers: list[int] | None
) -> None:
    (entrant,) = read_entrants("kn", None, [f"kn.layers={text}"])
    found = change_settings(methods()["kn"].config_class(), entrant.changes).model_dump()["layers"]
    assert found == (layers if layers is None else tuple(layers))
