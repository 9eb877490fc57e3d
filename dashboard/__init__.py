"""The Streamlit shell around the engine; no number is computed here."""
