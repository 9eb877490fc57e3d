"""The Edit page's cost at inference: what the edits in force make the model carry, and how much slower it gets."""

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from dashboard import frame, jobs, state
from nmke.errors import NmkeError
from nmke.progress import Progress

if TYPE_CHECKING:
    from nmke.inference_cost import InferenceCost
    from nmke.session import EditSession

PURPOSE = "cost"


def show(session: "EditSession") -> None:
    """What kind of edits these are, and on a button what they cost, measured."""
    outcome = jobs.take(PURPOSE)
    if outcome is not None:
        if outcome.state == jobs.JobState.DONE:
            digest, found = outcome.value
            state.get().settings.setdefault("edit.costs", {})[digest] = found
        else:
            cancelled = outcome.state == jobs.JobState.CANCELLED
            state.get().flash("info" if cancelled else "error", outcome.error)
        st.rerun()
    st.markdown("**What the edits cost when the model is used**")
    st.markdown(say_kind(session))
    cost: InferenceCost | None = state.get().settings.get("edit.costs", {}).get(session.digest)
    if cost is None:
        _offer(session)
    else:
        _measured(cost)


def say_kind(session: "EditSession") -> str:
    """Which kinds of edits are in force and what they cost in principle."""
    parts = []
    if session.changed_layers:
        parts.append(
            f"In {_layers(session.changed_layers)} weights have other values: no parameter and no time more, "
            "however many edits there are."
        )
    for layer, module in sorted(session.modules.items()):
        parts.append(
            f"Beside layer {layer} stands a {module.kind} of {module.n_parameters:,} numbers, which is asked at every "
            "token."
        )
    if session.prompt is not None:
        parts.append(
            f"A {session.prompt.kind} stands in front of texts: the model's own numbers are as they were, and what "
            "stands in front is read with every text."
        )
    return " ".join(parts) or "These edits changed nothing that the model computes with."


def _offer(session: "EditSession") -> None:
    frame.progress_here(PURPOSE)
    if st.button(
        "Measure the time a token",
        key="edit.cost",
        icon=":material/timer:",
        disabled=jobs.running(PURPOSE) or jobs.running("edit"),
        help="Reads prompts of the edited facts with and without the edits, by turns, and compares the times.",
    ):
        digest = session.digest

        def work(progress: Progress) -> tuple[str, "InferenceCost"]:
            from nmke.inference_cost import measure_cost

            return digest, measure_cost(session, progress=progress)

        try:
            jobs.start(PURPOSE, "Measuring the cost of the edits", work)
        except NmkeError as problem:
            frame.show_error(problem)
        else:
            st.rerun()


def _measured(cost: "InferenceCost") -> None:
    change = f"{cost.ratio.value - 1:+.1%}" if cost.measurable else "no measurable difference"
    rows = {"extra parameters": f"{cost.extra_parameters:,}"}
    if cost.prompt is not None:
        rows |= {
            "of these, in the model that chooses": f"{cost.prompt.helper:,}",
            "tokens in front of a prompt": f"{cost.prompt.tokens:,.0f}",
        }
    rows |= {
        "milliseconds a token, unedited": f"{cost.plain_ms:.2f}",
        "milliseconds a token, edited": f"{cost.edited_ms:.2f}",
        "slower by": change,
    }
    table = pd.DataFrame({"cost": rows.keys(), "measured": rows.values()})
    st.dataframe(table, hide_index=True, key="edit.cost.table")
    st.caption(
        f"Edited by unedited: {cost.ratio.value:.3f} [{cost.ratio.low:.3f}, {cost.ratio.high:.3f}], mean over "
        f"{cost.ratio.n} pairs of passes over {cost.tokens} tokens, taken by turns on this machine; 1 is no cost."
    )
    if cost.extra_parameters and len(cost.growth) > 1:
        table = pd.DataFrame({"edits": range(1, len(cost.growth) + 1), "extra parameters": cost.growth})
        st.dataframe(table, hide_index=True, key="edit.cost.growth")
        st.caption(
            "How the extra parameters grew with the edits. Numbers that stay the same are a memory of a fixed size; "
            "numbers that rise with every edit never stop rising."
        )


def _layers(layers: tuple[int, ...]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"
