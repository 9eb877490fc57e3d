"""What an edit or an ablation did to everything that it was not about."""

from dashboard import abilities_view, frame

frame.question(
    "What else changed?",
    "The same public benchmarks before and after: the model as loaded, with edits, or with neurons switched off.",
)
model = frame.need_model()
if model is not None:
    abilities_view.show(model)
