"""The entry point: the pages and the frame they share, nothing else.

Run it with ``streamlit run dashboard/app.py``.
"""

import os

import streamlit as st

from dashboard import engine, frame

# Threads that wait spin for some microseconds only, else they slow everything on a busy laptop; read by torch's import.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

st.set_page_config(page_title="Neuron editing", page_icon="🧠", layout="wide", initial_sidebar_state=260)
pages = [st.Page(file, title=title, url_path=key) for key, (file, title) in frame.PAGES.items()]
chosen = st.navigation(pages)
frame.style()
engine.begin_run()
frame.sidebar()
with frame.flashes(), frame.guard("Showing this page"):
    chosen.run()
