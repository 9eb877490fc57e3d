"""Every registered method through the same checks, on both weight orientations."""

from pathlib import Path

import pytest
import torch

from nmke.config import Config
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
from nmke.sites import FINAL
from nmke.solve import ridge_solve
from nmke.target import TargetConfig
from nmke.tokens import encode_batch
from tests.rows import ROWS, closed_form, tiny_config
from tests.tiny import TEXT

FACTS = (
    Fact("The capital of France is", "France", "Rome"),
    Fact("The language of Germany is", "Germany", "the boat"),
)


@pytest.fixture(params=sorted(methods()))
def method(request: pytest.FixtureRequest) -> Method:
    return get_method(request.param)


@pytest.fixture
def text(tmp_path: Path, cache: Path) -> Path:
    """A text for statistics, and an empty cache."""
    file = tmp_path / "text.txt"
    file.write_text("\n".join(f"{number}. {TEXT}" for number in range(10)), encoding="utf-8")
    return file


@pytest.fixture
def config(method: Method, text: Path) -> Config:
    return tiny_config(method.name, text)


def snapshot(model: LoadedModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.bridge.parameters()]


def same(before: list[torch.Tensor], model: LoadedModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, model.bridge.parameters(), strict=True))


def answers(model: LoadedModel) -> torch.Tensor:
    """Logits on the facts' prompts: what weights and modules in force make of them."""
    batch = encode_batch(model.tokenizer, [f"{fact.prompt} {fact.target_new}" for fact in FACTS])
    return model.logits(model.run(batch, [FINAL])[FINAL])


def at_once(method: Method) -> int:
    """How many of the facts go into one edit."""
    return min(len(FACTS), method.facts_at_once or len(FACTS))


def test_every_registered_method_has_its_row() -> None:
    assert set(ROWS) == set(methods())


def test_planning_leaves_weights_and_session_as_they_were(
    method: Method, tiny: LoadedModel, config: Config
) -> None:
    session, before, said = EditSession(tiny), snapshot(tiny), answers(tiny)
    edit = method.plan(session, FACTS[:1], config, Silent())
    assert same(before, tiny) and torch.equal(answers(tiny), said)
    assert session.version == 0
    assert edit.method == method.name and edit.facts == FACTS[:1]
    assert edit.seconds["total"] > 0
    changed = {*edit.layers, *(module.layer for module in edit.modules)}
    assert sorted(changed) == list(ROWS[method.name].layers)


def test_planning_twice_gives_the_same_bits(method: Method, llama: LoadedModel, config: Config) -> None:
    digests = []
    for _ in range(2):
        session = EditSession(llama)
        for fact in FACTS:
            session.apply(method.plan(session, [fact], config, Silent()))
        digests.append(session.digest)
    assert digests[0] == digests[1]


def test_apply_then_undo_is_exact(method: Method, tiny: LoadedModel, config: Config) -> None:
    session, before, said = EditSession(tiny), snapshot(tiny), answers(tiny)
    for fact in FACTS:
        session.apply(method.plan(session, [fact], config, Silent()))
    with session.active():
        assert not torch.equal(answers(tiny), said)
        edited = answers(tiny)
    assert torch.equal(answers(tiny), said)
    session.undo()
    session.undo()
    with session.active():
        assert same(before, tiny) and torch.equal(answers(tiny), said)
    session.redo()
    session.redo()
    with session.active():
        assert torch.equal(answers(tiny), edited)


def test_another_session_on_the_model_never_sees_the_edit(
    method: Method, tiny: LoadedModel, config: Config
) -> None:
    mine, other, said = EditSession(tiny), EditSession(tiny), answers(tiny)
    mine.apply(method.plan(mine, FACTS[:1], config, Silent()))
    with mine.active(), other.active():
        assert torch.equal(answers(tiny), said)


def test_save_and_load_round_trips(method: Method, tiny: LoadedModel, config: Config, tmp_path: Path) -> None:
    session = EditSession(tiny)
    for fact in FACTS:  # what a second edit shares with the first is saved and loaded too
        session.apply(method.plan(session, [fact], config, Silent()))
    session.save(tmp_path / "bundle")
    loaded = EditSession.load(tiny, tmp_path / "bundle")
    assert loaded.digest == session.digest
    with session.active():
        said = answers(tiny)
    with loaded.active():
        assert torch.equal(answers(tiny), said)


