"""How far edits moved the weights: one joint t-SNE, and numbers that depend on no seed."""

from dashboard import drift_view, frame

frame.question(
    "How far did the weights move?",
    "Every point is a neuron's output vector in one layer, before and after the edits; the numbers beside it depend on "
    "no seed.",
)
model = frame.need_model()
if model is not None:
    drift_view.show(model)
