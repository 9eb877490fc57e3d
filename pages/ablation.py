"""Switch neurons off, and see what the model can still answer."""

from dashboard import ablation_view, frame

frame.question(
    "What breaks without them?",
    "The same questions are answered with nothing switched off, without the chosen neurons, and without as many random "
    "ones in the same layers.",
)
model = frame.need_model()
if model is not None:
    ablation_view.show(model)