def test_a_session_restored_from_its_state_goes_on_with_the_same_bits(
    method: Method, llama: LoadedModel, config: Config
) -> None:
    session = EditSession(llama)
    session.apply(method.plan(session, FACTS[:1], config, Silent()))
    masters, modules = session.state()
    again = EditSession.restored(llama, session.edits, masters, modules, session.prompt)
    assert again.digest == session.digest
    session.apply(method.plan(session, FACTS[1:], config, Silent()))
    again.apply(method.plan(again, FACTS[1:], config, Silent()))
    assert again.digest == session.digest


def test_a_batch_is_one_edit_or_a_clear_refusal(method: Method, tiny: LoadedModel, config: Config) -> None:
    session = EditSession(tiny)
    if at_once(method) < len(FACTS):
        with pytest.raises(EditError, match=r"an edit; 2 were given.*one after the other"):
            method.plan(session, FACTS, config, Silent())
        return
    edit = method.plan(session, FACTS, config, Silent())
    assert edit.facts == FACTS
    session.apply(edit)
    assert session.version == 1


@pytest.mark.parametrize(
    ("name", "stage"), [(name, stage) for name in sorted(ROWS) for stage in ROWS[name].stages]
)
def test_cancelling_in_any_stage_leaves_nothing_behind(
    name: str, stage: str, llama: LoadedModel, text: Path
) -> None:
    class Stop(Progress):
        reached = False

        def update(self, name: str, done: int, total: int | None, note: str = "") -> None:
            if name == stage:
                self.reached = True
                raise Cancelled

    method, config = get_method(name), tiny_config(name, text)
    session, before, said, stop = EditSession(llama), snapshot(llama), answers(llama), Stop()
    with pytest.raises(Cancelled):
        method.plan(session, FACTS[:1], config, stop)
    assert stop.reached
    assert same(before, llama) and torch.equal(answers(llama), said) and session.version == 0
    session.apply(method.plan(session, FACTS[:1], config, Silent()))


def test_layers_the_model_does_not_have_are_refused(
    method: Method, llama: LoadedModel, config: Config
) -> None:
    if not {"layer", "layers"} & {*type(config).model_fields}:
        assert ROWS[method.name].layers == ()
        return
    wrong: dict[str, object] = {"layers": (1, 9)} if "layers" in type(config).model_fields else {"layer": 9}
    with pytest.raises(ModelError, match="layers 0 to 3"):
        method.plan(EditSession(llama), FACTS[:1], config.changed(**wrong), Silent())


def test_no_facts_other_settings_and_facts_that_do_not_fit_are_refused(
    method: Method, llama: LoadedModel, config: Config
) -> None:
    with pytest.raises(EditError, match="no facts"):
        method.plan(EditSession(llama), [], config, Silent())
    with pytest.raises(ConfigError, match="its own settings"):
        method.plan(EditSession(llama), FACTS[:1], TargetConfig(), Silent())
    long = Fact("wide " * 300 + "France is", "France", "Rome")
    with pytest.raises(FactError, match="reads at most 256"):
        method.plan(EditSession(llama), [long], config, Silent())


@pytest.fixture
def nmke_config(text: Path) -> NMKEConfig:
    return NMKEConfig.make(**closed_form(text))


def test_an_unknown_method_lists_those_that_exist() -> None:
    with pytest.raises(EditError, match=r"no method 'nkme'.*nmke"):
        get_method("nkme")


def test_every_setting_of_every_method_carries_help(method: Method) -> None:
    assert all(field.description for field in method.config_class.model_fields.values())


@pytest.mark.parametrize("name", ["nmke", "alphaedit", "memit", "rome"])
def test_writing_at_the_last_layer_where_no_token_reads_it_is_refused(
    name: str, llama: LoadedModel, text: Path
) -> None:
    config = tiny_config(name, text)
    last: dict[str, object] = {"layers": (3,)} if "layers" in type(config).model_fields else {"layer": 3}
    with pytest.raises(EditError, match=r"no later token.*up to 2"):
        get_method(name).plan(EditSession(llama), FACTS[:1], config.changed(**last), Silent())
    ends = Fact("We love the land of France", "France", "Rome")
    assert get_method(name).plan(EditSession(llama), [ends], config.changed(**last), Silent()).layers == (3,)


