"""Which model, and will it work here?"""

import streamlit as st

from dashboard import engine, frame, jobs, libraries, model_html, preview, state
from nmke.errors import NmkeError

DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def choose() -> engine.ModelKey | None:
    """The controls that name a model; None while nothing is named."""
    known = {model.name: model for model in engine.known_models()}
    typed = st.session_state.get("model.spec")

    def describe(name: str) -> str:
        if name not in known:
            return name
        where = "ready in the cache" if known[name].cached else "will be fetched once"
        return f"{known[name].title} · {frame.say_bytes(known[name].size_bytes)} · {where}"

    spec = st.selectbox(
        "Model",
        [*known, *([typed] if typed and typed not in known else [])],
        format_func=describe,
        accept_new_options=True,
        key="model.spec",
        persist_state="session",
        placeholder="Choose one, or type a hub id or a path",
        help="A model of the list, or type a Hugging Face id, a folder with safetensors, or the path of a .gguf "
        "file. Files with pickled weights are never read.",
    )
    left, right = st.columns(2)
    device = left.selectbox(
        "Device",
        DEVICES,
        key="model.device",
        persist_state="session",
        help="Where the model computes. auto takes CUDA, then Apple's MPS, then the CPU.",
    )
    dtype = right.selectbox(
        "Number format",
        DTYPES,
        key="model.dtype",
        persist_state="session",
        help="How the weights are kept. auto takes float32 on a CPU and the model's own format elsewhere. "
        "Edits are computed in float32 whatever this says.",
    )
    trust = st.toggle(
        "Trust the model's own code",
        key="model.trust",
        help="Off by default, and on for one load only (trust_remote_code). Some hub models bring Python files "
        "that define their architecture; turning this on runs them.",
    )
    if trust:
        st.warning(
            "Loading will run Python code written by the model's publisher on this machine, with your rights. "
            "Turn this on only for a publisher you trust."
        )
    spec = (spec or "").strip()
    return engine.ModelKey(spec, device, dtype, trust) if spec else None


def show_memory(key: engine.ModelKey) -> bool:
    """Memory needed against free; False when it cannot fit."""
    if not libraries.are_ready():
        wait_for_libraries()
        return True
    try:
        needed = preview.memory_of(key)
    except NmkeError as problem:
        frame.show_error(problem)
        return False
    if isinstance(needed, str):
        st.caption(needed)
        return True
    st.html(model_html.memory_bar(needed))
    if not needed.fits:
        st.error(needed.sentence)
    return needed.fits


@st.fragment(run_every=0.5)
def wait_for_libraries() -> None:
    """The first seconds after the server started: the page is there, the libraries are still read."""
    if libraries.are_ready():
        st.rerun()
    st.caption("Getting the libraries ready; in a few seconds the memory this model needs stands here.")


def show_loader() -> None:
    """Choose, see whether it fits, load."""
    key = choose()
    fits = key is not None and show_memory(key)
    loading = jobs.running("load")
    session = engine.current_session()
    if session is not None and session.version and not loading:
        st.caption("Loading another model ends this session's edits; save them on the Edit page first.")
    label = "Loading ..." if loading else "Load"
    first = engine.current_model() is None
    if st.button(
        label,
        type="primary" if first else "secondary",
        disabled=key is None or not fits or loading,
        key="model.load",
    ):
        assert key is not None
        engine.start_loading(key)
        # the trust was for this one load
        st.session_state.pop("model.trust", None)
        st.rerun()


def show_card() -> None:
    """What is loaded, and whether the engine's mathematics holds for it."""
    model = engine.current_model()
    if model is None and jobs.running("load"):
        st.markdown("**Loading ...**")
        st.caption("The sidebar shows how far it is; meanwhile facts can be entered on the Facts page.")
        return
    if model is None:
        st.markdown("**What you will see here**")
        st.caption(
            "The model's size, where it computes, and five checks that the mathematics of attribution and editing "
            "holds for its architecture. The first load of a known model fetches and converts it once; later "
            "loads take about a second."
        )
        return
    st.subheader(model.name, anchor=False)
    st.html(
        model_html.card(
            [
                ("Layers × neurons", f"{model.n_layers} × {model.d_mlp:,}"),
                ("Parameters", frame.say_count(model.n_parameters)),
                ("Weights", frame.say_bytes(model.memory.weights)),
                ("Device", model.device),
                ("Number format", model.dtype),
                ("Vocabulary", f"{model.d_vocab:,} tokens"),
                ("Context", f"{model.context_length:,} tokens"),
            ]
        )
    )
    left, right = st.columns(2)
    if left.button("Next: enter facts", type="primary", width="stretch", key="model.next"):
        st.switch_page(frame.PAGES["facts"][0])
    if right.button("Unload", width="stretch", key="model.unload", help="Frees the model and ends its edits"):
        shared = engine.shared_with()
        engine.unload()
        if shared:
            state.get().flash(
                "info", "Unloaded here; its memory is freed when the other open tabs unload it too."
            )
        st.rerun()


def show_checks() -> None:
    """The conformance checks as a row of ticks, each with what was measured."""
    model = engine.current_model()
    if model is None:
        return
    conformance = model.conformance
    if conformance.passed:
        st.caption(conformance.sentence)
    else:
        st.error(conformance.sentence)
    ticks = st.columns(len(conformance.checks), border=True)
    for column, check in zip(ticks, conformance.checks, strict=True):
        sign = ":green[:material/check_circle:]" if check.passed else ":red[:material/cancel:]"
        column.markdown(f"{sign} :small[{check.name}]", help=check.detail)


frame.question("Which model, and will it work here?")
chooser, card = st.columns([5, 6], gap="large")
with chooser, frame.guard("Choosing a model"):
    show_loader()
with card, frame.guard("Showing the model"), st.container(border=True):
    show_card()
with frame.guard("Showing the checks"):
    show_checks()
