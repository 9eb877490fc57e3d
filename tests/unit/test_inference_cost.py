"""What edits cost at inference."""

import pytest

from nmke.errors import Cancelled, EditError
from nmke.inference_cost import PromptCost, measure_cost, parameter_growth
from nmke.loading import LoadedModel
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.tokens import encode
from tests.prompt_patches import edit_of as prompt_edit
from tests.prompt_patches import note
from tests.unit.test_modules import TEXTS, edit_of, shift


def test_modules_are_counted_and_weights_cost_nothing(tiny: LoadedModel) -> None:
    session = EditSession(tiny)
    module = shift(tiny)
    session.apply(edit_of(module))
    cost = measure_cost(session, TEXTS, pairs=3)
    assert cost.extra_parameters == module.n_parameters > 0
    assert cost.modules == {module.layer: (module.kind, module.n_parameters)}
    assert cost.growth == (module.n_parameters,)
    assert cost.weight_layers == ()
    assert cost.plain_ms > 0 and cost.edited_ms > 0
    assert cost.ratio.n == 3
    assert cost.to_dict()["ratio"]["value"] == cost.ratio.value


def test_a_module_that_takes_the_place_of_another_is_counted_once(llama: LoadedModel) -> None:
    session = EditSession(llama)
    module = shift(llama)
    session.apply(edit_of(module))
    session.apply(edit_of(module))
    assert parameter_growth(session) == (module.n_parameters, module.n_parameters)
    session.settle()
    assert parameter_growth(session) == (), "settled edits forget what they put there"


def test_a_slow_module_is_seen_in_the_time(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that advances by one for a pass and by two more where the module answers."""
    session, now = EditSession(llama), [0.0]
    module = shift(llama)
    answer = type(module).answer

    def slow(self: object, inputs: object, output: object) -> object:
        now[0] += 2
        return answer(self, inputs, output)  # type: ignore[arg-type]

    def clock() -> float:
        now[0] += 0.5
        return now[0]

    monkeypatch.setattr(type(module), "answer", slow)
    monkeypatch.setattr("nmke.inference_cost.time.perf_counter", clock)
    session.apply(edit_of(module))
    cost = measure_cost(session, TEXTS, pairs=4)
    assert cost.ratio.value == pytest.approx(2.5 / 0.5)
    assert cost.measurable
    assert cost.edited_ms / cost.plain_ms == pytest.approx(5.0)


def test_without_an_edit_there_is_nothing_to_measure(llama: LoadedModel) -> None:
    with pytest.raises(EditError, match="no edit whose cost"):
        measure_cost(EditSession(llama))


def test_a_cancel_leaves_the_model_as_it_was(llama: LoadedModel) -> None:
    class Cancels(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            raise Cancelled

    session = EditSession(llama)
    session.apply(edit_of(shift(llama)))
    before = session.digest
    with pytest.raises(Cancelled):
        measure_cost(session, TEXTS, progress=Cancels())
    assert session.digest == before
    assert not llama._modules


def test_text_in_front_is_counted_in_numbers_and_in_tokens(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, patch = EditSession(tiny), note("A cat says meow.\n", word="capital")
    monkeypatch.setattr(type(patch), "helper_parameters", lambda self: 100)
    session.apply(prompt_edit(patch))
    cost = measure_cost(session, ["The capital of France is", "A dog says"], pairs=2)
    ids = encode(tiny.tokenizer, "A cat says meow.\n")
    assert cost.prompt == PromptCost("test note", 3, 100, len(ids) / 2)
    assert cost.extra_parameters == 103 and cost.modules == {}
    assert cost.growth == (103,)
    assert cost.to_dict()["prompt"]["tokens"] == len(ids) / 2


def test_parameters_grow_with_what_each_edit_puts_in_front(llama: LoadedModel) -> None:
    session = EditSession(llama)
    for text in ("You.", "I."):
        session.apply(prompt_edit(note(text)))
    module = shift(llama)
    session.apply(edit_of(module))
    assert parameter_growth(session) == (3, 3, 3 + module.n_parameters)
