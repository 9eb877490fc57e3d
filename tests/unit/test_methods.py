"""Every registered method through the same checks, on both weight orientations."""

from pathlib import Path

import pytest
import torch

from nmke.edit import Edit
from nmke.errors import Cancelled, ConfigError, EditError, FactError, ModelError
from nmke.facts import Fact
from nmke.keys import average_contexts
from nmke.loading import LoadedModel
from nmke.masks import MaskConfig
from nmke.methods import Method, get_method, methods
from nmke.methods.nmke import NMKE, NMKEConfig
from nmke.progress import Progress, Silent
from nmke.session import EditSession
from nmke.solve import ridge_solve
from tests.tiny import TEXT

FACTS = (
    Fact("The capital of France is", "France", "Rome"),
    Fact("The language of Germany is", "Germany", "the boat"),
)


@pytest.fixture(params=sorted(methods()))
def method(request: pytest.FixtureRequest) -> Method:
    return get_method(request.param)


@pytest.fixture
def config(tmp_path: Path, cache: Path) -> NMKEConfig:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{number}. {TEXT}" for number in range(10)), encoding="utf-8")
    return NMKEConfig.make(
        layers=(1, 2),
        null_space_threshold=1e6,
        statistics={"text": str(text), "tokens": 400, "window": 32},
        target={"steps": 8, "weight_decay": 0.0, "learning_rate": 0.1},
    )


def snapshot(model: LoadedModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.bridge.parameters()]


def same(before: list[torch.Tensor], model: LoadedModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, model.bridge.parameters(), strict=True))


def test_planning_leaves_weights_and_session_as_they_were(
    method: Method, tiny: LoadedModel, config: NMKEConfig
) -> None:
    session, before = EditSession(tiny), snapshot(tiny)
    edit = method.plan(session, FACTS[:1], config, Silent())
    assert same(before, tiny)
    assert session.version == 0
    assert edit.layers == (1, 2)


def test_apply_then_undo_is_exact(method: Method, tiny: LoadedModel, config: NMKEConfig) -> None:
    session, before = EditSession(tiny), snapshot(tiny)
    for fact in FACTS:
        session.apply(method.plan(session, [fact], config, Silent()))
    with session.active():
        assert not same(before, tiny)
    session.undo()
    session.undo()
    with session.active():
        assert same(before, tiny)


def test_save_and_load_round_trips(
    method: Method, tiny: LoadedModel, config: NMKEConfig, tmp_path: Path
) -> None:
    session = EditSession(tiny)
    session.apply(method.plan(session, FACTS[:1], config, Silent()))
    session.save(tmp_path / "bundle")
    assert EditSession.load(tiny, tmp_path / "bundle").digest == session.digest


def test_a_batch_is_one_edit_with_a_column_per_fact(
    method: Method, tiny: LoadedModel, config: NMKEConfig
) -> None:
    session = EditSession(tiny)
    edit = method.plan(session, FACTS, config, Silent())
    assert [patch.left.shape for patch in edit.patches] == [(tiny.d_mlp, 2)] * 2
    session.apply(edit)
    assert session.history_keys(1).shape == (tiny.d_mlp, 2)


@pytest.mark.parametrize(
    "stage",
    [
        "scoring neurons (LPS)",
        "optimising z",
        "writing layers",
        "writing contexts",
        "reading the statistics text",
        "finding the null space",
    ],
)
def test_cancelling_in_any_stage_leaves_nothing_behind(
    method: Method, llama: LoadedModel, config: NMKEConfig, stage: str
) -> None:
    class Stop(Progress):
        reached = False

        def update(self, name: str, done: int, total: int | None, note: str = "") -> None:
            if name == stage:
                self.reached = True
                raise Cancelled

    session, before, stop = EditSession(llama), snapshot(llama), Stop()
    with pytest.raises(Cancelled):
        method.plan(session, FACTS[:1], config, stop)
    assert stop.reached
    assert same(before, llama) and session.version == 0
    assert len(method.plan(session, FACTS[:1], config, Silent()).patches) == 2


def test_layers_the_model_does_not_have_are_refused(
    method: Method, llama: LoadedModel, config: NMKEConfig
) -> None:
    with pytest.raises(ModelError, match="layers 0 to 3"):
        method.plan(EditSession(llama), FACTS[:1], config.changed(layers=(1, 9)), Silent())


