"""Weight drift: each formula against hand-computed values, the joint embedding, versions and their refusals."""

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from nmke.drift import figures, numbers, tsne_child
from nmke.drift.embedding import DriftMap, distinct_points, draw_map, point_index, sample_neurons
from nmke.drift.report import page_html, write_report
from nmke.drift.results import measure_drift
from nmke.drift.settings import DriftConfig
from nmke.drift.versions import (
    Version,
    changing,
    default_layer,
    layers_of,
    open_versions,
    version_of,
    with_own_labels,
)
from nmke.drift.words import FORMULAS, WARNING
from nmke.edit import Edit, WeightPatch
from nmke.errors import Cancelled, ConfigError, DriftError, SessionError
from nmke.facts import Fact
from nmke.lifelong.measures import drift_of
from nmke.loading import LoadedModel, load_model
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.state import loaded_matrix
from tests.tiny import make_tiny

FACT = Fact("The capital of France is", "France", "Rome", "Paris")
QUICK = DriftConfig(perplexity=5, iterations=300, components=8, copies="once")


def edit_of(
    model: LoadedModel,
    layers: Sequence[int] = (1, 2),
    neurons: Sequence[int] = (0, 3, 5),
    size: float = 0.5,
    masked: bool = False,
    method: str = "memit",
) -> Edit:
    """A rank-one change of some neurons of some layers."""
    generator = torch.Generator().manual_seed(1)
    patches, masks = [], {}
    for layer in layers:
        left = torch.zeros(model.d_mlp, 1)
        left[list(neurons)] = size * torch.randn(len(neurons), 1, generator=generator)
        patches.append(WeightPatch(layer, left, torch.randn(1, model.d_model, generator=generator)))
        masks[layer] = (left[:, 0] != 0).float()
    return Edit(method, {}, (FACT,), tuple(patches), {}, masks if masked else {}, {"total": 1.0})


def edited(model: LoadedModel, label: str = "A", **how: object) -> Version:
    session = EditSession(model)
    session.apply(edit_of(model, **how))  # type: ignore[arg-type]
    return version_of(session, label=label)


class Recorded(Progress):
    """Keeps the stages, and cancels at one."""

    def __init__(self, cancel_at: str = "") -> None:
        self.told: list[tuple[str, int, int | None]] = []
        self.cancel_at = cancel_at

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        self.told.append((stage, done, total))
        if stage == self.cancel_at:
            raise Cancelled


# ---- formulas ---------------------------------------------------------------------------------------------------


def test_the_relative_norm_is_the_change_against_the_matrix() -> None:
    W_0 = torch.tensor([[3.0, 0.0], [0.0, 4.0]])  # norm 5
    W = torch.tensor([[3.0, 1.0], [0.0, 4.0]])
    assert numbers.relative_norm(W, W_0) == pytest.approx(0.2, abs=1e-15)
    assert numbers.relative_norm(W, W_0) == drift_of(W, W_0)[0]


def test_neurons_turn_and_stretch_as_computed_by_hand() -> None:
    W_0 = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    W = torch.tensor([[6.0, 8.0], [0.0, 1.0], [-2.0, 0.0], [1.0, 1.0]])
    found = numbers.neuron_changes(W, W_0)
    assert found.cosine.tolist() == pytest.approx([1.0, 0.0, -1.0, 1.0], abs=1e-15)
    assert found.norm_change.tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0], abs=1e-15)
    assert found.step.tolist() == pytest.approx([1.0, math.sqrt(2), 2.0, 0.0], abs=1e-15)
    assert found.cosine.dtype == torch.float64


def test_a_tiny_turn_keeps_its_digits() -> None:
    angle = 1e-9  # 1 - cos is 5e-19, far below what 1 - x can tell; so the step must carry it
    W_0, W = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[math.cos(angle), math.sin(angle)]]).double()
    assert numbers.neuron_changes(W, W_0).step.item() == pytest.approx(angle, rel=1e-9)
    turned = torch.tensor([[math.cos(1e-4), math.sin(1e-4)]]).double()
    cosine = numbers.neuron_changes(turned, W_0).cosine.item()
    assert 1 - cosine == pytest.approx(5e-9, rel=1e-6)


def test_a_zero_vector_has_no_direction_and_is_left_out_of_the_means() -> None:
    W_0 = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    W = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    found = numbers.neuron_changes(W, W_0)
    assert found.cosine.isnan().tolist() == [True, True, False]
    assert found.norm_change.isnan().tolist() == [True, False, False]
    assert found.norm_change[1] == -1


