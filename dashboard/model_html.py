"""The Model page's pictures: memory needed against free, and a loaded model's card."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dashboard.frame import say_bytes

if TYPE_CHECKING:
    from nmke.memory import MemoryEstimate

_PARTS = (("weights", "#0072B2"), ("statistics", "#E69F00"), ("workspace", "#CC79A7"))


def memory_bar(estimate: "MemoryEstimate") -> str:
    """A bar as long as what is free (or needed, if that is more), with the parts needed and a legend."""
    whole = max(estimate.free, estimate.total, 1)
    bars, words = [], []
    for name, colour in _PARTS:
        size = getattr(estimate, name)
        bars.append(f"<div style='width:{100 * size / whole:.2f}%;background:{colour}' title='{name}'></div>")
        words.append(f"<span style='color:{colour}'>■</span> {name} {say_bytes(size)}")
    over = estimate.total > estimate.free
    mark = 100 * estimate.free / whole
    limit = (
        f"<div style='position:absolute;left:{mark:.2f}%;top:-3px;bottom:-3px;border-left:3px solid #D55E00'></div>"
        if over
        else ""
    )
    return (
        "<div style='font-size:0.8rem'>"
        f"<div><b>Memory on {estimate.device}: {say_bytes(estimate.total)} needed of {say_bytes(estimate.free)} free"
        "</b></div>"
        "<div style='position:relative;display:flex;height:14px;border-radius:3px;background:rgba(128,128,128,0.2);"
        f"margin:4px 0'>{''.join(bars)}{limit}</div>"
        f"<div>{' &nbsp; '.join(words)}</div></div>"
    )


def card(entries: Sequence[tuple[str, str]]) -> str:
    """Names and values in a grid."""
    cells = [
        f"<div><div style='font-size:0.8rem;opacity:0.7'>{html.escape(name)}</div>"
        f"<div style='font-size:1.25rem;font-weight:600'>{html.escape(value)}</div></div>"
        for name, value in entries
    ]
    return (
        "<div style='display:grid;grid-template-columns:repeat(auto-fill,minmax(8rem,1fr));gap:0.9rem 1rem'>"
        f"{''.join(cells)}</div>"
    )
