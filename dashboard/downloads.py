"""Tables and figures as files. Buttons get functions, so nothing is written until somebody clicks."""

import importlib.util
import io
import os
import shutil
from collections.abc import Callable
from typing import Any, TypeAlias

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from dashboard.charts import CONFIG

#: A figure, or the same as plain data (its ``to_dict``).
Figure: TypeAlias = go.Figure | dict[str, Any]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")


def csv_bytes(table: pd.DataFrame) -> bytes:
    """The table as UTF-8 CSV."""
    return table.to_csv(index=False).encode()


def parquet_bytes(table: pd.DataFrame) -> bytes:
    """The table as Parquet."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def html_bytes(figure: Figure) -> bytes:
    """The figure as one HTML file that works without a network."""
    text: str = _for_paper(figure).to_html(include_plotlyjs=True, full_html=True, config=CONFIG)
    return text.encode()


def image_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as ``svg`` or ``png``; needs a Chrome or Chromium on this machine (see :func:`can_draw`)."""
    plain = _for_paper(figure).update_layout(paper_bgcolor="white", width=1100)
    data: bytes = plain.to_image(format=kind, scale=2)
    return data


def _for_paper(figure: Figure) -> go.Figure:
    """The figure standing alone: with its legend, which the page shows beside it."""
    alone = go.Figure(figure)
    margin = {"t": max(alone.layout.margin.t or 0, 60)}
    return alone.update_layout(template="plotly_white", showlegend=True, margin=margin)


def can_draw() -> bool:
    """Whether figures can be drawn to SVG and PNG here: kaleido is installed and finds a browser."""
    if importlib.util.find_spec("kaleido") is None:
        return False
    return bool(os.environ.get("BROWSER_PATH")) or any(shutil.which(name) for name in BROWSERS)


def caption(text: str, figure: Figure, name: str, *, key: str) -> None:
    """The sentence under a figure, and beside it the menu with the figure's files."""
    words, menu = st.columns([0.88, 0.12], gap="xsmall")
    words.caption(text)
    with menu.popover("", type="tertiary", icon=":material/download:", help="Save the figure"):
        figure_files(figure, name, key=key)


def figure_files(figure: Figure, name: str, *, key: str) -> None:
    """A small menu with the figure's files."""
    makers: list[tuple[str, str, str, Callable[[], bytes]]] = [
        ("HTML (interactive)", "html", "text/html", lambda: html_bytes(figure))
    ]
    if can_draw():
        makers.append(("SVG", "svg", "image/svg+xml", lambda: image_bytes(figure, "svg")))
        makers.append(("PNG", "png", "image/png", lambda: image_bytes(figure, "png")))
    for label, suffix, mime, make in makers:
        st.download_button(
            label, make, f"{name}.{suffix}", mime, key=f"{key}_{suffix}", on_click="ignore", type="tertiary"
        )
    if not can_draw():
        st.caption("For SVG use the camera icon in the chart's corner; PNG needs Chrome or Chromium here.")


def table_files(make: Callable[[], pd.DataFrame], name: str, *, key: str) -> None:
    """CSV and Parquet of one table; ``make`` runs when somebody clicks."""
    st.download_button(
        "CSV",
        lambda: csv_bytes(make()),
        f"{name}.csv",
        "text/csv",
        key=f"{key}_csv",
        on_click="ignore",
        type="tertiary",
    )
    st.download_button(
        "Parquet",
        lambda: parquet_bytes(make()),
        f"{name}.parquet",
        "application/vnd.apache.parquet",
        key=f"{key}_parquet",
        on_click="ignore",
        type="tertiary",
    )
