"""The Abilities page's list of questions whose answer changed, and one of them with both answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import abilities_tables as tables
from dashboard import charts, downloads, state
from dashboard.abilities_tables import Pair

PICKED, TABLE = "abilities.question", "abilities.questions"
#: Rows that are sent to the browser; the file holds all.
MOST_ROWS = 400


def show(found: Sequence[Pair]) -> None:
    """Choose a comparison and a kind of change; the table; the chosen question."""
    st.markdown("**Questions**")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        place = st.selectbox(
            "Benchmark",
            range(len(found)),
            format_func=lambda place: f"{found[place].before.title}: {found[place].after.label}",
            key=_fresh("abilities.pair", found),
            help="Which comparison to look at, question by question.",
        )
        which = st.segmented_control(
            "Show",
            tables.CHANGES,
            default=None if "abilities.which" in st.session_state else tables.CHANGES[0],
            required=True,
            key="abilities.which",
            persist_state="session",
            help="Lost: right before, wrong after. Gained: the other way round.",
        )
        words = st.text_input(
            "Words",
            key="abilities.words",
            persist_state="session",
            placeholder="in question or answer",
            help="Shows the questions in which these words occur anywhere.",
            width=170,
        )
    each = found[place]
    both = _both(each)
    shown = tables.changed(both, which or tables.CHANGES[0], words)
    if shown.empty:
        st.info(f"No question of {each.before.title} is of that kind ({len(both):,} were asked).")
        return
    _table(shown.head(MOST_ROWS))
    more = f"; the first {MOST_ROWS:,} are listed, the file holds all" if len(shown) > MOST_ROWS else ""
    with st.container(horizontal=True):
        st.caption(
            f"{len(shown):,} of {len(both):,} questions{more}. Click a row to read it in full. Answers that turn into "
            "the same letter or the same words for every question would mean that the model broke."
        )
        downloads.table_files(lambda: shown, f"questions-{each.before.task}", key="abilities.file.questions")
    _one(shown.head(MOST_ROWS), each)


def _fresh(key: str, found: Sequence[Pair]) -> str:
    """A key of its own for every list of comparisons: an old place may stand for something else."""
    return f"{key}.{hash(tuple((each.before.task, each.before.state, each.after.state) for each in found))}"


def _both(each: Pair) -> pd.DataFrame:
    key = (each.before.setting, each.before.state, each.after.state)
    return state.get().kept.get("abilities.both", key, lambda: tables.side_by_side(each.before, each.after))


def _table(shown: pd.DataFrame) -> None:
    listed = pd.DataFrame(
        {
            "question": [_short(text) for text in shown["prompt"]],
            "right answer": [_line(text, 60) for text in shown["target"]],
            "before": _marked(shown, "before"),
            "after": _marked(shown, "after"),
            "part": shown["part"],
        }
    )
    if shown["part"].nunique() == 1:
        listed = listed.drop(columns="part")
    st.dataframe(
        listed,
        hide_index=True,
        key=TABLE,
        height=min(40 + 35 * len(listed), 285),
        on_select=_on_click,
        selection_mode="single-row",
        column_config={"question": st.column_config.TextColumn(width="large")},
    )


def _on_click() -> None:
    """Take a clicked row into the box of questions."""
    row = picked_row(st.session_state.get(TABLE))
    if row is not None:
        st.session_state[PICKED] = row


def picked_row(event: Any) -> int | None:
    """The row that a click on the table means, else None."""
    rows = _get(_get(event, "selection"), "rows")
    return int(rows[0]) if rows else None


def _get(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def _one(shown: pd.DataFrame, each: Pair) -> None:
    """The chosen question in full with both answers."""
    if st.session_state.get(PICKED) not in range(len(shown)):
        st.session_state[PICKED] = 0
    row = st.selectbox(
        "Question to read",
        range(len(shown)),
        format_func=lambda row: f"{row + 1}. {_short(shown['prompt'].iloc[row])}",
        key=PICKED,
        help="The whole prompt as the model got it, and what was said before and after.",
    )
    chosen = shown.iloc[row]
    st.code(str(chosen["prompt"]), language=None, wrap_lines=True)
    st.caption(f"Right answer: {_line(chosen['target'], 200)}")
    for column, when, label in zip(
        st.columns(2), ("before", "after"), (each.before.label, each.after.label), strict=True
    ):
        verdict = "right" if chosen[f"right {when}"] else "wrong"
        column.caption(f"{when.capitalize()}, {label}: {verdict}")
        column.code(str(chosen[f"answer {when}"]) or "(nothing)", language=None, wrap_lines=True)


def _marked(shown: pd.DataFrame, when: str) -> list[str]:
    """What was said, with a tick where it counts as right and a cross where not."""
    pairs = zip(shown[f"answer {when}"], shown[f"right {when}"], strict=True)
    return [f"{'✓' if right else '✗'} {_line(said, 60)}" for said, right in pairs]


def _line(text: Any, most: int) -> str:
    return charts.shorten(str(text), most)


def _short(prompt: Any) -> str:
    """The question itself: a prompt opens with instructions and examples that all questions share."""
    last = str(prompt).strip().rsplit("\n\n", 1)[-1].removesuffix("Answer:")
    return charts.shorten(last if len(last) >= 20 else str(prompt), 120)
