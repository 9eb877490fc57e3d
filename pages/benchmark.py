"""Let editors write many facts one after another, and see which of them lasts."""

from dashboard import benchmark_view, frame

frame.question(
    "Which editor lasts?",
    "Each editor writes the same facts one after another; at some numbers of edits everything written so far is "
    "measured again.",
)
benchmark_view.show()
