"""The real small model: the examples it knows, an edit that takes, an undo that is exact."""

import pytest
import torch

from nmke.errors import ResourceError
from nmke.examples import builtin_facts
from nmke.forcing import answer_all
from nmke.loading import LoadedModel
from nmke.methods import methods
from nmke.presets import STANDARD, preset_for, presets_for
from nmke.progress import Silent
from nmke.session import EditSession
from nmke.trained import trained_path

# A fraction of the preset's statistics text: enough for a null space, quick enough for a test.
TOKENS = 4096


def test_the_model_knows_at_least_seventy_percent_of_the_examples(smollm2: LoadedModel) -> None:
    facts = builtin_facts()
    answers = answer_all(smollm2, [(fact.prompt, fact.target_true) for fact in facts])
    assert len(facts) >= 60
    assert sum(answer.hits[0] for answer in answers) / len(answers) >= 0.7


def test_the_default_model_passes_the_gate_and_has_a_verified_preset(smollm2: LoadedModel) -> None:
    assert smollm2.conformance.passed
    assert (smollm2.n_layers, smollm2.d_mlp, smollm2.d_vocab) == (30, 1536, 49152)
    assert preset_for(smollm2, "nmke").status == "verified"
    assert list(presets_for(smollm2, "nmke")) == [STANDARD, "trade-off"]
    assert all(preset.status == "verified" for preset in presets_for(smollm2, "nmke").values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"), [*((name, STANDARD) for name in sorted(methods())), ("nmke", "trade-off")]
)
def test_the_targets_probability_rises_and_undo_is_exact(
    name: str, settings: str, smollm2: LoadedModel
) -> None:
    fact = builtin_facts()[0]
    preset = preset_for(smollm2, name, settings).config
    config = (
        preset.changed(statistics={"tokens": TOKENS}) if "statistics" in type(preset).model_fields else preset
    )
    if name == "mend" and not trained_path(name, smollm2.weight_hash, config.shape).is_file():
        pytest.skip("train the editor first: nmke train mend --model smollm2-135m --data zsre_train.jsonl")
    loaded = [parameter.detach().clone() for parameter in smollm2.bridge.parameters()]
    session = EditSession(smollm2)
    try:
        session.apply(methods()[name].plan(session, [fact], config, Silent()))
    except ResourceError as problem:
        pytest.skip(f"what the method needs cannot be fetched here: {problem}")
    before, after = answer_all(smollm2, [(fact.prompt, fact.target_new)])[0], None
    with session.active():
        after = answer_all(smollm2, [(fact.prompt, fact.target_new)])[0]
    assert before.first_probability < 0.1
    assert after.first_probability > 0.5
    session.undo()
    with session.active():
        assert all(torch.equal(a, b) for a, b in zip(loaded, smollm2.bridge.parameters(), strict=True))
