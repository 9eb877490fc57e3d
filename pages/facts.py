"""What shall be known?"""

import pandas as pd
import streamlit as st

from dashboard import engine, facts_table, frame, jobs, rows, state, tokens_html
from nmke.errors import FactError
from nmke.facts import Fact

mine = state.get()

COLUMN_HELP = {
    "prompt": st.column_config.TextColumn(
        "Prompt",
        width=270,
        help="Text that ends where the answer begins, with the subject in it. Write {} in the subject's place "
        "when it stands there twice.",
    ),
    "subject": st.column_config.TextColumn(
        "Subject", help="What the fact is about, exactly as in the prompt."
    ),
    "target_new": st.column_config.TextColumn(
        "New answer", help="What the edited model shall say (target_new)."
    ),
    "target_true": st.column_config.TextColumn(
        "Present answer", help="What is said before the edit (target_true); may stay empty."
    ),
    "paraphrases": st.column_config.ListColumn(
        "Paraphrases",
        width=150,
        help="The same question in other words; measures whether the edit generalises.",
    ),
    "neighborhood": st.column_config.ListColumn(
        "Neighbours",
        width=150,
        help=f"Prompts about other subjects that must keep their answer, written as: prompt {rows.ARROW} answer.",
    ),
    "portability": st.column_config.ListColumn(
        "Conclusions",
        width=150,
        help="What else must be true after the edit; measures whether the model draws the conclusions (portability). "
        f"Written as: prompt {rows.ARROW} answer.",
    ),
    "relation": st.column_config.TextColumn("Relation", help="A name for grouping; may stay empty."),
}


def show_bar() -> None:
    """Ways in and out: examples, upload, download, clear."""
    with st.container(horizontal=True):
        # the choice is drawn after the button that names how many were chosen
        add_here = st.empty()
        with st.popover("Choose examples"):
            picked = facts_table.pick_examples()
        with st.popover("Upload a file"):
            facts_table.upload()
        facts_table.download("CSV", "csv", "text/csv")
        facts_table.download("JSONL", "jsonl", "application/x-ndjson")
        if st.button(
            "Clear", key="facts.clear", disabled=not facts_table.any_rows(), help="Empty the table."
        ):
            facts_table.replace(())
            st.rerun()
    if add_here.button(
        f"Add {len(picked)} example{'s' if len(picked) != 1 else ''}",
        type="secondary" if mine.facts else "primary",
        key="facts.add",
        disabled=not picked,
        help="Facts that come with the program, with paraphrases and neighbours.",
    ):
        facts_table.add(picked)
        st.rerun()


def show_table() -> None:
    """The editable table; its good rows become the facts."""
    facts_table.show_report()
    problems = facts_table.edit(COLUMN_HELP)
    if not problems:
        return
    how_many = "1 row is not a fact yet" if len(problems) == 1 else f"{len(problems)} rows are not facts yet"
    st.warning(f"{how_many}; the good ones stay." if mine.facts else f"{how_many}.")
    names = {name: f"{config['label']}" for name, config in COLUMN_HELP.items()}
    facts_table.show_problems(
        [(item.row, names.get(item.field, item.field), item.problem, item.remedy) for item in problems]
    )


def show_fact() -> None:
    """The selected fact: its tokens and what the model says today."""
    index = st.selectbox(
        "Fact to look at",
        range(len(mine.facts)),
        index=mine.selected_fact,
        format_func=lambda i: f"{i + 1}. {mine.facts[i].prompt} → {mine.facts[i].target_new}",
        help="Choose a row of the table to see its tokens and what the model answers now.",
    )
    mine.selected_fact = index
    fact = mine.facts[index]
    if engine.current_model() is None:
        if jobs.running("load"):
            st.info("The model is being loaded; its tokens and its answer appear here when it is there.")
            return
        frame.missing("Load a model to see the tokens and what it says today.", "model", "Choose a model")
        return
    left, right = st.columns([5, 4], gap="large")
    with left, frame.guard("Cutting the fact into tokens"):
        show_tokens(fact)
    with right, frame.guard("Asking the model"):
        show_answer(fact)


def show_tokens(fact: Fact) -> None:
    """The prompt's tokens with the subject's last one marked, then the target's."""
    try:
        preview = engine.preview(fact)
    except FactError as problem:
        frame.show_error(problem)
        return
    if preview is None:
        return
    shift = len(preview.tokens)
    marks = {preview.subject_last: "subject"} | {
        shift + i: "target" for i in range(len(preview.target_tokens))
    }
    st.markdown("**Tokens**")
    st.html(tokens_html.token_strip([*preview.tokens, *preview.target_tokens], marks))
    st.html(
        tokens_html.legend(
            ("subject", "the subject's last token: the edit is written here"),
            ("target", "tokens of the new answer"),
        )
    )
    if preview.note:
        (st.warning if preview.too_long else st.caption)(preview.note)


def show_answer(fact: Fact) -> None:
    """Greedy continuation and the five likeliest next tokens."""
    session = engine.current_session()
    version = session.version if session is not None else 0
    st.markdown("**What the model says today**" + (f" (edit version {version})" if version else ""))
    # The table takes one pass of the model, the words above it a dozen: so the table is drawn first.
    above = st.container()
    likely = engine.next_tokens(fact.prompt, 5, edited=True)
    if not isinstance(likely, engine.Busy):
        show_likely(likely)
    with above, st.spinner("Asking the model"):
        said = engine.continuations((fact.prompt,), 12, edited=True)
    if isinstance(said, engine.Busy) or isinstance(likely, engine.Busy):
        frame.wait_until_free()
        return
    above.html(tokens_html.answer(fact.prompt, said[0]))
    if said[0].strip().startswith(fact.target_new):
        st.warning("The model says this already. Choose another new answer, or there is nothing to edit.")


def show_likely(likely: list[tuple[str, float]]) -> None:
    """The likeliest next tokens as a table with bars."""
    frame_of = pd.DataFrame([(tokens_html.visible(token), 100 * chance) for token, chance in likely])
    frame_of.columns = pd.Index(["Next token", "Probability"])
    st.dataframe(
        frame_of,
        hide_index=True,
        width="stretch",
        column_config={
            "Probability": st.column_config.ProgressColumn(
                format="%.1f %%", min_value=0.0, max_value=100.0, color="#0072B2"
            )
        },
        row_height=29,
    )


frame.question(
    "What shall be known?", "One row is one fact: a prompt, its subject and the answer it shall get."
)
if (problem := facts_table.take_upload()) is not None:
    st.error(problem)
show_bar()
with frame.guard("Reading the table"):
    show_table()
if mine.facts:
    with frame.guard("Showing the fact"):
        show_fact()
elif jobs.running("upload"):
    st.info("The file is being read.")
elif not facts_table.any_rows():
    st.info("Write a fact into the table, upload a file, or add the examples above.")