def test_untouched_neurons_are_those_equal_in_every_number() -> None:
    W_0 = torch.tensor([[1.0, 2.0], [0.0, 1.0], [1.0, 1.0]])
    W = torch.tensor([[1.0, 2.0], [-0.0, 1.0], [1.0, 1.0 + 2**-23]])
    assert numbers.untouched(W, W_0).tolist() == [True, True, False]


@pytest.mark.parametrize("degrees", [1e-6, 0.01, 30.0, 89.0])
def test_the_principal_angle_of_a_turned_plane_is_the_turn(degrees: float) -> None:
    angle = math.radians(degrees)
    basis_0 = torch.eye(4, dtype=torch.float64)[:, :2]
    basis = basis_0.clone()
    basis[:, 1] = 0
    basis[1, 1], basis[2, 1] = math.cos(angle), math.sin(angle)
    found = numbers.principal_angles(basis, basis_0)
    assert found.tolist() == pytest.approx([0.0, degrees], rel=1e-7, abs=1e-9)


def test_principal_angles_are_those_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = (
        torch.linalg.qr(torch.randn(20, 5, generator=generator, dtype=torch.float64)).Q for _ in range(2)
    )
    expected = np.degrees(np.sort(subspace_angles(one.numpy(), two.numpy())))
    assert numbers.principal_angles(one, two).numpy() == pytest.approx(expected, rel=1e-9)


def test_the_leading_subspace_is_that_of_the_singular_vectors() -> None:
    W = torch.randn(30, 8, generator=torch.Generator().manual_seed(2))
    found = numbers.leading_subspace(W, 3)
    _, singular, Vh = torch.linalg.svd(W.double())
    assert found.singular.tolist() == pytest.approx(singular.tolist(), rel=1e-9)
    assert numbers.principal_angles(found.basis, Vh[:3].T).max() < 1e-5
    assert found.gap == pytest.approx(float(singular[2] / singular[3]), rel=1e-9)


