"""A small finished benchmark run on a tiny model, for tests of what shows it."""

from pathlib import Path

from nmke.lifelong import Entrant, LifelongConfig, run, start
from nmke.loading import load_model
from tests.app.working_app import FACTS, TEXT
from tests.rows import tiny_config

#: Quick methods.
EDITORS = (("ROME", "rome"), ("FT-M", "ft-m"))


def write_text(folder: Path) -> Path:
    """A text long enough for the methods' statistics."""
    path = folder / "text.txt"
    path.write_text("\n".join([TEXT] * 60), encoding="utf-8")
    return path


def finish_run(folder: Path, model: Path, *, seeds: tuple[int, ...] = (0, 1)) -> Path:
    """Two editors write two facts into the tiny model; returns the run's folder."""
    text = write_text(model.parent)
    config = LifelongConfig(
        edits=2, marks=(1, 2), seeds=seeds, perplexity_tokens=0, generate_tokens=2, checkpoint_every=1
    )
    loaded = load_model(str(model), device="cpu")
    entrants = [Entrant(label, method, tiny_config(method, text)) for label, method in EDITORS]
    start(folder, loaded, FACTS, entrants, config, "tests")
    run(folder, loaded)
    return folder
