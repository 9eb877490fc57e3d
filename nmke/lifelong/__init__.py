"""The lifelong benchmark: methods edit one fact after another and are measured on all facts so far.

``start`` checks everything and writes the run's folder, ``run`` works until it is done and goes on where it was
stopped or killed, ``read`` shows what is there at any time. The folder::

    spec.json  facts.jsonl  orders.json      what is run, the facts in file order, their order for each seed
    held_out.json                            the tokens of the perplexity
    unedited.json  unedited.parquet          the model before any edit
    abilities.json                           what general ability is judged on, where it is
    runs/LABEL-seedK/events.jsonl            one line per edit, mark, resume, stop, failure
    runs/LABEL-seedK/predictions-T.parquet   what the model said about every fact so far
    runs/LABEL-seedK/checkpoint.safetensors  matrices, modules, keys and edit records
    summary.json                             scores of every mark
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nmke.lifelong.data import read_data as read_data
    from nmke.lifelong.results import Results as Results
    from nmke.lifelong.results import read as read
    from nmke.lifelong.running import run as run
    from nmke.lifelong.spec import Entrant as Entrant
    from nmke.lifelong.spec import LifelongConfig as LifelongConfig
    from nmke.lifelong.spec import Spec as Spec
    from nmke.lifelong.starting import start as start

_EXPORTS = {
    "Entrant": "spec",
    "LifelongConfig": "spec",
    "Results": "results",
    "Spec": "spec",
    "read": "results",
    "read_data": "data",
    "run": "running",
    "start": "starting",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: results are read without torch."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'nmke.lifelong' has no attribute {name!r}")
    return getattr(import_module(f"nmke.lifelong.{_EXPORTS[name]}"), name)
