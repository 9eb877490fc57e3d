"""Drift, intervals, rows and locality against numbers written out by hand; a session through a checkpoint."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nmke.edit import Edit, WeightPatch
from nmke.facts import Consequence, Fact, Neighbor
from nmke.forcing import Answer
from nmke.lifelong.checkpoint import load_checkpoint, save_checkpoint
from nmke.lifelong.measures import (
    bootstrap,
    drift,
    drift_of,
    peak_memory_mb,
    rows_of,
    scores_of,
    timing,
    with_neighbors_before,
)
from nmke.loading import LoadedModel
from nmke.metrics import FactMeasure, compare
from nmke.session import EditSession

FACT = Fact(
    "The capital of France is",
    "France",
    "the boat",
    target_true="Paris",
    paraphrases=("I take France",),
    neighborhood=(Neighbor("The capital of Italy is", "Rome"), Neighbor("A cat says")),
    portability=(Consequence("France is ruled from", "the boat"), Consequence("The boat is in", "France")),
)


def answer(argmax: tuple[int, ...], forced: tuple[int, ...], log_p: float, target: str = "x") -> Answer:
    hits = tuple(a == b for a, b in zip(argmax, forced, strict=True))
    return Answer("p", target, argmax, hits, math.exp(log_p), log_p)


def measured() -> FactMeasure:
    own = (answer((7, 8), (7, 9), -1.0, "Rome"), answer((4,), (4,), -0.5, ""))
    new = (answer((1,), (1,), -3.0), answer((1,), (1,), -3.0))
    return FactMeasure(
        answer((5, 2), (5, 6), -0.5, "the boat"),
        answer((3,), (3,), -4.0, "Paris"),
        (answer((5, 6), (5, 6), -0.1),),
        (answer((3,), (3,), -2.0, "Paris"),),
        own,
        new,
        (answer((5, 6, 1), (5, 6, 7), -0.7, "the boat"), answer((4,), (3,), -2.5, "France")),
    )


def test_drift_is_the_relative_change_and_the_cosine_written_out() -> None:
    original = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    W = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    relative, cosine = drift_of(W, original)
    assert relative == pytest.approx(math.sqrt(1 + 4) / 5)
    assert cosine == pytest.approx((9 + 8) / (5 * math.sqrt(9 + 1 + 4)))


def test_drift_is_a_mean_over_the_changed_layers_and_none_without_a_change(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    assert drift(session) == {"drift": 0.0, "drift_cosine": 1.0, "layers": [], "module_parameters": 0}
    session.apply(_edit(tiny, {1: 0.5, 2: 0.25}))
    found = drift(session)
    assert [layer["layer"] for layer in found["layers"]] == [1, 2]
    for layer, own in zip((1, 2), found["layers"], strict=True):
        W0 = tiny.W_out(layer).double()
        left, right = _factors(tiny, layer)
        change = {1: 0.5, 2: 0.25}[layer] * (left @ right).double()
        assert own["drift"] == pytest.approx(float(change.norm() / W0.norm()), rel=1e-5)
    assert found["drift"] == pytest.approx(sum(layer["drift"] for layer in found["layers"]) / 2)
    assert found["drift_cosine"] == pytest.approx(sum(layer["drift_cosine"] for layer in found["layers"]) / 2)


def test_intervals_are_percentiles_of_means_of_seeded_draws() -> None:
    values = [0.0, 1.0, 1.0, 0.5]
    generator = np.random.default_rng(0)
    means = sorted(np.mean([values[i] for i in generator.integers(0, 4, 4)]) for _ in range(1000))
    low, high = bootstrap(values)
    assert low == pytest.approx(np.interp(0.025 * 999, range(1000), means))
    assert high == pytest.approx(np.interp(0.975 * 999, range(1000), means))
    assert low < sum(values) / 4 < high


def test_intervals_are_the_same_each_time_and_none_without_values() -> None:
    values = list(np.random.default_rng(1).random(50))
    assert bootstrap(values) == bootstrap(values) != bootstrap(values, seed=1)
    assert bootstrap([]) == (None, None)
    assert bootstrap([0.25]) == (0.25, 0.25)


def test_scores_are_means_over_the_facts_that_have_them() -> None:
    full = compare(FACT, measured(), measured())
    bare_fact = Fact("The capital of France is", "France", "Rome")
    bare_answers = FactMeasure(answer((1,), (1,), -1.0), None, (), (), (), ())
    bare = compare(bare_fact, bare_answers, bare_answers)
    found = scores_of([full, bare])
    assert found["reliability"] == (0.5 + 1.0) / 2
    assert found["reliability_probability"] == 1.0
    assert found["generalization"] == found["locality"] == 1.0
    assert found["locality_low"] == found["locality_high"] == 1.0
    assert found["portability"] == pytest.approx((2 / 3 + 0) / 2), "of the one fact that has questions"
    assert found["portability_low"] == found["portability_high"] == found["portability"]
    assert scores_of([bare])["locality"] is scores_of([bare])["locality_low"] is None
    assert scores_of([bare])["portability"] is scores_of([bare])["portability_high"] is None


def test_locality_compares_with_the_kept_tokens_of_the_unedited_model() -> None:
    after = measured()
    report = compare(FACT, with_neighbors_before(after, [(7, 1), (4,)]), after)
    assert report.locality == pytest.approx(2 / 3)
    every = rows_of(report, str, fact=3)
    rows = every[:4]
    assert [row["kind"] for row in rows] == ["prompt", "paraphrase", "neighborhood", "neighborhood"]
    assert [row["share"] for row in rows] == [0.5, 1.0, 0.5, 1.0]
    assert [row["kept"] for row in rows] == [None, None, False, True]
    assert [row["target_true"] for row in rows] == ["Paris", "Paris", "Rome", None]
    assert [row["log_p_true"] for row in rows] == [-4.0, -2.0, -1.0, None]
    assert [row["log_p_new"] for row in rows] == [-0.5, -0.1, -3.0, -3.0]
    assert [row["predicted"] for row in rows] == ["[5, 2]", "[5, 6]", "[7, 8]", "[4]"]
    assert {row["fact"] for row in every} == {3}
    follows = every[4:]
    assert [row["kind"] for row in follows] == ["portability"] * 2
    assert [row["target_new"] for row in follows] == ["the boat", "France"]
    assert [row["share"] for row in follows] == [pytest.approx(2 / 3), 0.0]
    assert [row["log_p_new"] for row in follows] == [-0.7, -2.5]
    assert [row["predicted"] for row in follows] == ["[5, 6, 1]", "[4]"]
    assert all(row["target_true"] is row["log_p_true"] is row["kept"] is None for row in follows)
    assert all(list(row) == list(every[0]) for row in every)


def test_seconds_are_told_per_fact() -> None:
    edits = [{"seconds": seconds, "facts": [0, 1]} for seconds in (2.0, 4.0, 12.0)]
    assert timing(edits) == {"seconds_per_edit": 2.0, "seconds_per_edit_mean": 3.0}
    assert timing([]) == {"seconds_per_edit": None, "seconds_per_edit_mean": None}


def test_the_peak_of_memory_only_grows(llama: LoadedModel) -> None:
    before = peak_memory_mb(llama)
    assert before is not None and before > 10
    assert (peak_memory_mb(llama) or 0) >= before


def test_a_checkpoint_gives_back_the_same_bits_in_the_same_layout(tiny: LoadedModel, tmp_path: Path) -> None:
    session = EditSession(tiny)
    for size in (0.5, 0.25):
        session.apply(_edit(tiny, {1: size, 2: size}))
        session.settle()
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(session, 2, path)
    saved = load_checkpoint(tiny, path, [FACT, FACT])
    assert saved is not None and saved.position == 2
    again = saved.session
    assert again.digest == session.digest
    assert [edit.facts for edit in again.edits] == [edit.facts for edit in session.edits]
    assert [edit.config for edit in again.edits] == [edit.config for edit in session.edits]
    assert [edit.details for edit in again.edits] == [edit.details for edit in session.edits]
    for layer in (1, 2):
        assert torch.equal(again.history_keys(layer), session.history_keys(layer))
        assert torch.equal(again.master(layer), session.master(layer))
        assert again.master(layer).stride() == session.master(layer).stride()
        for old, new in zip(session.edits, again.edits, strict=True):
            assert new.keys[layer].stride() == old.keys[layer].stride()
    assert ("master.1.T" in load_file(path)) == (not session.master(1).is_contiguous())
    assert load_checkpoint(tiny, tmp_path / "none", []) is None


def _factors(model: LoadedModel, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(layer)
    left = torch.randn(model.d_mlp, 2, generator=generator)
    return left, torch.randn(2, model.d_model, generator=generator)


def _edit(model: LoadedModel, sizes: dict[int, float]) -> Edit:
    patches, keys = [], {}
    for layer, size in sizes.items():
        left, right = _factors(model, layer)
        patches.append(WeightPatch(layer, size * left, right))
        # Two keys that share memory, one of them turned.
        keys[layer] = torch.randn(3, model.d_mlp, generator=torch.Generator().manual_seed(9)).T
    return Edit("test", {"size": sizes[1]}, (FACT,), tuple(patches), keys, details={"loss": [1.0]})
