"""Write facts into the model, read what changed, undo it."""

from dashboard import edit_view, frame

frame.question(
    "What changes when I write it in?",
    "An edit changes some neurons of a few layers, only for this browser tab; the loaded model itself stays as it is.",
)
model = frame.need_model()
facts = frame.need_facts() if model is not None else None
if model is not None and facts is not None:
    edit_view.show(model, facts)
