"""The Abilities page's form: what to compare, benchmarks, questions, the yes for running code, Start."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboard import abilities_work as work
from dashboard import engine, frame, jobs, state
from dashboard.abilities_tables import ABOUT
from dashboard.widgets import FormLook, config_form
from nmke.ability import TASKS, TITLES, AbilityConfig
from nmke.errors import NmkeError, ResourceError

if TYPE_CHECKING:
    from nmke.loading import LoadedModel

COMPARED = "abilities.compared"
YES = "abilities.yes"
UPLOAD_MB = 200
_LOOK = FormLook(
    hidden=("tasks", "run_code", "limit"),
    advanced=("batch_size", "most_tokens"),
    names={None: "all"},
)
_START_LIMIT = 10


def show(model: "LoadedModel") -> None:
    """Draw the form; a started measurement is in work afterwards."""
    choices = _choices(model)
    tasks = _tasks()
    config = _settings(tasks)
    data, sound = _data()
    agreed = "humaneval" not in tasks or _agree()
    problem = _harness_problem()
    if problem:
        st.error(problem)
    busy = jobs.running(work.PURPOSE)
    ready = config is not None and sound and agreed and not problem
    label = "Measure" if len(choices) == 1 else "Measure and compare"
    if st.button(
        label,
        type="primary",
        key="abilities.start",
        width="stretch",
        disabled=busy or not ready,
        help="Works in the background and can be cancelled. What was measured before is taken from the cache.",
    ):
        assert config is not None
        _start(model, choices, config.changed(run_code="humaneval" in tasks), data)
    if config is not None and not busy:
        st.caption(_say_amount(model, config, len(choices)))


def _start(
    model: "LoadedModel", choices: Sequence[work.Choice], config: AbilityConfig, data: Path | None
) -> None:
    mine = state.get()
    try:
        work.results(model)  # takes in what an earlier run measured before its list is replaced
        mine.settings["abilities.watched"] = work.start(model, choices, config, data)
    except NmkeError as problem:
        frame.show_error(problem)
        return
    st.session_state.pop(YES, None)  # the yes was for this one run
    st.rerun()


# ---- what to compare --------------------------------------------------------------------------------------------


def _choices(model: "LoadedModel") -> list[work.Choice]:
    """The states to measure, the model as loaded first."""
    offered = {choice.key: choice for choice in _offered(model)}
    if COMPARED in st.session_state:
        # an edit that was undone, or a bundle of another model, is no longer offered
        st.session_state[COMPARED] = [key for key in st.session_state[COMPARED] if key in offered]
    wish = state.get().settings.pop("abilities.wish", None)
    if wish in offered:
        st.session_state[COMPARED] = [*st.session_state.get(COMPARED, []), wish]
    elif COMPARED not in st.session_state:
        st.session_state[COMPARED] = [key for key in offered if key.startswith("session:")]
    keys = st.multiselect(
        "Compare the model as loaded with",
        list(offered),
        format_func=lambda key: offered[key].label,
        key=COMPARED,
        persist_state="session",
        placeholder="Nothing: measure it alone" if offered else "Nothing to compare yet",
        help="This tab's edits, edits saved on disk, and neurons that were switched off on the Ablation page; "
        "here they are set to zero, also where that ablation held them at their mean.",
    )
    with st.popover("Add from disk", icon=":material/folder_open:", help="Compare what was saved elsewhere."):
        edits, neurons, report = st.tabs(["Edits", "Neurons", "Report"])
        with edits:
            _add_bundle(model)
        with neurons:
            _add_neurons(model)
        with report:
            _open_report(model)
    if not offered:
        st.caption("There are no edits yet: apply one on the Edit page, or add saved ones here.")
    return [work.loaded(), *(offered[key] for key in keys)]


def _offered(model: "LoadedModel") -> list[work.Choice]:
    session = engine.current_session()
    now = work.of_session(session) if session is not None else None
    added: list[work.Choice] = _added(model)
    return [*([now] if now is not None else []), *added, *work.neuron_choices(model)]


def _added(model: "LoadedModel") -> list[work.Choice]:
    """Saved edits that were added for this model in this tab."""
    found: list[work.Choice] = state.get().settings.setdefault(f"abilities.added.{model.weight_hash}", [])
    return found


def _add_bundle(model: "LoadedModel") -> None:
    path = st.text_input(
        "Folder or zip file",
        key="abilities.bundle",
        placeholder="/path/to/edits",
        help="A folder or zip file that edits were saved to, or the folder of a lifelong run (of which each entrant is "
        "then offered), on the machine this page runs on.",
    )
    data = st.file_uploader(
        "or a zip file of your own",
        type="zip",
        key="abilities.upload",
        max_upload_size=UPLOAD_MB,
        help="Saved on the Edit page. Edits made for another model are refused.",
    )
    if not st.button("Add", key="abilities.add", type="primary"):
        return
    if not path.strip() and data is None:
        st.info("Write a path or choose a file first.")
        return
    with frame.guard("Reading the edits"):
        if path.strip():
            choices = work.read_choices(model, path.strip())
        else:
            assert data is not None
            choices = [work.from_zip(model, data.getvalue(), Path(data.name).stem)]
        _offer(model, choices)


def _offer(model: "LoadedModel", choices: Sequence[work.Choice]) -> None:
    """Offer what was read, and choose the first of it."""
    added = _added(model)
    known = {choice.key for choice in added}
    added += [choice for choice in choices if choice.key not in known]
    state.get().settings["abilities.wish"] = choices[0].key
    st.rerun()


def _add_neurons(model: "LoadedModel") -> None:
    path = st.text_input(
        "Folder of an ablation, or file of a set",
        key="abilities.neurons",
        placeholder="/path/to/ablation",
        help="What nmke ablate wrote with --out, or a saved set of neurons, on the machine this page runs on. The "
        "neurons are set to zero in the model as loaded, also where the ablation held them at their mean; a random set "
        "beside each is offered too.",
    )
    if not st.button("Add", key="abilities.add_neurons", type="primary"):
        return
    if not path.strip():
        st.info("Write a path first.")
        return
    with frame.guard("Reading the neurons"):
        _offer(model, work.read_neurons(model, path.strip()))


def _open_report(model: "LoadedModel") -> None:
    path = st.text_input(
        "Folder of a report",
        key="abilities.report",
        placeholder="/path/to/report",
        help="What nmke ability wrote with --out, on the machine this page runs on.",
    )
    if not st.button("Open", key="abilities.open", type="primary"):
        return
    if not path.strip():
        st.info("Write the path of a report's folder first.")
        return
    with frame.guard("Opening the report"):
        found = work.open_report(model, path.strip())
        state.get().flash("success", f"Opened: {', '.join(result.title for result in found)}.")
        st.rerun()


# ---- benchmarks -------------------------------------------------------------------------------------------------


def _tasks() -> list[str]:
    opening: dict[str, Any] = {} if "abilities.tasks" in st.session_state else {"default": ["mmlu"]}
    tasks: list[str] = st.multiselect(
        "Benchmarks",
        list(TASKS),
        format_func=lambda task: TITLES[task],
        key="abilities.tasks",
        persist_state="session",
        help=" ".join(f"{TITLES[task]}: {ABOUT[task]}." for task in TASKS),
        **opening,
    )
    if not tasks:
        st.warning("Choose at least one benchmark.")
    return [task for task in TASKS if task in tasks]


def _settings(tasks: Sequence[str]) -> AbilityConfig | None:
    """The settings from the form; None after saying what is wrong with them."""
    field = AbilityConfig.model_fields["limit"]
    key = "abilities.limit"
    opening: dict[str, Any] = {} if key in st.session_state else {"value": _START_LIMIT}
    limit = st.number_input(
        "Questions of each",
        min_value=1,
        step=1,
        key=key,
        persist_state="session",
        placeholder="all",
        help=field.description,
        **opening,
    )
    with st.expander("More settings", icon=":material/tune:"):
        config = config_form(AbilityConfig, AbilityConfig(limit=limit), "abilities.form", _LOOK)
    if config is None:
        st.error("The settings cannot be used; open them above.")
        return None
    if not tasks:
        return None
    return config.changed(tasks=tuple(tasks), limit=limit)


def _data() -> tuple[Path | None, bool]:
    """The folder with questions, and whether it can be used; None: a wheel or the hub."""
    text = st.text_input(
        "Folder with the questions",
        key="abilities.data",
        persist_state="session",
        placeholder="automatic: packages or the hub",
        help="JSON Lines files: mmlu_test.jsonl, gsm8k_test.jsonl, commonsense_qa_dev.jsonl, bbh.jsonl, "
        "humaneval.jsonl. Empty: MMLU and HumanEval come from packages that carry them, the others from the hub.",
    ).strip()
    if not text:
        return None, True
    folder = Path(text)
    try:
        folder = folder.expanduser()
        there = folder.is_dir()
    except (OSError, RuntimeError, ValueError):
        there = False
    if not there:
        st.error(f"There is no folder {folder}. Write its whole path, or leave it empty.")
    return folder, there


def _agree() -> bool:
    """The explicit yes for this one run; what is run and what keeps it in."""
    from nmke.ability import find_isolation

    isolation = find_isolation()
    if not isolation.allowed:
        st.error(f"HumanEval cannot be measured here. {isolation.sentence} Leave it out.")
        return False
    st.warning(
        "HumanEval **runs program code that the model writes** on this machine, once per question and state. "
        f"{isolation.sentence}"
    )
    yes = st.checkbox(
        "Yes, run the model's code in this run",
        key=YES,
        help="Asked again for every run. Without it HumanEval is not measured.",
    )
    if not yes:
        st.caption("Tick the box to start, or leave HumanEval out.")
    return bool(yes)


def _harness_problem() -> str:
    """What is wrong with lm-evaluation-harness here, in one sentence; empty when it can be used."""
    from nmke.ability import harness_version

    try:
        harness_version()
    except ResourceError as problem:
        return str(problem)
    return ""


def _say_amount(model: "LoadedModel", config: AbilityConfig, states: int) -> str:
    asked = work.questions_asked(config)
    each = ", ".join(f"{count:,} of {TITLES[task]}" for task, count in asked.items())
    times = f", for each of {states} states of the model" if states > 1 else ""
    seconds = work.expected_seconds(work.results(model), config, states)
    if seconds is None:
        pace = "How long that takes is shown once it runs"
    else:
        pace = f"About {jobs.say_seconds(seconds)} at the pace measured here"
    return f"Questions: {each}{times}. {pace}; answers in the cache cost nothing."
