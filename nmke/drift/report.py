"""The files of a drift view: one HTML page that needs no network, a PNG where a browser draws it, tables, figures."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from nmke.drift import figures
from nmke.drift.words import FORMULAS, WARNING
from nmke.storage import writing
from nmke.store import write_json, write_text, written_atomically

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from nmke.drift.embedding import DriftMap
    from nmke.drift.results import DriftNumbers

HTML, PNG, SUMMARY, LAYERS, NEURONS = (
    "drift.html",
    "drift.png",
    "summary.json",
    "layers.csv",
    "neurons.parquet",
)
_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:1200px;margin:2em auto;padding:0 1em}td,th{padding:.2em .7em}"
)


def write_report(
    folder: Path,
    drawn: "DriftMap",
    numbers: "DriftNumbers",
    groups: "Mapping[str, NDArray[Any]] | None",
    about: Mapping[str, Any],
) -> str:
    """Write everything; returns why there is no PNG, "" when there is one.

    Args:
        groups: what colours the edited points, see :func:`nmke.drift.figures.joint_map`.
        about: more entries of the summary (model, versions, where the edits came from).

    Raises:
        ResourceError: the folder cannot be written.
    """
    changes = {change.label: change for change in numbers.at(drawn.layer)}
    palette = figures.colours([change.label for change in numbers.changes])
    picture = figures.joint_map(drawn, changes, palette=palette, groups=groups, height=620)
    others = [
        figures.neuron_histograms(list(changes.values()), palette=palette, height=520),
        figures.change_spectra(list(changes.values()), palette=palette, height=380),
    ]
    table = numbers.table()
    text = page_html(f"Weight drift, layer {drawn.layer}", drawn.sentence, [picture, *others], table)
    write_text(folder / HTML, text)
    missing = _write_png(picture, drawn.sentence, folder / PNG)
    summary = {
        **about,
        "layer": drawn.layer,
        "map": drawn.to_record(),
        "directions": numbers.directions,
        "changes": numbers.to_record(),
        "formulas": FORMULAS,
        "png": missing or PNG,
    }
    write_json(folder / SUMMARY, summary)
    with writing(folder):
        table.to_csv(folder / LAYERS, index=False)
        numbers.neurons().to_parquet(folder / NEURONS, index=False)
    return missing


def page_html(title: str, sentence: str, pictures: Sequence[go.Figure], table: "pd.DataFrame") -> str:
    """One page: the map, how it was made, the warning, the other figures, the table and what its columns mean."""
    parts = [
        figure.update_layout(template="plotly_white").to_html(full_html=False, include_plotlyjs=number == 0)
        for number, figure in enumerate(pictures)
    ]
    meanings = "".join(
        f"<li><b>{html.escape(name)}</b>: {html.escape(text)}</li>" for name, text in FORMULAS.items()
    )
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{parts[0]}"
        f"<p>{html.escape(sentence)}</p><p><b>{html.escape(WARNING)}</b></p>{''.join(parts[1:])}"
        f"{table.to_html(index=False, border=0, float_format='{:.4g}'.format)}<ul>{meanings}</ul></body></html>\n"
    )


def _write_png(figure: go.Figure, sentence: str, path: Path) -> str:
    """Draw the map with a browser; returns the reason where it cannot be drawn."""
    alone = go.Figure(figure)
    alone.update_layout(template="plotly_white", paper_bgcolor="white", width=1100, height=760)
    alone.add_annotation(
        text="<br>".join(_wrapped(sentence)), x=0, y=-0.07, xref="paper", yref="paper", showarrow=False
    )
    alone.layout.annotations[-1].update(align="left", xanchor="left", yanchor="top", font={"size": 11})
    alone.update_layout(margin={"b": 110})
    try:
        data: bytes = alone.to_image(format="png", scale=2)
    except Exception as problem:  # kaleido raises what its browser raises
        first = (str(problem).strip().splitlines() or [""])[0][:200]
        return f"not drawn: kaleido found no working browser ({type(problem).__name__}: {first})"
    with written_atomically(path) as temporary:
        temporary.write_bytes(data)
    return ""


def _wrapped(text: str, width: int = 165) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return [*lines, line]
