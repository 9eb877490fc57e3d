"""Tokens as chips of HTML, escaped; for ``st.html``."""

import html
from collections.abc import Mapping, Sequence

_CHIP = (
    "display:inline-block;margin:2px 1px;padding:1px 5px;border-radius:4px;white-space:pre;"
    "font-family:'Source Code Pro',monospace;font-size:0.9rem;line-height:1.6;"
)
#: Colours with a dark text of their own, readable on a light and on a dark page.
_STYLES: Mapping[str, str] = {
    "plain": "background:rgba(128,128,128,0.16);color:inherit;",
    "subject": "background:#E69F00;color:#1B1F24;font-weight:600;outline:2px solid #B87A00;",
    "target": "background:#009E73;color:#FFFFFF;",
    "true": "background:#999999;color:#1B1F24;",
}
_POSITIVE, _NEGATIVE = (213, 94, 0), (0, 114, 178)


def visible(token: str) -> str:
    """The token's text with what cannot be seen made visible."""
    shown = token.replace("\n", "↵").replace("\t", "⇥").replace(" ", "·")
    for hidden in "\u200b\u200c\u200d\u2060\ufeff":
        shown = shown.replace(hidden, f"‹U+{ord(hidden):04X}›")
    return shown or "∅"


def token_strip(
    tokens: Sequence[str], marks: Mapping[int, str] | None = None, titles: Mapping[int, str] | None = None
) -> str:
    """Tokens in a row; ``marks`` gives an index its style: subject, target or true."""
    marks, titles = marks or {}, titles or {}
    chips = [
        _chip(token, _STYLES[marks.get(i, "plain")], titles.get(i, "")) for i, token in enumerate(tokens)
    ]
    return f"<div dir='ltr' style='line-height:2'>{''.join(chips)}</div>"


def value_strip(tokens: Sequence[str], values: Sequence[float], limit: float | None = None) -> str:
    """Tokens shaded by a value, centred on zero: orange above, blue below; the value is the tooltip."""
    top = limit or max((abs(value) for value in values), default=0.0) or 1.0
    chips = []
    for token, value in zip(tokens, values, strict=True):
        red, green, blue = _POSITIVE if value >= 0 else _NEGATIVE
        share = min(abs(value) / top, 1.0)
        colour = f"background:rgba({red},{green},{blue},{0.08 + 0.62 * share:.2f});color:inherit;"
        chips.append(_chip(token, colour, f"{value:.3g}"))
    return f"<div dir='ltr' style='line-height:2'>{''.join(chips)}</div>"


def answer(prompt: str, continuation: str) -> str:
    """A prompt with what was said after it in bold."""
    said = html.escape(" ".join(continuation.split()) or "(nothing: the model ends the text here)")
    return f"<div style='line-height:1.6'>{html.escape(prompt)} <b>{said}</b></div>"


def legend(*styles: tuple[str, str]) -> str:
    """Small chips saying what the marks mean: pairs of style and words."""
    small = "white-space:normal;font-size:0.75rem;font-family:inherit;font-weight:400"
    chips = [
        f'<span style="{_CHIP}{_STYLES[style]}{small}">{html.escape(words)}</span>' for style, words in styles
    ]
    return f"<div>{' '.join(chips)}</div>"


def _chip(token: str, style: str, title: str) -> str:
    tip = f' title="{html.escape(title, quote=True)}"' if title else ""
    return f'<span style="{_CHIP}{style}"{tip}><bdi>{html.escape(visible(token))}</bdi></span>'
