"""A lifelong run of edits that are text in front: what it measures, and that it goes on with the same bits."""

from pathlib import Path

import pytest

from nmke.errors import Cancelled
from nmke.lifelong import Entrant, LifelongConfig, Results, read, run, start
from nmke.loading import LoadedModel
from nmke.progress import Progress
from tests.rows import tiny_config
from tests.unit.lifelong.runs import FACTS, same

METHODS = ("ike", "serac")


@pytest.fixture(autouse=True)
def own_cache(cache: Path) -> None:
    pass


class Kills(Progress):
    """Cancels once the run is at a fact."""

    def __init__(self, at: int) -> None:
        self.at = at

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        if stage.startswith("editing") and done == self.at and "reading behind the edit" in note:
            raise Cancelled


def go(folder: Path, model: LoadedModel, name: str, at: int | None = None) -> Results:
    text = folder.parent / "text.txt"
    text.write_text("\n".join(f"The river {n} is wide, and cat {n} says meow." for n in range(40)))
    if not (folder / "spec.json").is_file():
        config = LifelongConfig.make(
            edits=3, marks=(1, 3), checkpoint_every=1, perplexity_tokens=64, perplexity_text=str(text)
        )
        settings = tiny_config(name, text)
        settings = settings.changed(k=0) if name == "ike" else settings  # the text's windows need the context
        start(folder, model, FACTS, [Entrant(name, name, settings)], config, "here")
    if at is not None:
        with pytest.raises(Cancelled):
            run(folder, model, Kills(at))
    run(folder, model)
    return read(folder)


@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_run_goes_on_from_its_checkpoint_with_the_same_bits(
    name: str, llama: LoadedModel, tmp_path: Path
) -> None:
    whole = go(tmp_path / "whole", llama, name)
    stopped = go(tmp_path / "stopped", llama, name, at=2)
    same(whole, stopped)
    assert [row["state"] for row in whole.status] == ["done"]
    marks = [event for event in whole.events(name, 0) if event["event"] == "mark"]
    assert [mark["n"] for mark in marks] == [1, 3]
    assert all(mark["drift"] == 0.0 and mark["perplexity"] is not None for mark in marks)
    assert marks[1]["module_parameters"] == 3 * marks[0]["module_parameters"] > 0
    assert any(event["event"] == "resume" for event in stopped.events(name, 0))
