"""The Neurons page's left column: what is scored, how neurons are selected, and the job that scores them."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboard import charts, engine, frame, jobs, state
from dashboard.layers_field import choose_layers
from dashboard.neurons_data import Found, Origin, guess_seconds, say_estimate
from dashboard.selection import layers_text
from dashboard.widgets import FormLook, config_form, reset_form
from nmke.errors import NmkeError
from nmke.facts import Fact
from nmke.progress import Progress

if TYPE_CHECKING:
    from nmke.loading import LoadedModel
    from nmke.masks import MaskConfig

PURPOSE = "attribution"
FIRST_FACTS = 6

#: What the choices of attribution and mask settings are called on the screen.
CHOICES: Mapping[str, str] = {
    "lps": "LPS: log-probability",
    "psa": "PSA: probability",
    "mpc": "MPC: activation, fastest",
    "top1": "the model's own top 1",
    "new": "the new answer",
    "true": "the true answer",
    "last": "last real token",
    "padded": "padded, as published",
    "all": "all of them",
    "score": "break by mean score",
    "union": "union of both kinds",
    "overlap": "only neurons of both kinds",
    "non_overlap": "only neurons of one kind",
    "general": "general neurons",
    "specific": "specific neurons",
    "soft": "soft: scaled by score",
}
MASK_LOOK = FormLook(
    stops={"alpha": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)},
    sliders={"general_gamma": (0.1, 6.0, 0.1), "specific_gamma": (0.1, 6.0, 0.1)},
    ranges={
        ("general_low", "general_high"): ("General: lowest and highest share", 0.0, 1.0, 0.01),
        ("specific_low", "specific_high"): ("Specific: lowest and highest share", 0.0, 1.0, 0.01),
    },
    names=CHOICES,
)
SCORE_LOOK = FormLook(names=CHOICES, advanced=("prob_floor", "read_position", "memory_mib"))


def score_settings(model: "LoadedModel", facts: tuple[Fact, ...]) -> Origin | None:
    """Controls of the attribution; what they ask for, or None after saying what is wrong."""
    from nmke.attribution import AttributionConfig

    seen = state.get().settings.get("neurons.found") is not None
    button = (
        st.container()
    )  # stands above the settings it depends on, so that it is always on the first screen
    with st.expander("What is scored", expanded=not seen, icon=":material/search:"):
        chosen = _choose_facts(facts)
        config = config_form(AttributionConfig, AttributionConfig(), "neurons.score", SCORE_LOOK)
        edited = layers_text(edited_layers(model))
        layers = choose_layers(
            model,
            "neurons",
            edited,
            f"A range such as 4-8, a list such as 4, 6, or: all. The layers this model is edited in are {edited}.",
        )
        contexts = st.checkbox(
            "Five contexts before each prompt",
            key="neurons.contexts",
            persist_state="session",
            help="The edit scores each prompt also behind five short generated texts; without them it is six "
            "times faster.",
        )
    asked = None
    if config is not None and layers is not None and chosen:
        key = engine.edit_state_key()
        session = engine.current_session()
        version = 0 if session is None else session.version
        asked = Origin(model.weight_hash, key, version, chosen, layers, contexts, config)
    with button:
        _find_button(model, asked)
    return asked


def _choose_facts(facts: tuple[Fact, ...]) -> tuple[Fact, ...]:
    version = state.get().facts_version
    key = f"neurons.facts.{version}"
    chosen = st.multiselect(
        "Facts",
        range(len(facts)),
        default=None if key in st.session_state else list(range(min(FIRST_FACTS, len(facts)))),
        format_func=lambda index: f"{facts[index].subject}: {charts.shorten(facts[index].prompt, 40)}",
        key=key,
        persist_state="session",
        help="Each fact's prompt becomes one row of scores.",
    )
    if not chosen:
        st.warning("Choose at least one fact.")
    return tuple(facts[index] for index in chosen)


def edited_layers(model: "LoadedModel") -> tuple[int, ...]:
    """The layers the model's preset edits: where scores matter first."""
    from nmke.presets import preset_for

    preset: Any = preset_for(model, "nmke").config
    return tuple(preset.layers)


def _find_button(model: "LoadedModel", asked: Origin | None) -> None:
    busy = jobs.running(PURPOSE)
    if st.button(
        "Find the neurons",
        type="primary",
        key="neurons.find",
        disabled=asked is None or busy,
        width="stretch",
    ):
        assert asked is not None
        try:
            start(asked)
        except NmkeError as problem:
            frame.show_error(problem)
        else:
            st.rerun()
    if asked is not None and not busy:
        seconds, measured = _estimate(model, asked)
        prompts = len(asked.facts) * (6 if asked.contexts else 1)
        st.caption(
            f"{prompts} prompts × {len(asked.layers)} layers: {say_estimate(seconds)}"
            f"{' (measured here)' if measured else ''}."
        )


def _estimate(model: "LoadedModel", asked: Origin) -> tuple[float, bool]:
    """Seconds, and whether they come from an attribution measured in this session."""
    prompts = len(asked.facts) * (6 if asked.contexts else 1)
    guess = guess_seconds(
        asked.config.kind, prompts, len(asked.layers), model.d_model, model.d_mlp, model.d_vocab, model.device
    )
    found: Found | None = state.get().settings.get("neurons.found")
    if found is None or found.origin.weight_hash != model.weight_hash or asked.config.kind == "mpc":
        return guess, False
    then = found.origin
    if then.config.kind == "mpc":
        return guess, False
    before = guess_seconds(
        then.config.kind,
        len(found.attribution.prompts),
        len(then.layers),
        model.d_model,
        model.d_mlp,
        model.d_vocab,
        model.device,
    )
    return guess * found.seconds / before, True


def start(asked: Origin) -> None:
    """Attribute on the model as this browser session has edited it, as a job."""
    model, session = engine.current_model(), engine.current_session()
    assert model is not None and session is not None

    def work(progress: Progress) -> Found:
        from nmke.attribution import attribute, prompts_of
        from nmke.contexts import context_templates

        started = time.perf_counter()
        progress.update("reading the prompts", 0, None)
        templates: Sequence[str] = ("{}",)
        if asked.contexts:
            templates = context_templates(model)
        prompts = prompts_of(asked.facts, templates, asked.config.target)
        with session.active():
            attribution = attribute(model, prompts, asked.layers, asked.config, progress)
        return Found(asked, attribution, time.perf_counter() - started)

    jobs.start(PURPOSE, f"Finding the neurons of {len(asked.facts)} facts", work)


def take_result() -> None:
    outcome = jobs.take(PURPOSE)
    if outcome is None:
        return
    if outcome.state == jobs.JobState.DONE:
        state.get().settings["neurons.found"] = outcome.value
    else:
        state.get().flash("info" if outcome.state == jobs.JobState.CANCELLED else "error", outcome.error)
        st.rerun()


def mask_settings() -> "MaskConfig | None":
    from nmke.masks import MaskConfig

    with st.container(gap="small"):
        config = config_form(MaskConfig, MaskConfig(), "neurons.mask", MASK_LOOK)
        st.button(
            "Authors' values",
            on_click=reset_form,
            args=(MaskConfig(), "neurons.mask", MASK_LOOK),
            key="neurons.reset",
            type="tertiary",
            icon=":material/restart_alt:",
        )
    return config
