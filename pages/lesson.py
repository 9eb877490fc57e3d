"""Show me the idea in ten minutes."""

from dashboard import engine, frame, lesson_view

frame.question(
    "Show me the idea in ten minutes",
    "Six steps. Every picture is computed on the loaded model when you press, and every sentence follows its numbers.",
)
model = engine.current_model()
if model is None:
    lesson_view.offer_model()
else:
    lesson_view.show(model)
