"""Perplexity written out by hand, and text that is really held out."""

import math
from pathlib import Path

import pytest
import torch

from nmke.errors import Cancelled, EditError
from nmke.loading import LoadedModel
from nmke.moments import StatisticsConfig
from nmke.perplexity import HeldOut, hold_out, mean_nll, perplexity
from nmke.progress import Progress, Silent
from nmke.sites import FINAL
from nmke.texts import paragraphs_read, read_windows
from nmke.tokens import pad


def write_text(path: Path, paragraphs: int) -> str:
    words = ("river", "boat", "city", "cat", "dog", "language", "England", "Madrid")
    lines = [
        f"Paragraph {number} says {words[number % 8]} and {words[number % 7]}."
        for number in range(paragraphs)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_it_is_exp_of_the_mean_negative_log_likelihood_written_out(tiny: LoadedModel) -> None:
    held_out = HeldOut("here", (), ((5, 80, 14, 200), (9, 33)))
    terms = []
    for window in held_out.windows:
        for place in range(1, len(window)):
            # Each token from its own prompt, in float64, instead of one forced pass.
            final = tiny.run(pad([list(window[:place])], 0), [FINAL])[FINAL]
            logits = tiny.logits(final[0, -1]).double()
            terms.append(float(logits.logsumexp(0) - logits[window[place]]))
    assert held_out.predicted == len(terms) == 4
    assert mean_nll(tiny, held_out) == pytest.approx(sum(terms) / 4, rel=1e-5)
    assert perplexity(math.log(7.0)) == pytest.approx(7.0)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "logits", lambda final: torch.zeros(*final.shape[:-1], 320))
    assert perplexity(mean_nll(llama, HeldOut("here", (), ((1, 2, 3), (4, 5))))) == pytest.approx(320)


def test_a_start_token_lets_the_first_token_be_predicted(llama: LoadedModel) -> None:
    with_start = HeldOut("here", (0,), ((5, 80, 14),))
    assert with_start.predicted == 3
    assert mean_nll(llama, with_start) == pytest.approx(
        mean_nll(llama, HeldOut("here", (), ((0, 5, 80, 14),)))
    )


def test_a_number_too_large_is_infinite() -> None:
    assert perplexity(1e4) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_the_paragraphs_read_are_those_of_the_statistics(llama: LoadedModel, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 60)
    config = StatisticsConfig(text=text, tokens=400, window=32, seed=3)
    read = paragraphs_read(llama, config.text, config.tokens, config.seed, Silent())
    ids = [token for line in read for token in llama.tokenizer(line + "\n").input_ids]
    windows = read_windows(llama, text, 400, 32, 3, Silent()).flatten()
    assert windows[windows >= 0].tolist() == ids[:400]
    assert len(ids) - len(llama.tokenizer(read[-1] + "\n").input_ids) < 400


def test_held_out_text_is_none_of_what_any_statistics_read(llama: LoadedModel, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 80)
    copied = tmp_path / "copy.txt"
    copied.write_text((tmp_path / "text.txt").read_text())
    statistics = [
        StatisticsConfig(text=text, tokens=300, window=32, seed=0),
        StatisticsConfig(text=str(copied), tokens=300, window=32, seed=1),
        StatisticsConfig(text="none"),
    ]
    held_out = hold_out(llama, text, 300, statistics, window=64)
    said = llama.tokenizer.decode([token for window in held_out.windows for token in window])
    whole = [line for line in said.split("\n")[1:] if line]  # the first may be cut
    read = {
        line
        for config in statistics[:2]
        for line in paragraphs_read(llama, config.text, config.tokens, config.seed, Silent())
    }
    assert len(whole) > 5
    assert not read & set(whole)
    lines = (tmp_path / "text.txt").read_text().split("\n")
    unread = [line for line in lines if line not in read]
    assert whole == unread[-len(whole) :]
    assert [len(window) for window in held_out.windows] == [64, 64, 64, 64, 44]


def test_too_little_text_is_refused_with_how_much_there_is(llama: LoadedModel, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 20)
    everything = StatisticsConfig(text=text, tokens=10_000)
    with pytest.raises(EditError, match="has 0 tokens.*50 are wanted.*at most 0"):
        hold_out(llama, text, 50, [everything])


def test_it_survives_the_way_through_a_file(llama: LoadedModel, tmp_path: Path) -> None:
    held_out = hold_out(llama, write_text(tmp_path / "text.txt", 30), 100, [])
    assert HeldOut.from_dict(held_out.to_dict()) == held_out
    assert held_out.to_dict()["sha256"] != HeldOut("x", (), ((1, 2),)).sha256


def test_it_can_be_cancelled_between_windows(llama: LoadedModel) -> None:
    class Second(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            if done == 1:
                raise Cancelled

    with pytest.raises(Cancelled):
        mean_nll(llama, HeldOut("here", (), ((1, 2), (3, 4))), Second())
