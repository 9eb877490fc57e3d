"""The Benchmark page's form: facts, editors with their settings, the run's own settings, Start."""

from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboard import benchmark_work as work
from dashboard import frame, jobs, state
from dashboard.neurons_settings import CHOICES
from dashboard.preset_choice import choose_preset, form_key
from dashboard.widgets import FormLook, config_form
from nmke.errors import NmkeError
from nmke.preset_names import labelled

if TYPE_CHECKING:
    from nmke.lifelong import Entrant, LifelongConfig
    from nmke.lifelong.data import Data
    from nmke.loading import LoadedModel

SOURCES = {
    "page": "Those of the Facts page",
    "examples": "The built-in examples",
    "file": "A file",
}
#: Marks and seeds are lists of numbers, which have boxes of their own.
_LOOK = FormLook(
    hidden=("marks", "seeds"),
    advanced=("checkpoint_every", "perplexity_text", "generate_tokens"),
    columns=2,
    names={None: "never"},
)


def show(model: "LoadedModel") -> str | None:
    """Draw the form; the name of the run that was just started, else None."""
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**Facts**")
        data = _facts()
        st.markdown("**Run**")
        config = _settings(len(data.facts)) if data is not None else None
        name = _name()
    with right:
        st.markdown("**Editors**")
        entrants = _editors(model)
    with left:
        return _start(model, name, data, entrants, config)


# ---- facts ------------------------------------------------------------------------------------------------------


def _facts() -> "Data | None":
    """The chosen facts; None after saying what is missing."""
    mine = state.get()
    source = st.selectbox(
        "Facts to write, one edit after another",
        list(SOURCES),
        index=0 if mine.facts else 1,
        format_func=SOURCES.__getitem__,
        key="benchmark.source",
        persist_state="session",
        help="The facts that every editor writes. Seed 0 keeps their order, other seeds shuffle them.",
    )
    if source == "page":
        if not mine.facts:
            frame.missing("There are no facts on the Facts page yet.", "facts", "Enter facts")
            return None
        found = work.page_facts()
    elif source == "examples":
        found = work.examples()
    else:
        named = st.text_input(
            "File",
            key="benchmark.file",
            persist_state="session",
            placeholder="counterfact:facts.json",
            help="counterfact:FILE or zsre:FILE for the published data sets; a path alone takes any file of facts.",
        )
        try:
            found = work.facts_from(named)
        except NmkeError as problem:
            (st.error if named.strip() else st.info)(str(problem))
            return None
    count = "1 fact" if len(found.facts) == 1 else f"{len(found.facts):,} facts"
    left = f"; rows left out: {len(found.problems):,}" if found.problems else ""
    st.caption(f"{count} ({found.about['format']}){left}.")
    return found


# ---- the run's settings -----------------------------------------------------------------------------------------


def _settings(facts: int) -> "LifelongConfig | None":
    """The run's settings from the form; None after saying what is wrong with them."""
    from nmke.lifelong import LifelongConfig

    usual = LifelongConfig()
    initial = usual if usual.edits <= facts else _fitting(usual, facts)
    values, problems = {}, []
    for field, least in (("marks", 1), ("seeds", 0)):
        info = LifelongConfig.model_fields[field]
        key = f"benchmark.form.{field}"
        opening: dict[str, Any] = (
            {} if key in st.session_state else {"value": ", ".join(map(str, getattr(initial, field)))}
        )
        title = info.title or field.capitalize()
        text = st.text_input(title, key=key, persist_state="session", help=info.description, **opening)
        try:
            values[field] = work.parse_numbers(text, title, least)
        except NmkeError as problem:
            problems.append(str(problem))
    if problems:
        st.error(" ".join(problems))
        return None
    # Unchecked here: the form checks marks and edits together, and says what does not fit.
    opened = LifelongConfig.model_construct(**{**dict(initial), **values})
    config = config_form(LifelongConfig, opened, "benchmark.form", _LOOK)
    if config is not None and config.edits > facts:
        st.error(
            f"The run writes {config.edits:,} edits, but there are only {facts:,} facts. Lower the edits, or take "
            "more facts."
        )
        return None
    return config


def _fitting(usual: Any, facts: int) -> Any:
    """The usual settings cut to the facts that there are."""
    marks = tuple(sorted({mark for mark in usual.marks if mark < facts} | {facts}))
    return type(usual).model_construct(**{**dict(usual), "edits": facts, "marks": marks})


def _name() -> str:
    fresh = state.get().settings.setdefault("benchmark.fresh_name", "")
    if not fresh or (work.runs_folder() / fresh).exists():
        fresh = state.get().settings["benchmark.fresh_name"] = work.next_name()
    name = st.text_input(
        "Name of the run",
        key="benchmark.name",
        persist_state="session",
        placeholder=fresh,
        help="Its folder lies in the cache folder under runs. The name of an unfinished run with these very settings "
        "goes on with it.",
    )
    return name.strip() or fresh


# ---- editors ----------------------------------------------------------------------------------------------------


def _editors(model: "LoadedModel") -> "list[Entrant] | None":
    """The chosen methods with their settings; None after saying what is wrong with some."""
    from nmke.lifelong import Entrant
    from nmke.methods import methods
    from nmke.presets import preset_for

    known = methods()
    names = st.multiselect(
        "Methods",
        list(known),
        default=None if "benchmark.methods" in st.session_state else list(known)[:1],
        format_func=lambda name: known[name].title,
        key="benchmark.methods",
        persist_state="session",
        help="Each method writes the same facts in the same order into a model of its own; they run one after another.",
    )
    if not names:
        st.warning("Choose at least one method.")
        return None
    chosen, sound = [], True
    for name in names:
        status = preset_for(model, name).status
        icon = ":material/verified:" if status == "verified" else ":material/help:"
        with st.expander(f"{known[name].title}: preset {status}", icon=icon):
            preset = choose_preset(model, name, "benchmark")
            key = form_key(model, name, preset, "benchmark.method")
            st.caption(f"{known[name].about} Preset {preset.status}: {preset.figures}")
            look = FormLook(names=CHOICES, n_layers=model.n_layers, advanced=("context_seed",))
            config = config_form(known[name].config_class, preset.config, key, look)
        if config is None:
            st.error(f"The settings of {known[name].title} cannot be used; open them above.")
            sound = False
        else:
            chosen.append(Entrant(labelled(known[name].title, preset.name), name, config))
    return chosen if sound else None


# ---- start ------------------------------------------------------------------------------------------------------


def _start(
    model: "LoadedModel",
    name: str,
    data: "Data | None",
    entrants: "list[Entrant] | None",
    config: "LifelongConfig | None",
) -> str | None:
    busy = jobs.running(work.PURPOSE)
    ready = data is not None and bool(entrants) and config is not None
    pressed = st.button(
        "Start the run",
        type="primary",
        key="benchmark.start",
        disabled=busy or not ready,
        icon=":material/play_arrow:",
        help="Works in the background: its curves grow on this page, and it can be cancelled and resumed.",
    )
    if busy:
        st.caption("A run is at work; the next one can start when it has ended or is cancelled.")
    if not pressed:
        return None
    assert data is not None and entrants and config is not None
    try:
        work.start(work.check_name(name), model, data, entrants, config)
    except NmkeError as problem:
        frame.show_error(problem)
        return None
    st.session_state.pop("benchmark.form.ability_run_code", None)  # the yes was for this one run
    return name
