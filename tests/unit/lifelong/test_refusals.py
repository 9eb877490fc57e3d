"""What a lifelong run refuses before it begins, and what it says of damaged folders and files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nmke.errors import (
    Cancelled,
    ConfigError,
    EditError,
    FactError,
    NmkeError,
    ResourceError,
    SessionError,
)
from nmke.facts import Consequence, Fact
from nmke.lifelong import Entrant, LifelongConfig, read, read_data, run, start
from nmke.lifelong.files import CHECKPOINT, EVENTS, EventLog
from nmke.lifelong.spec import repeats
from nmke.loading import LoadedModel
from nmke.methods import methods
from nmke.methods.nmke import NMKEConfig
from nmke.progress import Progress
from tests.unit.lifelong.runs import (
    FACTS,
    config,
    entrants,
    go,
    settings,
)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"marks": (3, 1)}, "in order they are 1, 3"),
        ({"marks": (1, 3, 3)}, "in order they are 1, 3"),
        ({"marks": (1, 10)}, "mark 10 lies after the last of 5 edits; keep 1"),
        ({"marks": (0, 1)}, "start at 1"),
        ({"marks": ()}, "at least one mark"),
        ({"batch": 2, "marks": (1, 5)}, "mark 1 lies inside an edit of 2"),
        ({"seeds": (1, 1)}, "different"),
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (-1,)}, "from 0 on"),
        ({"edits": 0}, "edits"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"perplexity_tokens": 3}, "at least 16"),
        ({"perplexity_tokens": 0, "stop_perplexity": 5.0}, "needs perplexity_tokens"),
        ({"stop_reliability": 2.0}, "stop_reliability"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config("wikipedia", **changed)


def test_every_setting_is_titled_and_described() -> None:
    assert all(field.title and field.description for field in LifelongConfig.model_fields.values())


@pytest.mark.parametrize("label", ["", "a/b", "..", "a\n", "x" * 61, " a"])
def test_a_label_that_cannot_name_a_folder_is_refused(label: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a folder"):
        Entrant(label, "nmke", NMKEConfig())


def test_what_cannot_be_run_is_refused_before_anything_is_written(
    llama: LoadedModel, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, given = entrants(text)[:1], config(text)
    long = Fact("The capital of {} is", "France", "Rome", paraphrases=("France " * 300,))
    asks_much = replace(FACTS[0], portability=(Consequence("The boat is in", "wide river " * 200),))

    def refused(kind: type[NmkeError], words: str, facts: Any, chosen: Any, settings_: Any) -> None:
        with pytest.raises(kind, match=words):
            start(tmp_path / "run", llama, facts, chosen, settings_, "here")
        assert not (tmp_path / "run").exists()

    refused(FactError, "5 edits are wanted.*only 3 facts", FACTS[:3], one, given)
    refused(FactError, "Fact 2: the prompt 'France", (FACTS[0], long, *FACTS), one, given)
    refused(FactError, "Fact 1: the prompt 'The boat is in'", (asks_much, *FACTS), one, given)
    with monkeypatch.context() as patch:
        patch.setattr(llama, "context_length", 100)
        wordy = config(text, generate_tokens=98)
        refused(FactError, "Fact 1: .* or 98 tokens of free text.*less free text", FACTS, one, wordy)
    refused(ConfigError, "No method is named", FACTS, [], given)
    refused(
        ConfigError,
        "Two entrants have the label 'NMKE'",
        FACTS,
        [*one, Entrant("NMKE", "nmke", NMKEConfig())],
        given,
    )
    refused(EditError, "Methods: .*nmke", FACTS, [Entrant("a", "telepathy", NMKEConfig())], given)
    refused(ConfigError, "settings of another method", FACTS, [Entrant("a", "nmke", given)], given)
    refused(NmkeError, "layers 0 to 3", FACTS, [Entrant("a", "nmke", settings(text, layers=(9,)))], given)
    monkeypatch.setattr(type(methods()["nmke"]), "facts_at_once", 1)
    refused(
        EditError,
        "NMKE writes one fact an edit; the batch is 5",
        FACTS,
        one,
        config(text, batch=5, marks=(5,)),
    )


def test_a_folder_of_something_else_is_refused(
    llama: LoadedModel, gpt2: LoadedModel, tmp_path: Path, text: str
) -> None:
    folder, one = tmp_path / "run", entrants(text)[:1]
    start(folder, llama, FACTS, one, config(text), "here")
    for words, arguments in {
        "edits is 5 there and 4 here.*new folder, or repeat": (llama, FACTS, one, config(text, edits=4, marks=(1,))),
        "model.weight_hash is": (gpt2, FACTS, one, config(text)),
        "fact 1.prompt is The capital of France is there and The capital of Italy is here": (
            llama, FACTS[1:], one, config(text),
        ),
        "nmke.config.ridge is 1.0 there and 2.0 here": (
            llama, FACTS, [Entrant("nmke", "nmke", settings(text, ridge=2.0))], config(text),
        ),
        "entrants is nmke there and nmke, timid here": (llama, FACTS, entrants(text), config(text)),
    }.items():  # fmt: skip
        with pytest.raises(SessionError, match=words):
            start(folder, *arguments, "here")
    with pytest.raises(SessionError, match="another model.*weight_hash"):
        run(folder, gpt2)
    # The same facts of a file that is called and laid out otherwise and holds more are the same run.
    begun = (folder / "spec.json").read_bytes()
    start(folder, llama, (*FACTS, FACTS[0]), one, config(text), {"source": "elsewhere", "sha256": "0" * 64})
    assert (folder / "spec.json").read_bytes() == begun
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(SessionError, match="no lifelong run .cat.jpg.*new folder"):
        start(tmp_path / "photos", llama, FACTS, one, config(text), "here")


def test_a_folder_half_written_is_begun_again_and_a_damaged_one_refused(
    llama: LoadedModel, tmp_path: Path, text: str
) -> None:
    folder, one = tmp_path / "run", entrants(text)[:1]
    folder.mkdir()
    (folder / "facts.jsonl").write_text('{"half')
    (folder / ".partial-x").mkdir()
    start(folder, llama, FACTS, one, config(text), "here")
    assert read(folder).status[0]["state"] == "waiting" and read(folder).table().empty
    orders = (folder / "orders.json").read_text()
    (folder / "orders.json").write_text(orders.replace("0, 1", "1, 0"))
    with pytest.raises(SessionError, match="orders.json of the run run was changed"):
        run(folder, llama)
    (folder / "facts.jsonl").unlink()
    with pytest.raises(SessionError, match="not whole: facts.jsonl.*Choose a new folder"):
        start(folder, llama, FACTS, one, config(text), "here")
    (folder / "spec.json").write_text("{")
    with pytest.raises(ResourceError, match="damaged"):
        read(folder)
    with pytest.raises(ResourceError, match="spec.json cannot be read"):
        read(tmp_path / "nowhere")


def test_a_damaged_checkpoint_is_told_with_its_remedy(llama: LoadedModel, tmp_path: Path, text: str) -> None:
    class AtFour(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            if stage.startswith("editing") and done == 4:
                raise Cancelled

    folder = tmp_path / "run"
    with pytest.raises(Cancelled):
        go(folder, llama, text, AtFour())
    (folder / "runs" / "nmke-seed0" / CHECKPOINT).write_bytes(b"no")
    status = go(folder, llama, text).status[0]
    assert status["state"] == "failed" and "Remove the folder nmke-seed0" in status["message"]


def test_a_line_cut_off_at_the_end_is_passed_over_and_one_in_the_middle_is_not(tmp_path: Path) -> None:
    log = EventLog(tmp_path / EVENTS)
    log.append("edit", 1, value=float("inf"))
    with log.path.open("a") as file:
        file.write('{"event"')
    assert log.read() == [{"event": "edit", "position": 1, "value": None}]
    log.mend()
    log.append("mark", 1)
    assert [event["event"] for event in log.read()] == ["edit", "mark"]
    log.path.write_text("{\n" + log.path.read_text())
    with pytest.raises(ResourceError, match="damaged"):
        log.read()


def test_facts_about_one_subject_are_counted() -> None:
    several = [
        Fact("{} speaks", "Ada", "German"),
        Fact("{} speaks", "Ada", "Italian"),
        Fact("{} lives in", "Ada", "Italian"),
        Fact("{} lives in", "Bob", "Rome"),
        Fact("{} eats in", "Bob", "Rome"),
    ]
    assert repeats(several) == {
        "repeated_subjects": 2,
        "subjects_with_several_targets": 1,
        "prompts_with_several_targets": 1,
    }


def test_facts_are_read_from_named_files_and_the_name_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zsre = tmp_path / "zsre.jsonl"
    zsre.write_text(
        json.dumps({"subject": "Ada", "src": "Who is Ada?", "alt": "A poet", "answers": ["A countess"]})
    )
    found = read_data(f"zsre:{zsre}")
    assert found.facts[0].target_new == "A poet" and found.about["name"] == "zsre"
    assert len(found.about["sha256"]) == 64
    with pytest.raises(FactError, match="called counterfact, but its records are ZsRE"):
        read_data(f"counterfact:{zsre}")
    with pytest.raises(FactError, match="nothing.jsonl cannot be read"):
        read_data(str(tmp_path / "nothing.jsonl"))
    assert len(read_data("examples").facts) >= 60
    from nmke.lifelong import data

    asked = []
    monkeypatch.setattr(data, "_hub_records", lambda name, _: asked.append(name) or zsre.read_bytes())
    assert read_data("owner/name").facts == read_data("hf:owner/name").facts == found.facts
    assert asked == ["owner/name"] * 2


def test_a_hub_that_fails_without_a_word_is_told_by_the_kind_of_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    def failing(name: str) -> list[str]:
        raise RuntimeError

    monkeypatch.setattr(datasets, "get_dataset_split_names", failing)
    with pytest.raises(ResourceError, match="'owner/name' could not be read: RuntimeError"):
        read_data("hf:owner/name")
