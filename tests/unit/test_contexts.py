"""Context templates of ordinary text: whole sentences of what the statistics read, the same for one seed."""

from pathlib import Path

import pytest

from nmke.contexts import SENTENCE_TOKENS, context_templates, sentences_of
from nmke.errors import ConfigError, EditError
from nmke.facts import Fact
from nmke.loading import LoadedModel
from nmke.methods import get_method
from nmke.methods.alphaedit import AlphaEditConfig
from nmke.moments import StatisticsConfig
from nmke.perplexity import hold_out
from nmke.progress import Silent
from nmke.session import EditSession
from nmke.texts import paragraphs_read
from nmke.tokens import encode

WORDS = ("river", "boat", "city", "cat", "dog", "language", "England", "Madrid")


def written(folder: Path, paragraphs: int = 40) -> StatisticsConfig:
    """A text of which every paragraph has one sentence that fits, between others that do not."""
    lines = [
        f"In {{braces}} nothing is read. Paragraph {number} says {WORDS[number % 8]} and {WORDS[number % 7]}. No."
        for number in range(paragraphs)
    ]
    path = folder / "text.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return StatisticsConfig(text=str(path), tokens=512, window=32)


def test_they_are_whole_sentences_of_what_the_statistics_read(tiny: LoadedModel, tmp_path: Path) -> None:
    text = written(tmp_path)
    templates = context_templates(tiny, 0, None, text)
    read = paragraphs_read(tiny, text.text, text.tokens, text.seed, Silent())
    assert templates[0] == "{}"
    assert len(templates) == len(set(templates)) == 6
    for template in templates[1:]:
        sentence = template.removesuffix(" {}")
        assert sentence.startswith("Paragraph ")
        assert sentence.endswith(".")
        assert any(sentence in paragraph for paragraph in read)
        assert SENTENCE_TOKENS[0] <= len(encode(tiny.tokenizer, sentence)) <= SENTENCE_TOKENS[1]


def test_a_seed_means_the_same_sentences_and_another_means_others(tiny: LoadedModel, tmp_path: Path) -> None:
    text = written(tmp_path)
    first = context_templates(tiny, 0, None, text)
    assert context_templates(tiny, 0, None, text) == first
    assert context_templates(tiny, 1, None, text) != first
    assert context_templates(tiny, 0) != first


@pytest.mark.parametrize(
    ("paragraph", "sentences"),
    [
        ("It rained. The boat left.", ["It rained.", "The boat left."]),
        ("It was led by J. Smith of the court.", []),
        ("a boat left. Then it rained!", []),
        ("About {this} one. The boat left.", ["The boat left."]),
        ("It cost 3.5 pounds in all.", []),
        ("über dem See. École fermée.", ["École fermée."]),
        ("Öl floats. Why? Nobody knows.", ["Öl floats.", "Nobody knows."]),
    ],
)
def test_a_sentence_is_whole(paragraph: str, sentences: list[str]) -> None:
    assert sentences_of(paragraph) == sentences


def test_too_little_text_is_told(tiny: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(EditError, match="has 4 paragraphs with a sentence of 8 to 20 tokens; 5 are needed"):
        context_templates(tiny, 0, None, written(tmp_path, 4))


def test_text_held_out_from_the_statistics_is_held_out_from_the_contexts(
    tiny: LoadedModel, tmp_path: Path
) -> None:
    text = written(tmp_path, 80)
    held_out = hold_out(tiny, text.text, 300, [text], window=64)
    said = tiny.tokenizer.decode([token for window in held_out.windows for token in window])
    for seed in range(5):
        assert not any(template[:-3] in said for template in context_templates(tiny, seed, None, text)[1:])


@pytest.mark.parametrize("method", ["nmke", "alphaedit", "memit", "emmet", "nse"])
def test_every_method_of_several_layers_writes_under_them(
    tiny: LoadedModel, tmp_path: Path, method: str
) -> None:
    text = written(tmp_path)
    fact = Fact(prompt="The river says", subject="river", target_new=" boat")
    values = {
        "layers": (1,),
        "contexts": "ordinary text",
        "statistics": text.model_dump(),
        "target": {"steps": 2},
    }
    if method in ("nmke", "alphaedit"):
        values["null_space_threshold"] = 1e3
    config = get_method(method).config_class.make(**values)
    edit = get_method(method).plan(EditSession(tiny), [fact], config, Silent())
    assert edit.details["templates"] == list(context_templates(tiny, 0, None, text))


def test_without_a_statistics_text_they_are_refused() -> None:
    with pytest.raises(ConfigError, match="sentences of the statistics text, which is 'none'"):
        AlphaEditConfig.make(contexts="ordinary text", statistics={"text": "none"})
