"""MEND editors trained for the tiny models, a few steps each."""

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

from nmke.facts import Fact, Neighbor
from nmke.loading import load_model
from nmke.methods.mend_state import TrainingConfig
from nmke.methods.mend_training import METHOD, train_editor
from nmke.progress import Silent
from nmke.trained import trained_path
from tests.tiny import make_tiny

FACTS = tuple(
    Fact(
        f"The {what} of {place} is",
        place,
        new,
        true,
        paraphrases=(f"{place} has the {what}",),
        neighborhood=(Neighbor(near, answer),),
    )
    for what, place, new, true, near, answer in (
        ("capital", "France", "Rome", "Paris", "A cat says", "meow"),
        ("capital", "Spain", "London", "Madrid", "A dog says", "woof"),
        ("language", "Germany", "the boat", "German", "The river is", "wide"),
        ("city", "England", "Paris", "London", "I take the", "boat"),
        ("capital", "Italy", "Madrid", "Rome", "You and I", "take"),
        ("language", "France", "Rome", "", "The city of", "London"),
    )
)
TRAINING = TrainingConfig(
    layers=(1, 2),
    rank=8,
    steps=24,
    learning_rate=1e-3,
    edit_rate=3e-3,
    accumulate=3,
    held_out=1,
)


@functools.cache
def tiny_editors() -> tuple[tuple[str, bytes], ...]:
    """The files of the editors of both tiny models, by the names they are kept under."""
    found = []
    with TemporaryDirectory() as folder:
        for kind in ("llama", "gpt2"):
            model = load_model(str(make_tiny(kind, Path(folder) / kind)), device="cpu")
            path = trained_path(METHOD, model.weight_hash, TRAINING.shape)
            kept = Path(folder) / path.name
            train_editor(model, FACTS, TRAINING, Silent(), path=kept)
            found.append((path.name, kept.read_bytes()))
    return tuple(found)
