"""Which neurons hold a fact, and of which kind they are."""

from dashboard import frame, neurons_view

frame.question(
    "Which neurons hold it, and which kind are they?",
    "General neurons work for most prompts, specific ones strongly for some; the mask of an edit keeps both.",
)
model = frame.need_model()
facts = frame.need_facts() if model is not None else None
if model is not None and facts is not None:
    neurons_view.show(model, facts)
