"""The command line: ``nmke fetch | models | methods | neurons | edit | train | drift | lifelong | sweep | roles |
ablate | ability``.

Exit codes: 0 done, 1 an error that is told in one line, 2 a command line that cannot be read,
130 stopped with Ctrl-C. Results go to standard output and files, everything else to standard error.
"""

import os
from typing import Annotated

import typer

from nmke import __version__
from nmke.cli.ability import ability
from nmke.cli.ablate import ablate
from nmke.cli.drift import drift
from nmke.cli.editing import edit
from nmke.cli.lifelong import lifelong
from nmke.cli.neuron_tables import neurons
from nmke.cli.roles import roles
from nmke.cli.shelf import fetch, list_known_methods, list_known_models
from nmke.cli.sweep import sweep
from nmke.cli.terminal import reporting_errors, say
from nmke.cli.train import train

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Neuron-level masked knowledge editing: find the neurons that hold a fact, write a new one, take it back.",
    epilog="The same with pictures: `streamlit run dashboard/app.py`. "
    "Models and texts are kept in the user's cache folder; the variable NMKE_HOME names another one.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    # Must be set before torch is imported. Threads that wait spin for some microseconds, then sleep: at once asleep
    # they wake too slowly for small layers (benchmarks/speed.md), and spinning on they slow other processes down.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Libraries that draw their own bars and notes would write over ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


for _name, _command in (
    ("fetch", fetch),
    ("models", list_known_models),
    ("methods", list_known_methods),
    ("neurons", neurons),
    ("edit", edit),
    ("train", train),
    ("drift", drift),
    ("lifelong", lifelong),
    ("sweep", sweep),
    ("roles", roles),
    ("ablate", ablate),
    ("ability", ability),
):
    app.command(_name)(reporting_errors(_command))