def test_the_gap_after_all_directions_is_infinite_and_the_clearest_cut_is_the_widest() -> None:
    singular = torch.tensor([8.0, 4.0, 1.0, 0.9], dtype=torch.float64)
    assert numbers.gap_after(singular, 4) == math.inf
    assert numbers.gap_after(singular, 2) == 4.0
    assert numbers.clearest_k(singular) == 2
    assert numbers.clearest_k(singular, most=1) == 1


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_the_spectrum_is_that_of_the_change_without_its_zeros(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    W_0 = torch.randn(*shape, generator=generator)
    change = torch.randn(shape[0], 2, generator=generator) @ torch.randn(2, shape[1], generator=generator)
    change[1] = 0
    W = W_0 + change
    expected = torch.linalg.svdvals(W.double() - W_0.double())
    found = numbers.change_spectrum(W, W_0)
    assert found[:2].tolist() == pytest.approx(expected[:2].tolist(), rel=1e-9)
    assert len(numbers.change_spectrum(W_0, W_0)) == 0
    # The sum in float32 rounds, which is a change of every direction, but a tiny one.
    assert (found[2:] < 1e-5 * found[0]).all()


def test_the_ranks_count_the_directions_that_share_the_change() -> None:
    even = torch.ones(4, dtype=torch.float64)
    assert numbers.effective_rank(even) == pytest.approx(4.0)
    assert numbers.stable_rank(even) == pytest.approx(4.0)
    two = torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert numbers.effective_rank(two) == pytest.approx(
        math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    )
    assert numbers.stable_rank(two) == pytest.approx(10 / 9)
    assert numbers.effective_rank(even[:0]) == numbers.stable_rank(even[:0]) == 0.0


# ---- all numbers of versions ------------------------------------------------------------------------------------


def test_every_changed_layer_of_every_version_has_its_row(tiny: LoadedModel) -> None:
    one, two = edited(tiny, "one"), edited(tiny, "two", layers=(2, 3), neurons=(4,))
    progress = Recorded()
    found = measure_drift(tiny, [one, two], layers_of([one, two]), 4, progress)
    table = found.table()
    assert list(zip(table["version"], table["layer"], strict=True)) == [
        ("one", 1),
        ("one", 2),
        ("two", 2),
        ("two", 3),
    ]
    assert list(table.columns) == ["version", "layer", *FORMULAS]
    assert table["untouched"].tolist() == pytest.approx([61 / 64, 61 / 64, 63 / 64, 63 / 64])
    assert table["effective_rank"].tolist() == pytest.approx([1.0] * 4, abs=1e-3)
    assert progress.told[-1] == ("measuring the change", 4, 4)
    change = found.of("one", 1)
    assert change is not None
    W_0 = loaded_matrix(tiny, 1)
    assert change.figures["relative_norm"] == drift_of(one.matrices[1], W_0)[0]
    assert np.flatnonzero(~change.untouched).tolist() == [0, 3, 5]
    assert found.of("two", 1) is None
    assert len(found.neurons()) == 4 * tiny.d_mlp
    assert len(found.to_record()[0]["principal_angles"]) == 4


def test_a_change_lost_in_the_models_dtype_is_told(tmp_path: Path) -> None:
    model = load_model(str(make_tiny("llama", tmp_path / "llama")), device="cpu", dtype="bfloat16")
    version = edited(model, size=1e-9)
    figures_ = measure_drift(model, [version], [1], 4).changes[0].figures
    assert figures_["untouched"] < 1 == figures_["untouched_as_stored"]


def test_hardly_defined_directions_are_said_to_say_little(llama: LoadedModel) -> None:
    change = measure_drift(llama, [edited(llama)], [1], 10).changes[0]
    assert change.figures["gap"] < 1.1
    assert "says little" in change.angle_sentence
    clear = replace(change, figures={**change.figures, "gap": 2.0})
    assert "says little" not in clear.angle_sentence


# ---- versions ---------------------------------------------------------------------------------------------------


def test_an_earlier_version_has_the_bits_it_had(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    session.apply(edit_of(tiny))
    then = {layer: matrix.clone() for layer, matrix in session.state()[0].items()}
    digest = session.digest
    session.apply(edit_of(tiny, layers=(2,), neurons=(7,)))
    first = version_of(session, 1)
    assert first.digest == digest
    assert first.facts == 1
    assert all(torch.equal(first.matrices[layer], then[layer]) for layer in then)
    assert version_of(session).layers == (1, 2)
    assert session.version == 2


def test_masks_join_and_are_dropped_where_an_edit_had_none(llama: LoadedModel) -> None:
    session = EditSession(llama)
    session.apply(edit_of(llama, layers=(1,), masked=True))
    session.apply(edit_of(llama, layers=(1, 2), neurons=(7,), masked=True))
    masks = version_of(session).masks
    assert np.flatnonzero(masks[1].numpy()).tolist() == [0, 3, 5, 7]
    session.apply(edit_of(llama, layers=(1,), neurons=(9,)))
    assert list(version_of(session).masks) == [2]


def test_no_edits_and_an_unknown_version_are_refused(llama: LoadedModel) -> None:
    session = EditSession(llama)
    with pytest.raises(DriftError, match="no edits"):
        version_of(session)
    with pytest.raises(DriftError, match="no edits"):
        layers_of([])
    session.apply(edit_of(llama))
    with pytest.raises(DriftError, match="no version 2"):
        version_of(session, 2)


def test_a_layer_nobody_edited_is_refused_with_those_that_are(llama: LoadedModel) -> None:
    with pytest.raises(DriftError, match="No edit changed layer 3.*: 1, 2"):
        changing([edited(llama)], 3)


def test_edits_that_only_add_modules_have_no_drift(llama: LoadedModel) -> None:
    version = Version("WISE", ("wise",), 1, {}, module_layers=(2,))
    with pytest.raises(DriftError, match="changed no weights"):
        layers_of([version])


def test_layer_8_is_shown_first_where_it_is_edited() -> None:
    matrix = torch.zeros(2, 2)
    assert default_layer([Version("a", (), 1, {4: matrix, 8: matrix})]) == 8
    assert default_layer([Version("a", (), 1, {5: matrix, 4: matrix})]) == 4


def test_a_bundle_is_opened_and_another_models_is_refused(
    llama: LoadedModel, gpt2: LoadedModel, tmp_path: Path
) -> None:
    session = EditSession(llama)
    session.apply(edit_of(llama))
    session.save(tmp_path / "run" / "bundle")
    for folder in (tmp_path / "run" / "bundle", tmp_path / "run"):
        (found,) = open_versions(llama, folder)
        assert found.digest == session.digest
        assert found.label == "MEMIT, 1 fact"
    with pytest.raises(SessionError, match="made for"):
        open_versions(gpt2, tmp_path / "run")
    with pytest.raises(SessionError, match="no folder"):
        open_versions(llama, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SessionError, match="no edit bundle"):
        open_versions(llama, tmp_path / "empty")


def test_a_lifelong_run_gives_one_version_a_run(cache: Path, tmp_path: Path) -> None:
    from tests.finished_run import finish_run

    folder = make_tiny("llama", tmp_path / "llama")
    run = finish_run(tmp_path / "run", folder, seeds=(0,))
    model = load_model(str(folder), device="cpu")
    found = open_versions(model, run)
    assert [version.label for version in found] == ["ROME, 2 facts", "FT-M, 2 facts"]
    assert all(version.layers for version in found)
    (alone,) = open_versions(model, run / "runs" / "FT-M-seed0")
    assert alone.digest == found[1].digest
    other = load_model(str(make_tiny("llama", tmp_path / "other", seed=1)), device="cpu")
    with pytest.raises(SessionError, match="another model"):
        open_versions(other, run)


def test_equal_labels_are_told_apart() -> None:
    versions = [Version("a", (), 1, {}), Version("b", (), 1, {}), Version("a", (), 1, {})]
    named = with_own_labels(versions)
    assert [version.label for version in named] == ["a", "b", "a (2)"]
    # Opened one after the other: what was told apart before is told apart from the next.
    more = with_own_labels([*named, versions[0], versions[0]])
    assert [version.label for version in more] == ["a", "b", "a (2)", "a (3)", "a (4)"]


# ---- the embedding ----------------------------------------------------------------------------------------------


def test_equal_vectors_of_a_neuron_are_one_point_and_others_never() -> None:
    base = np.arange(8, dtype=np.float32).reshape(4, 2)
    first, second = base.copy(), base.copy()
    first[1] += 1
    second[1] += 1
    second[2] += 1
    index, untouched = point_index([base, first, second], "once")
    assert index.tolist() == [[0, 1, 2, 3], [0, 4, 2, 3], [0, 4, 5, 3]]
    assert untouched.tolist() == [[True, False, True, True], [True, False, False, True]]
    points = distinct_points([base, first, second], index)
    for matrix, numbered in zip((base, first, second), index, strict=True):
        assert np.array_equal(points[numbered], matrix)
    each, _ = point_index([base, first, second], "each")
    assert each.tolist() == np.arange(12).reshape(3, 4).tolist()


def test_the_sample_depends_on_the_seed_alone() -> None:
    config = DriftConfig(sample=10, perplexity=5, seed=3)
    drawn = sample_neurons(64, config)
    assert len(set(drawn.tolist())) == 10
    assert drawn.tolist() == sorted(drawn.tolist()) == sample_neurons(64, config).tolist()
    assert drawn.tolist() != sample_neurons(64, config.changed(seed=4)).tolist()
    assert sample_neurons(64, config.changed(sample=100)).tolist() == list(range(64))


def test_pca_is_the_projection_on_the_leading_directions() -> None:
    points = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32) * [9, 5, 1, 1, 1, 1]
    projected, variance = tsne_child.project(points, 2)
    centred = points - points.mean(0)
    _, singular, Vh = np.linalg.svd(centred, full_matrices=False)
    assert np.abs(projected) == pytest.approx(np.abs(centred @ Vh[:2].T), abs=1e-4)
    assert variance == pytest.approx((singular[:2] ** 2).sum() / (singular**2).sum(), rel=1e-5)


def test_the_share_of_the_change_in_the_components_is_measured() -> None:
    points = np.array([[0, 0, 0], [3, 0, 4], [0, 0, 0]], dtype=np.float32)
    index = np.array([[0], [1], [2]])
    assert tsne_child.change_kept(points, points[:, :1], index) == [pytest.approx(9 / 25), 1.0]


def test_the_map_is_scikit_learns_own_and_is_read_from_the_cache(llama: LoadedModel, cache: Path) -> None:
    one, two = edited(llama, "one"), edited(llama, "two", neurons=(9,))
    progress = Recorded()
    drawn = draw_map(llama, [one, two], 1, QUICK, progress)
    assert ("embedding (t-SNE)", 300, 300) in progress.told
    assert drawn.positions.shape == (3, 64, 2)
    assert drawn.points == 64 + 3 + 1
    assert not drawn.reused
    matrices = [loaded_matrix(llama, 1).numpy(), one.matrices[1].numpy(), two.matrices[1].numpy()]
    index, _ = point_index(matrices, "once")
    projected, _ = tsne_child.project(distinct_points(matrices, index), 8)
    from sklearn.manifold import TSNE

    plain = TSNE(perplexity=5, max_iter=300, init="pca", random_state=0)
    expected = plain.fit_transform(np.ascontiguousarray(projected, dtype=np.float32))
    assert np.array_equal(drawn.positions, expected[index])
    assert drawn.record["kl"] == pytest.approx(plain.kl_divergence_, rel=1e-4)
    assert np.array_equal(drawn.positions[0, 10], drawn.positions[1, 10])  # untouched: the same place
    again = draw_map(llama, [one, two], 1, QUICK.changed(directions=3), Recorded("embedding (t-SNE)"))
    assert again.reused
    assert np.array_equal(again.positions, drawn.positions)


def test_the_sentence_names_everything_the_picture_depends_on(llama: LoadedModel, cache: Path) -> None:
    drawn = draw_map(llama, [edited(llama, "one")], 1, QUICK.changed(sample=40, seed=7))
    text = drawn.sentence
    for part in ("40 of 64 neurons", "seed 7", "perplexity 5", "8 PCA components", "300 iterations", "KL"):
        assert part in text
    assert "stand on its point; neurons with fewer points gather" in text
    record = drawn.to_record()
    assert record["settings"]["seed"] == 7
    assert record["warning"] == WARNING


def test_every_copy_is_a_point_of_its_own_unless_asked_otherwise(llama: LoadedModel, cache: Path) -> None:
    assert DriftConfig().copies == "each"
    drawn = draw_map(llama, [edited(llama)], 1, QUICK.changed(copies="each", start="random"))
    assert drawn.points == 128
    assert "stand on its point" not in drawn.sentence


def test_a_random_start_depends_on_the_seed(llama: LoadedModel, cache: Path) -> None:
    maps = [draw_map(llama, [edited(llama)], 1, QUICK.changed(start="random", seed=seed)) for seed in (0, 1)]
    assert not np.allclose(maps[0].positions, maps[1].positions)


def test_a_damaged_cache_is_drawn_again(llama: LoadedModel, cache: Path) -> None:
    drawn = draw_map(llama, [edited(llama)], 1, QUICK)
    (file,) = (cache / "drift").glob("*/*.npz")
    file.write_bytes(b"broken")
    again = draw_map(llama, [edited(llama)], 1, QUICK)
    assert not again.reused
    assert np.array_equal(again.positions, drawn.positions)


@pytest.mark.parametrize("stage", ["starting the embedding", "embedding (t-SNE)"])
def test_a_cancel_kills_the_child_and_leaves_nothing(llama: LoadedModel, cache: Path, stage: str) -> None:
    with pytest.raises(Cancelled):
        draw_map(llama, [edited(llama)], 1, QUICK.changed(iterations=10000), Recorded(stage))
    left = [path.name for path in (cache / "drift").rglob("*") if path.is_file()]
    assert left in ([], [".lock"])
    listed = subprocess.run(["ps", "-o", "ppid=,args="], capture_output=True, text=True).stdout
    assert not any(
        "tsne_child" in line and line.split()[0] == str(os.getpid()) for line in listed.splitlines()
    )


def test_a_perplexity_larger_than_the_sample_is_refused_with_the_remedy(llama: LoadedModel) -> None:
    with pytest.raises(ConfigError, match="perplexity 30 is too large for 20 neurons.*below 20, or a larger"):
        draw_map(llama, [edited(llama)], 1, DriftConfig(sample=20))
    with pytest.raises(ConfigError, match=r"64 neurons.*below 64\."):
        DriftConfig(perplexity=64).require_fit(64)
    DriftConfig(perplexity=63).require_fit(64)


def test_a_failing_child_is_told_in_one_sentence(
    llama: LoadedModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "nmke.drift.embedding.run_module", lambda *_, **__: type("E", (), {"code": 1, "err": "x\nNo memory"})
    )
    with pytest.raises(DriftError, match=r"The embedding failed \(No memory\)"):
        draw_map(llama, [edited(llama)], 1, QUICK)


def test_the_child_needs_no_torch() -> None:
    code = "import nmke.drift.tsne_child, nmke.drift.figures, nmke.drift.settings, sys; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


# ---- figures and files ------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(llama: LoadedModel, cache: Path) -> tuple[DriftMap, list[Version]]:
    versions = [edited(llama, "one", masked=True), edited(llama, "two", neurons=(9,))]
    return draw_map(llama, versions, 1, QUICK), versions


def test_the_figure_shows_every_version_on_the_same_axes(
    llama: LoadedModel, drawn: tuple[DriftMap, list[Version]]
) -> None:
    found, versions = drawn
    changes = {change.label: change for change in measure_drift(llama, versions, [1], 4).changes}
    figure = figures.joint_map(found, changes)
    named = [trace.name for trace in figure.data]
    assert named == [
        "original",
        "from original to edited",
        "one",
        "original",
        "from original to edited",
        "two",
    ]
    assert [len(trace.x) for trace in figure.data] == [64, 9, 3, 64, 3, 1]  # an arrow is three values
    assert figure.data[0].marker.color == "#999999"
    assert figure.data[2].marker.color == "#009E73"
    assert [trace.showlegend for trace in figure.data].count(True) == 2  # titles name the versions
    assert figure.layout.xaxis.range == figure.layout.xaxis2.range
    assert figure.data[2].customdata[:, 0].tolist() == [0, 3, 5]
    halfway = figures.joint_map(found, changes, arrows=False, share=0.0)
    assert len(halfway.data) == 4
    assert halfway.data[1].x == pytest.approx(found.positions[0, [0, 3, 5], 0], abs=1e-3)


def test_groups_colour_the_edited_points(llama: LoadedModel, drawn: tuple[DriftMap, list[Version]]) -> None:
    found, versions = drawn
    changes = {change.label: change for change in measure_drift(llama, versions, [1], 4).changes}
    kinds = np.array(["none"] * 64, dtype="<U8")
    kinds[[0, 3]] = "general"
    figure = figures.joint_map(found, changes, groups={"one": kinds}, arrows=False)
    colour = {trace.name: trace.marker.color for trace in figure.data}
    assert colour["general"] == "#0072B2"
    assert colour["none"] == "#DDDDDD"
    assert len(colour) == 4  # original, general, none, two


def test_many_arrows_keep_the_neurons_that_moved_farthest(
    llama: LoadedModel, drawn: tuple[DriftMap, list[Version]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, versions = drawn
    change = measure_drift(llama, versions, [1], 4).changes[0]
    monkeypatch.setattr(figures, "MOST_ARROWS", 1)
    figure = figures.joint_map(found, {"one": change, "two": change})
    farthest = max((0, 3, 5), key=lambda neuron: change.step[neuron])
    assert figure.data[1].x[0] == pytest.approx(found.positions[0, farthest, 0], abs=1e-3)


def test_histograms_count_every_neuron(llama: LoadedModel, drawn: tuple[DriftMap, list[Version]]) -> None:
    changes = measure_drift(llama, drawn[1], [1], 4).changes
    figure = figures.neuron_histograms(changes)
    for trace in figure.data:
        assert sum(trace.customdata[::2]) == 64
    assert figures.change_spectra(changes).data
    assert figures.layer_norms([("one", 1, 0.1), ("one", 2, 0.2)]).data[0].y == (10.0, 20.0)


def test_labels_cannot_bring_markup_into_the_page(
    llama: LoadedModel, drawn: tuple[DriftMap, list[Version]]
) -> None:
    table = measure_drift(llama, [replace(drawn[1][0], label="<script>x")], [1], 4).table()
    text = page_html("<b>", "<i>", [figures.layer_norms([("one", 1, 0.1)])], table)
    assert "<script>x" not in text
    assert "<h1>&lt;b&gt;" in text


def test_a_png_that_cannot_be_drawn_is_said(
    llama: LoadedModel,
    drawn: tuple[DriftMap, list[Version]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> bytes:
        raise RuntimeError("no browser here")

    monkeypatch.setattr("plotly.graph_objects.Figure.to_image", refuse)
    found, versions = drawn
    said = write_report(tmp_path, found, measure_drift(llama, versions, [1], 4), None, {})
    assert "no browser here" in said
    assert not (tmp_path / "drift.png").exists()
    page = (tmp_path / "drift.html").read_text()
    assert "src=" not in page.split("plotly")[0]
    assert WARNING in page