@pytest.mark.parametrize("acts", ["on the update", "in the solve"])
def test_a_mask_without_neurons_is_refused(llama: LoadedModel, nmke_config: NMKEConfig, acts: str) -> None:
    nothing = {f"{kind}_{end}": 0.0 for kind in ("general", "specific") for end in ("low", "high")}
    config = nmke_config.changed(mask_acts=acts, mask={**nothing, "variant": "overlap", "ties": "score"})
    with pytest.raises(EditError, match="keep no neuron"):
        NMKE().plan(EditSession(llama), FACTS[:1], config, Silent())


def test_unknown_settings_are_refused_at_any_depth() -> None:
    with pytest.raises(ConfigError, match=r"target\.stesp|no setting named 'target\.stesp'"):
        NMKEConfig.make(target={"stesp": 3})


def test_the_mask_decides_which_rows_of_the_update_are_kept(
    tiny: LoadedModel, nmke_config: NMKEConfig
) -> None:
    edit = NMKE().plan(EditSession(tiny), FACTS[:1], nmke_config, Silent())
    for patch in edit.patches:
        kept = edit.masks[patch.layer]
        assert not patch.left[kept == 0].any()
        assert patch.left[kept == 1].any(1).float().mean() > 0.9
        assert 0 < patch.neurons < tiny.d_mlp


def test_the_first_layers_update_equals_the_dense_formula(tiny: LoadedModel, nmke_config: NMKEConfig) -> None:
    """X = mask * (P (K_p K_p^T + K K^T) + L2 I)^-1 P K R^T, from quantities collected one prompt at a time."""
    from nmke.contexts import context_templates
    from nmke.moments import collect_statistics
    from nmke.sites import POST, RESID_POST
    from nmke.target import optimise_target
    from nmke.tokens import encode, find_subject_last, pad

    nmke_config = nmke_config.changed(null_space_threshold=0.05)
    session = EditSession(tiny)
    session.apply(NMKE().plan(session, FACTS[1:], nmke_config, Silent()))
    edit = NMKE().plan(session, FACTS[:1], nmke_config, Silent())

    fact, templates = FACTS[0], context_templates(tiny)
    with session.active():
        z = optimise_target(tiny, fact, 2, templates, nmke_config.target).z.double()
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
        collect_statistics(tiny, nmke_config.statistics, (1, 2)).second_moment[1].double()
    )
    kept_vectors = vectors[:, values < 0.05]
    P = kept_vectors @ kept_vectors.T
    X = ridge_solve(K, R, session.history_keys(1), P, nmke_config.ridge)
    expected = edit.masks[1].double()[:, None] * X
    scale = float(expected.abs().max())
    assert torch.allclose(edit.patches[0].matrix().double(), expected, atol=1e-3 * scale)


def test_contexts_weigh_half_the_bare_prompt_and_half_the_rest() -> None:
    activations = torch.tensor([[[4.0], [1.0], [3.0]]])
    assert average_contexts(activations).tolist() == [[3.0]]
    assert average_contexts(activations[:, :1]).tolist() == [[4.0]]


@pytest.mark.parametrize("variant", ["overlap", "non_overlap", "general", "specific", "soft"])
def test_every_mask_variant_plans_an_edit(llama: LoadedModel, nmke_config: NMKEConfig, variant: str) -> None:
    nmke_config = nmke_config.changed(mask=MaskConfig.make(variant=variant))
    edit = NMKE().plan(EditSession(llama), FACTS[:1], nmke_config, Silent())
    assert isinstance(edit, Edit)
    if variant == "soft":
        assert float(edit.masks[1].max()) == pytest.approx(1.0)


def test_the_edit_tells_seconds_per_stage_and_the_share_of_directions_kept(
    llama: LoadedModel, nmke_config: NMKEConfig
) -> None:
    edit = NMKE().plan(EditSession(llama), FACTS[:1], nmke_config, Silent())
    assert {"target", "attribution", "keys", "solve", "total"} <= set(edit.seconds)
    assert edit.details["layers"][0]["null_space_kept"] == 1.0