def test_no_facts_and_facts_that_do_not_fit_are_refused(
    method: Method, llama: LoadedModel, config: NMKEConfig
) -> None:
    with pytest.raises(EditError, match="no facts"):
        method.plan(EditSession(llama), [], config, Silent())
    long = Fact("wide " * 300 + "France is", "France", "Rome")
    with pytest.raises(FactError, match="reads at most 256"):
        method.plan(EditSession(llama), [long], config, Silent())


def test_an_unknown_method_lists_those_that_exist() -> None:
    with pytest.raises(EditError, match=r"no method 'nkme'.*nmke"):
        get_method("nkme")


def test_every_setting_of_every_method_carries_help(method: Method) -> None:
    assert all(field.description for field in method.config_class.model_fields.values())


def test_unknown_settings_are_refused_at_any_depth() -> None:
    with pytest.raises(ConfigError, match=r"target\.stesp|no setting named 'target\.stesp'"):
        NMKEConfig.make(target={"stesp": 3})


def test_the_mask_decides_which_rows_of_the_update_are_kept(tiny: LoadedModel, config: NMKEConfig) -> None:
    edit = NMKE().plan(EditSession(tiny), FACTS[:1], config, Silent())
    for patch in edit.patches:
        kept = edit.masks[patch.layer]
        assert not patch.left[kept == 0].any()
        assert patch.left[kept == 1].any(1).float().mean() > 0.9
        assert 0 < patch.neurons < tiny.d_mlp


def test_the_first_layers_update_equals_the_dense_formula(tiny: LoadedModel, config: NMKEConfig) -> None:
    """X = mask * (P (K_p K_p^T + K K^T) + L2 I)^-1 P K R^T, from quantities collected one prompt at a time."""
    from nmke.contexts import context_templates
    from nmke.model import POST, RESID_POST
    from nmke.moments import collect_statistics
    from nmke.target import optimise_target
    from nmke.tokens import encode, find_subject_last, pad

    config = config.changed(null_space_threshold=0.05)
    session = EditSession(tiny)
    session.apply(NMKE().plan(session, FACTS[1:], config, Silent()))
    edit = NMKE().plan(session, FACTS[:1], config, Silent())

    fact, templates = FACTS[0], context_templates(tiny)
    with session.active():
        z = optimise_target(tiny, fact, 2, templates, config.target).z.double()
        keys = []
        for number, template in enumerate(templates):
            ids = encode(tiny.tokenizer, template.replace("{}", fact.prompt))
            place = find_subject_last(tiny.tokenizer, fact, template)
            kept = tiny.run(pad([ids], 0), [(POST, 1), (RESID_POST, 2)])
            keys.append(kept[(POST, 1)][0, place].double())
            if number == 0:
                R = ((z - kept[(RESID_POST, 2)][0, place].double()) / 2)[:, None]
    K = ((keys[0] + torch.stack(keys[1:]).mean(0)) / 2)[:, None]
    values, vectors = torch.linalg.eigh(
        collect_statistics(tiny, config.statistics, (1, 2)).second_moment[1].double()
    )
    kept_vectors = vectors[:, values < 0.05]
    P = kept_vectors @ kept_vectors.T
    X = ridge_solve(K, R, session.history_keys(1), P, config.ridge)
    expected = edit.masks[1].double()[:, None] * X
    scale = float(expected.abs().max())
    assert torch.allclose(edit.patches[0].matrix().double(), expected, atol=1e-3 * scale)


def test_contexts_weigh_half_the_bare_prompt_and_half_the_rest() -> None:
    activations = torch.tensor([[[4.0], [1.0], [3.0]]])
    assert average_contexts(activations).tolist() == [[3.0]]
    assert average_contexts(activations[:, :1]).tolist() == [[4.0]]


@pytest.mark.parametrize("variant", ["overlap", "non_overlap", "general", "specific", "soft"])
def test_every_mask_variant_plans_an_edit(llama: LoadedModel, config: NMKEConfig, variant: str) -> None:
    config = config.changed(mask=MaskConfig.make(variant=variant))
    edit = NMKE().plan(EditSession(llama), FACTS[:1], config, Silent())
    assert isinstance(edit, Edit)
    if variant == "soft":
        assert float(edit.masks[1].max()) == pytest.approx(1.0)


def test_the_edit_tells_seconds_per_stage_and_the_share_of_directions_kept(
    llama: LoadedModel, config: NMKEConfig
) -> None:
    edit = NMKE().plan(EditSession(llama), FACTS[:1], config, Silent())
    assert {"target", "attribution", "keys", "solve", "total"} <= set(edit.seconds)
    assert edit.details["layers"][0]["null_space_kept"] == 1.0
