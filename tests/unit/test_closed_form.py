"""AlphaEdit, MEMIT, ROME and NMKE's own solves: each against its formula, by hand and on the tiny models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nmke.attribution import attribute
from nmke.contexts import context_templates
from nmke.edit import Edit
from nmke.errors import ConfigError, EditError
from nmke.facts import Fact
from nmke.loading import LoadedModel
from nmke.masks import MaskConfig
from nmke.methods.alphaedit import AlphaEdit, AlphaEditConfig
from nmke.methods.closed_form import ClosedFormConfig, Stopwatch, find_targets, write_layers
from nmke.methods.memit import MEMIT, MEMITConfig
from nmke.methods.nmke import NMKE, NMKEConfig
from nmke.methods.rome import ROME, ROMEConfig, sized_by_output
from nmke.methods.solvers import PriorRidge, SelectedRidge
from nmke.moments import collect_statistics
from nmke.progress import Silent
from nmke.session import EditSession
from nmke.sites import MLP_OUT, POST, RESID_POST
from nmke.solve import (
    equality_factors,
    equality_solve,
    prior_factors,
    prior_root,
    prior_solve,
    ridge_solve,
    steadied,
)
from nmke.target import TargetConfig, optimise_target
from nmke.tokens import encode, find_subject_last, pad
from tests.rows import closed_form, memit, rome
from tests.tiny import TEXT

FACTS = (
    Fact("The capital of France is", "France", "Rome"),
    Fact("The language of Germany is", "Germany", "the boat"),
)


@pytest.fixture
def text(tmp_path: Path, cache: Path) -> Path:
    """A text for statistics, and an empty cache."""
    file = tmp_path / "text.txt"
    file.write_text("\n".join(f"{number}. {TEXT}" for number in range(10)), encoding="utf-8")
    return file


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_moment(size: int, seed: int = 0) -> Tensor:
    keys = random(size, 4 * size, seed=seed)
    return keys @ keys.T / keys.shape[1]


# ---- formulas on numbers -----------------------------------------------------------------------------------


def test_one_key_against_a_prior_by_hand() -> None:
    # 2 C + K K^T = [[3, 2], [2, 12]], its inverse times K = (8, 4) / 32, times R = 3.
    K, R, C = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]]), torch.diag(torch.tensor([1.0, 4.0]))
    assert torch.allclose(prior_solve(K, R, K[:, :0], C, 2.0).flatten(), torch.tensor([0.75, 0.375]).double())


@pytest.mark.parametrize("past", [0, 1, 30])
@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_the_factored_prior_solve_equals_the_dense_one(past: int, ridge: float) -> None:
    K, R, K_p, C = random(12, 3), random(5, 3, seed=1), random(12, past, seed=2), second_moment(12)
    left, right = prior_factors(K, R, prior_root(C, 0.3, K_p, ridge))
    assert left.shape == (12, 3) and right.shape == (3, 5)
    assert torch.allclose(left @ right, prior_solve(K, R, K_p, C, 0.3, ridge), atol=1e-10)


def test_one_key_mapped_exactly_by_hand() -> None:
    # C^-1 k = (1, 0.5), k^T C^-1 k = 2, so X = (0.5, 0.25) * 3; steered by (1, 0): X = (1, 0) / 1 * 3.
    k, R, C = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]]), torch.diag(torch.tensor([1.0, 4.0]))
    assert torch.allclose(equality_solve(k, R, C).flatten(), torch.tensor([1.5, 0.75]).double())
    steered = equality_solve(k, R, C, torch.tensor([[1.0], [0.0]]))
    assert torch.allclose(steered.flatten(), torch.tensor([3.0, 0.0]).double())


@pytest.mark.parametrize("facts", [1, 3])
def test_the_factored_equality_solve_equals_the_dense_one_and_maps_exactly(facts: int) -> None:
    K, L, R, C = random(12, facts), random(12, facts, seed=1), random(5, facts, seed=2), second_moment(12)
    left, right = equality_factors(K, R, torch.linalg.solve(C, L))
    assert torch.allclose(left @ right, equality_solve(K, R, C, L), atol=1e-9)
    assert torch.allclose(K.T @ left @ right, R.T, atol=1e-9)


def test_of_all_exact_updates_it_is_the_one_that_moves_ordinary_keys_least() -> None:
    k, R, C = random(12, 1), random(5, 1, seed=1), second_moment(12)
    X = equality_solve(k, R, C)
    other = random(12, 5, seed=3)
    other -= k @ (k.T @ other) / (k.T @ k)  # changes nothing for k
    assert torch.allclose(k.T @ (X + other), R.T, atol=1e-9)

    def moved(update: Tensor) -> float:
        return float((update * (C @ update)).sum())

    assert moved(X) < moved(X + 0.1 * other) and moved(X) < moved(X - 0.1 * other)


def test_a_key_across_the_direction_is_refused() -> None:
    k, direction = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    with pytest.raises(EditError, match="nothing in common"):
        equality_factors(k, torch.ones(3, 1), direction)


def test_a_moment_that_rounding_broke_is_steadied_and_a_sound_one_stays() -> None:
    broken = torch.diag(torch.tensor([1.0, -2e-8]))
    assert float(torch.linalg.eigvalsh(steadied(broken))[0]) > 0
    assert float(broken[1, 1]) < 0  # the moment itself is not written to
    C = second_moment(12)
    assert torch.allclose(steadied(C), C, rtol=0, atol=2e-6 * float(C.norm()))


def test_decay_and_clamp_are_measured_against_the_mlps_output() -> None:
    # |h| = 10, |m| = 2: c |d| / 2^2 = 25 c |d| / 10^2, and 4 * 2 = 0.8 * 10.
    found = sized_by_output(
        TargetConfig(clamp_norm_factor=4.0, weight_decay=0.5), torch.tensor([2.0]), torch.tensor([10.0])
    )
    assert found.weight_decay == pytest.approx(12.5) and found.clamp_norm_factor == pytest.approx(0.8)
    with pytest.raises(EditError, match="writes nothing"):
        sized_by_output(TargetConfig(), torch.zeros(2), torch.ones(2))


# ---- solves for some neurons -------------------------------------------------------------------------------


def session_with_keys(model: LoadedModel, count: int) -> EditSession:
    """A session whose history has ``count`` keys in layer 1."""
    session = EditSession(model)
    if count:
        session.apply(Edit("nmke", {}, FACTS[:1], (), {1: random(model.d_mlp, count, seed=5).float()}))
    return session


@pytest.mark.parametrize("past", [0, 4])
@pytest.mark.parametrize("threshold", [0.8, None])
def test_solving_in_the_mask_is_the_dense_formula_of_these_neurons(
    llama: LoadedModel, past: int, threshold: float | None
) -> None:
    D = llama.d_mlp
    session, C = session_with_keys(llama, past), second_moment(D).float()
    K, R = random(D, 2, seed=1).float(), random(6, 2, seed=2).float()
    selected = random(D, seed=3) > 0.2
    solver = SelectedRidge(session, {1: selected}, {1: C}, 0.5, threshold, 0.3)
    left, right = solver.solve(1, K, R)
    K_p, C_S = session.history_keys(1)[selected], C[selected][:, selected].double()
    if threshold is None:
        expected = prior_solve(K[selected], R, K_p, C_S, 0.3, 0.5)
        assert solver.figures(1) == {}
    else:
        values, vectors = torch.linalg.eigh(C_S)
        kept = vectors[:, values < threshold]
        assert 0 < kept.shape[1] < len(values)
        expected = ridge_solve(K[selected], R, K_p, kept @ kept.T, 0.5)
        assert solver.figures(1) == {"null_space_kept": pytest.approx(kept.shape[1] / len(values))}
    X = left @ right
    assert not X[~selected].any()
    assert torch.allclose(X[selected], expected, atol=1e-5)


def test_solving_in_the_mask_comes_nearer_than_masking_the_solution(llama: LoadedModel) -> None:
    D = llama.d_mlp
    K, R = random(D, 2, seed=1).float(), random(6, 2, seed=2).float()
    selected = random(D, seed=3) > 0.5
    session = EditSession(llama)
    left, right = SelectedRidge(session, {1: selected}, None, 0.5, 0.02, 1.0).solve(1, K, R)
    masked = selected[:, None] * ridge_solve(K, R, K[:, :0], torch.eye(D), 0.5)

    def misses(update: Tensor) -> float:
        return float((K.double().T @ update - R.double().T).norm())

    assert misses(left @ right) < 0.5 * misses(masked)


def test_a_mask_without_neurons_or_directions_is_refused(llama: LoadedModel) -> None:
    D, session = llama.d_mlp, EditSession(llama)
    K, R, C = random(D, 1).float(), random(6, 1).float(), second_moment(D).float()
    with pytest.raises(EditError, match="keeps no neuron.*Raise the shares"):
        SelectedRidge(session, {1: torch.zeros(D, dtype=torch.bool)}, {1: C}, 1.0, 0.5, 1.0).solve(1, K, R)
    with pytest.raises(EditError, match="null-space threshold.*Raise the threshold"):
        SelectedRidge(session, {1: torch.arange(D) < 5}, {1: C}, 1.0, 1e-9, 1.0).solve(1, K, R)


# ---- first layers on the tiny models -----------------------------------------------------------------------


@dataclass(frozen=True)
class Collected:
    """What the formulas need, read one prompt at a time from whole runs; float64."""

    keys: Tensor  # [context, d_mlp]
    written: Tensor  # [context, d_model]
    output: Tensor  # of the last edited layer, bare prompt [d_model]

    @property
    def K(self) -> Tensor:
        return ((self.keys[0] + self.keys[1:].mean(0)) / 2)[:, None]


def collect_by_hand(model: LoadedModel, session: EditSession, layer: int, last: int) -> Collected:
    fact, rows = FACTS[0], []
    with session.active():
        for template in context_templates(model):
            ids = encode(model.tokenizer, template.replace("{}", fact.prompt))
            place = find_subject_last(model.tokenizer, fact, template)
            kept = model.run(pad([ids], 0), [(POST, layer), (MLP_OUT, layer), (RESID_POST, last)])
            rows.append([value[0, place].double() for value in kept.values()])
    keys, written, outputs = (torch.stack(column) for column in zip(*rows, strict=True))
    return Collected(keys, written, outputs[0])


def residual_of(model: LoadedModel, session: EditSession, found: Collected, target: TargetConfig) -> Tensor:
    with session.active():
        z = optimise_target(model, FACTS[0], 2, context_templates(model), target).z.double()
    return ((z - found.output) / 2)[:, None]


def moment(model: LoadedModel, config: Any, layers: Sequence[int]) -> Tensor:
    return collect_statistics(model, config.statistics, layers).second_moment[1].double()


def near(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found.double(), expected, atol=1e-3 * float(expected.abs().max()))


def edited_before(model: LoadedModel, text: Path) -> EditSession:
    """A session in which an AlphaEdit of the other fact is in force, so that there are keys to protect."""
    session = EditSession(model)
    config = AlphaEditConfig.make(**closed_form(text))
    session.apply(AlphaEdit().plan(session, FACTS[1:], config, Silent()))
    assert session.history_keys(1).shape[1] == 1
    return session


def test_alphaedits_first_layer_is_the_dense_formula(tiny: LoadedModel, text: Path) -> None:
    config = AlphaEditConfig.make(**closed_form(text)).changed(null_space_threshold=0.05)
    session = edited_before(tiny, text)
    edit = AlphaEdit().plan(session, FACTS[:1], config, Silent())
    found = collect_by_hand(tiny, session, 1, 2)
    values, vectors = torch.linalg.eigh(moment(tiny, config, (1, 2)))
    kept = vectors[:, values < 0.05]
    assert 0 < kept.shape[1] < tiny.d_mlp
    R = residual_of(tiny, session, found, config.target)
    expected = ridge_solve(found.K, R, session.history_keys(1), kept @ kept.T, config.ridge)
    assert near(edit.patches[0].matrix(), expected) and not edit.masks


def test_memits_first_layer_is_the_dense_formula_without_a_history(tiny: LoadedModel, text: Path) -> None:
    config = MEMITConfig.make(**memit(text))
    session = edited_before(tiny, text)
    edit = MEMIT().plan(session, FACTS[:1], config, Silent())
    found = collect_by_hand(tiny, session, 1, 2)
    R, C = residual_of(tiny, session, found, config.target), steadied(moment(tiny, config, (1, 2)))
    w = config.mom2_update_weight
    expected = prior_solve(found.K, R, found.K[:, :0], C, w)
    assert near(edit.patches[0].matrix(), expected)
    with_history = prior_solve(found.K, R, session.history_keys(1), C, w)
    assert not near(edit.patches[0].matrix(), with_history)


@pytest.mark.parametrize("variant", ["union", "soft"])
@pytest.mark.parametrize(
    ("acts", "protection"),
    [("on the update", "prior"), ("in the solve", "null space"), ("in the solve", "prior")],
)
def test_nmkes_first_layer_is_the_dense_formula_of_its_options(
    tiny: LoadedModel, text: Path, acts: str, protection: str, variant: str
) -> None:
    config = NMKEConfig.make(**closed_form(text), mask_acts=acts, protection=protection, prior_weight=0.3)
    config = config.changed(null_space_threshold=0.05, mask={"variant": variant})
    session = edited_before(tiny, text)
    edit = NMKE().plan(session, FACTS[:1], config, Silent())
    found = collect_by_hand(tiny, session, 1, 2)
    R, C, K_p = (
        residual_of(tiny, session, found, config.target),
        moment(tiny, config, (1, 2)),
        session.history_keys(1).double(),
    )
    weights = edit.masks[1].double()
    if acts == "on the update":
        expected = weights[:, None] * prior_solve(found.K, R, K_p, C, 0.3, config.ridge)
    else:
        assert set(weights.tolist()) <= {0.0, 1.0}
        S = weights > 0
        expected = torch.zeros(tiny.d_mlp, tiny.d_model, dtype=torch.float64)
        if protection == "prior":
            expected[S] = prior_solve(found.K[S], R, K_p[S], C[S][:, S], 0.3, config.ridge)
        else:
            values, vectors = torch.linalg.eigh(C[S][:, S])
            P = vectors[:, values < 0.05] @ vectors[:, values < 0.05].T
            expected[S] = ridge_solve(found.K[S], R, K_p[S], P, config.ridge)
    assert near(edit.patches[0].matrix(), expected)


def test_a_mask_that_keeps_every_neuron_is_written_without_attributing(
    tiny: LoadedModel, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {"general_low": 1.0, "general_high": 1.0}
    config = NMKEConfig.make(**closed_form(text)).changed(mask=whole, null_space_threshold=0.05)
    session, attributed = edited_before(tiny, text), []

    def noting(*arguments: Any) -> Any:
        attributed.append(arguments)
        return attribute(*arguments)

    monkeypatch.setattr("nmke.methods.nmke.attribute", noting)
    short = NMKE().plan(session, FACTS[:1], config, Silent())
    assert not attributed
    monkeypatch.setattr(MaskConfig, "keeps_everything", False)
    plain = NMKE().plan(session, FACTS[:1], config, Silent())
    assert len(attributed) == 1
    for one, other in zip(short.patches, plain.patches, strict=True):
        assert torch.equal(one.matrix(), other.matrix())
    assert short.details["masks"][1] == {"neurons": tiny.d_mlp, "attributed": False}


@pytest.mark.parametrize("consistent", [False, True])
@pytest.mark.parametrize("statistics", ["text", "none"])
def test_romes_update_is_the_dense_formula_and_maps_its_key_exactly(
    tiny: LoadedModel, text: Path, consistent: bool, statistics: str
) -> None:
    config = ROMEConfig.make(**rome(text)).changed(consistent_keys=consistent)
    C = torch.eye(tiny.d_mlp, dtype=torch.float64)
    if statistics == "none":
        config = config.changed(statistics={"text": "none"})
    else:
        C = steadied(moment(tiny, config, (1,)))
    session = edited_before(tiny, text)
    edit = ROME().plan(session, FACTS[:1], config, Silent())
    found = collect_by_hand(tiny, session, 1, 1)
    settings = sized_by_output(config.target, found.written[0].float(), found.output.float())
    with session.active():
        target = optimise_target(tiny, FACTS[0], 1, context_templates(tiny), settings)
    wanted = found.written[0] + (target.z - target.start).double()
    mean = found.keys.mean(0)
    k, m = (mean, found.written.mean(0)) if consistent else (found.keys[0], found.written[0])
    expected = equality_solve(k[:, None], (wanted - m)[:, None], C, mean[:, None])
    assert near(edit.patches[0].matrix(), expected)
    # The published key is the bare prompt's, so the model's own MLP now answers it with v*.
    bias = found.written[0] - found.keys[0] @ session.master(1).double()
    session.apply(edit)
    answered = k @ session.master(1).double() + bias
    assert torch.allclose(answered, wanted, atol=1e-4 * float(wanted.abs().max()))
    said = collect_by_hand(tiny, session, 1, 1).written[0]
    reached = torch.allclose(said, wanted, atol=1e-4 * float(wanted.abs().max()))
    assert reached != consistent


def test_consistent_keys_give_another_update(tiny: LoadedModel, text: Path) -> None:
    config, session = ROMEConfig.make(**rome(text)), EditSession(tiny)
    updates = [
        ROME().plan(session, FACTS[:1], config.changed(consistent_keys=choice), Silent()).patches[0].matrix()
        for choice in (False, True)
    ]
    assert float((updates[0] - updates[1]).norm()) > 1e-3 * float(updates[0].norm())


@pytest.mark.parametrize(("weight", "reached"), [(1e-6, True), (1e9, False)])
def test_memit_reaches_its_target_or_nothing_as_the_prior_weighs(
    tiny: LoadedModel, text: Path, weight: float, reached: bool
) -> None:
    config, session = MEMITConfig.make(**memit(text)).changed(mom2_update_weight=weight), EditSession(tiny)
    before = collect_by_hand(tiny, session, 2, 2).output
    z = before + 2 * residual_of(tiny, session, collect_by_hand(tiny, session, 1, 2), config.target)[:, 0]
    # One context only: its key is then the prompt's own, and the target can be reached exactly.
    targets = find_targets(session, FACTS[:1], context_templates(tiny), config, Silent())
    solver = PriorRidge(collect_statistics(tiny, config.statistics, (1, 2)).second_moment, weight)
    written = write_layers(session, FACTS[:1], targets, ("{}",), solver, {}, config, Silent(), Stopwatch())
    session.apply(Edit("memit", {}, FACTS[:1], written.patches, written.keys))
    missed = float((collect_by_hand(tiny, session, 2, 2).output - z).norm() / (before - z).norm())
    assert missed < 1e-2 if reached else missed > 0.999


# ---- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config_class", "values"), [(MEMITConfig, {}), (NMKEConfig, {"protection": "prior"})]
)
def test_a_prior_without_a_text_is_refused_with_a_remedy(
    config_class: type[Any], values: Mapping[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"'none' is not possible; choose 'wikipedia'"):
        config_class.make(statistics={"text": "none"}, **values)


def test_memit_has_no_settings_of_the_null_space() -> None:
    assert not {"ridge", "null_space_threshold"} & set(MEMITConfig.model_fields)
    assert {"ridge", "null_space_threshold"} <= set(AlphaEditConfig.model_fields)
    assert issubclass(NMKEConfig, ClosedFormConfig) and issubclass(AlphaEditConfig, ClosedFormConfig)


def test_layers_are_guessed_at_the_literatures_share_of_the_depth() -> None:
    assert ROME().guess(32) == {"layer": 5} and ROME().guess(1) == {"layer": 0}
    assert MEMIT().guess(32) == AlphaEdit().guess(32) == {"layers": (4, 5, 6, 7, 8)}


def test_null_spaces_need_settings_with_a_ridge(tiny: LoadedModel, text: Path) -> None:
    config, session = MEMITConfig.make(**memit(text)), EditSession(tiny)
    targets = find_targets(session, FACTS[:1], ("{}",), config, Silent())
    with pytest.raises(TypeError, match="MEMITConfig"):
        write_layers(session, FACTS[:1], targets, ("{}",), {}, {}, config, Silent(), Stopwatch())
