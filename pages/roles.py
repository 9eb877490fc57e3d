"""Who works for everything, who for one subject."""

from dashboard import frame, roles_view

frame.question(
    "Who works for everything, who for one subject?",
    "Every neuron is scored on questions of several subjects; those in which it is active give its role.",
)
model = frame.need_model()
if model is not None:
    roles_view.show(model)
