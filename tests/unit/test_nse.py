"""NSE: its selection by hand, its solve in float64, and the passes with which it closes in on z."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nmke.contexts import context_templates
from nmke.edit import Edit
from nmke.errors import ConfigError, EditError
from nmke.facts import Fact
from nmke.keys import PlainKeys
from nmke.loading import LoadedModel
from nmke.methods import get_method
from nmke.methods.nse import NSEConfig, StrongestRidge, read_keys, strongest
from nmke.moments import collect_statistics
from nmke.progress import Silent
from nmke.session import EditSession
from nmke.solve import steadied
from nmke.target import optimise_targets
from tests.rows import tiny_config
from tests.tiny import TEXT

FACTS = (
    Fact("The capital of France is", "France", "Rome"),
    Fact("The language of Germany is", "Germany", "the boat"),
)


@pytest.fixture
def text(tmp_path: Path, cache: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("\n".join(f"{number}. {TEXT}" for number in range(10)), encoding="utf-8")
    return file


@pytest.fixture
def config(text: Path) -> NSEConfig:
    found = tiny_config("nse", text)
    assert isinstance(found, NSEConfig)
    return found


def plan(session: EditSession, facts: tuple[Fact, ...], config: NSEConfig) -> Edit:
    return get_method("nse").plan(session, facts, config, Silent())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- selection ------------------------------------------------------------------------------------------


def test_the_strongest_neurons_by_hand() -> None:
    K = torch.tensor([[1.0], [-4.0], [2.0], [3.0]])  # 4, 7, 9, 10 of 10 in falling order
    assert strongest(K, 0.8).tolist() == [False, True, False, True]
    assert strongest(K, 0.9).tolist() == [False, True, True, True]
    assert strongest(K, 1.0).all()


def test_the_score_is_the_sum_over_facts_without_signs() -> None:
    K = torch.tensor([[3.0, -3.0], [4.0, 1.0], [0.5, 0.5]])  # 6, 5, 1 of 12
    assert strongest(K, 0.5).tolist() == [True, False, False]


def test_a_share_that_holds_no_neuron_holds_the_strongest() -> None:
    assert strongest(torch.tensor([[1.0], [3.0], [2.0]]), 0.1).tolist() == [False, True, False]


def test_the_solve_is_the_formula_for_the_selected_neurons_alone(llama: LoadedModel) -> None:
    D, weight, share = llama.d_mlp, 0.3, 0.6
    K, R, K_p = random(D, 3), random(llama.d_model, 3, seed=1), random(D, 2, seed=2).float()
    C = random(D, 4 * D, seed=3)
    C = C @ C.T / (4 * D)
    session = EditSession(llama)
    session.apply(Edit("another", {}, (), (), {1: K_p}))
    solver = StrongestRidge(session, {1: C}, weight, share)
    left, right = solver.solve(1, K, R)

    score = K.abs().sum(1)
    S = [int(n) for n in score.argsort(descending=True)]
    S = S[: int((score[S].cumsum(0) <= share * score.sum()).sum())]
    assert 5 < len(S) < D - 5
    # As in `steadied`, on the restricted moment.
    M = weight * steadied(C[S][:, S]) + K_p.double()[S] @ K_p.double()[S].T + K[S] @ K[S].T
    expected = torch.zeros(D, llama.d_model, dtype=torch.float64)
    expected[S] = torch.linalg.solve(M, K[S] @ R.T)
    assert torch.allclose(left @ right, expected, atol=1e-9)
    assert solver.figures(1) == {"neurons_kept": pytest.approx(len(S) / D)}


# ---- the edit -------------------------------------------------------------------------------------------


def test_the_first_pass_is_the_published_procedure_on_top_of_another_edit(
    tiny: LoadedModel, config: NSEConfig, text: Path
) -> None:
    """z with the loaded weights, keys and residual with the edited ones, from whole prompts, in float64."""
    session = EditSession(tiny)
    session.apply(plan(session, FACTS[1:], config))
    edit = plan(session, FACTS[:1], config.changed(passes=1))

    templates = context_templates(tiny)
    with session.original():
        z = optimise_targets(tiny, FACTS[:1], 2, templates, config.target)[0].z.double()
    with session.active():
        rewound = optimise_targets(tiny, FACTS[:1], 2, templates, config.target)[0].z.double()
    assert not torch.allclose(z, rewound, atol=1e-3)
    found = PlainKeys(session, FACTS[:1], [1, 2], templates).at(1, {})
    K, now = found.K.double(), found.output.double()[:, 0]
    assert edit.details["distances"][0] == [pytest.approx(float((z - now).norm()), rel=1e-3)]
    R = ((z - now) / 2)[:, None]
    S = strongest(K, 0.8).nonzero()[:, 0]
    C = steadied(collect_statistics(tiny, config.statistics, (1, 2)).second_moment[1][S][:, S])
    K_p = session.history_keys(1).double()[S]
    M = config.mom2_update_weight * C + K_p @ K_p.T + K[S] @ K[S].T
    expected = torch.zeros(tiny.d_mlp, tiny.d_model, dtype=torch.float64)
    expected[S] = torch.linalg.solve(M, K[S] @ R.T)
    found_update = edit.patches[0].matrix().double()
    assert torch.allclose(found_update, expected, atol=2e-3 * float(expected.abs().max()))
    assert edit.patches[0].neurons == len(S) < tiny.d_mlp


def test_passes_close_in_on_z_and_what_they_saw_is_what_the_edit_gives(
    tiny: LoadedModel, config: NSEConfig
) -> None:
    session = EditSession(tiny)
    edit = plan(session, FACTS, config.changed(passes=3, mom2_update_weight=100.0))
    far = edit.details["distances"]
    assert edit.details["passes"] == 3 and len(far) == 4
    assert all(
        after < before for number in (0, 1) for before, after in zip(*far[number : number + 2], strict=True)
    )
    assert all(patch.left.shape[1] == 3 * len(FACTS) for patch in edit.patches)
    with session.original():
        targets = optimise_targets(tiny, FACTS, 2, context_templates(tiny), config.target)
    session.apply(edit)
    keys, now = read_keys(session, FACTS, [1, 2], context_templates(tiny))
    seen = [float((target.z - out).norm()) for target, out in zip(targets, now.T, strict=True)]
    assert seen == pytest.approx(far[-1], rel=1e-3, abs=1e-5)
    for layer in (1, 2):
        assert torch.allclose(edit.keys[layer], keys[layer], atol=1e-4)


def test_facts_near_enough_are_left_out_of_later_passes(llama: LoadedModel, config: NSEConfig) -> None:
    session = EditSession(llama)
    first = plan(session, FACTS, config.changed(passes=1)).details["distances"][1]
    between = sum(first) / 2
    edit = plan(session, FACTS, config.changed(alpha=between))
    assert edit.details["passes"] == 2
    assert all(patch.left.shape[1] == 3 for patch in edit.patches)  # two facts, then one
    assert edit.keys[1].shape[1] == 2


def test_facts_that_stand_already_are_not_written_but_join_the_history(
    llama: LoadedModel, config: NSEConfig
) -> None:
    session = EditSession(llama)
    edit = plan(session, FACTS[:1], config.changed(alpha=1e4, upper_bound=1e5))
    assert edit.patches == () and edit.details["passes"] == 0
    session.apply(edit)
    assert session.history_keys(1).shape[1] == 1


def test_a_fact_out_of_bounds_is_given_up_and_named(llama: LoadedModel, config: NSEConfig) -> None:
    session = EditSession(llama)
    far = plan(session, FACTS, config).details["distances"][0]
    edit = plan(session, FACTS, config.changed(upper_bound=sum(far) / 2, passes=1))
    assert edit.details["given_up"] == [FACTS[far.index(max(far))].subject]
    assert all(patch.left.shape[1] == 1 for patch in edit.patches)


def test_an_edit_of_which_no_fact_is_within_bounds_is_refused(llama: LoadedModel, config: NSEConfig) -> None:
    with pytest.raises(EditError, match=r"beyond the upper bound of 0\.001.*Raise the upper bound"):
        plan(EditSession(llama), FACTS, config.changed(upper_bound=1e-3))


def test_the_settings_refuse_bounds_that_cross_and_a_missing_text() -> None:
    with pytest.raises(ConfigError, match="must lie under the upper bound"):
        NSEConfig.make(alpha=5.0, upper_bound=5.0)
    with pytest.raises(ConfigError, match="NSE weighs its update"):
        NSEConfig.make(statistics={"text": "none"})


def test_planning_leaves_the_sessions_running_state_alone(llama: LoadedModel, config: NSEConfig) -> None:
    session = EditSession(llama)
    session.apply(plan(session, FACTS[:1], config))
    digest, version = session.digest, session.version
    plan(session, FACTS[1:], config)
    assert (session.digest, session.version) == (digest, version)
    assert session.verify_undo()
