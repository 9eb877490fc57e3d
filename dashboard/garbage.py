"""Keeping Streamlit's garbage collection short.

Streamlit collects all generations after every run of a page or fragment. With torch, transformers and a model in
memory that walks half a million objects: a third of a second of computing per progress tick, taken from the
work it reports on. What stays for long is therefore set aside with ``gc.freeze``.
"""

import gc


def set_aside() -> None:
    """Leave what is in memory now out of later collections; takes no time."""
    gc.freeze()


def collect_all() -> None:
    """Collect what was set aside too, then set the rest aside: after imports, a load and an unload."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
