"""What every test of lifelong runs has: an empty cache and a text to measure perplexity on."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(cache: Path) -> None:
    pass


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [f"The river {n} is wide, and cat {n * 7} says meow to dog {n * 3}." for n in range(60)]
    file.write_text("\n".join(lines))
    return str(file)
