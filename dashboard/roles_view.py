"""The Roles page: roles per layer, overlaps of tasks, the strongest of each role, the rule's effect, files."""

from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from dashboard import charts, downloads, frame, jobs, roles_charts, roles_settings, roles_strongest, state
from dashboard import roles_work as work

if TYPE_CHECKING:
    from nmke.loading import LoadedModel
    from nmke.roles import Roles, RolesConfig


def show(model: "LoadedModel") -> None:
    """The whole page, once a model is there."""
    roles_settings.take_result()
    with st.container(horizontal=True, gap="medium"):
        with st.container(width=232):
            asked, rule = roles_settings.show(model)
        with st.container(width="stretch"):
            found: work.Found | None = state.get().settings.get(roles_settings.FOUND)
            if found is None or found.asked.weight_hash != model.weight_hash:
                _invite(asked)
                return
            _say_stale(found, asked)
            roles = None
            if rule is not None:
                with frame.guard("Telling the roles apart"):
                    roles = _roles(found, rule)
            if roles is not None:
                _results(model, found, roles)


def _invite(asked: work.Asked | None) -> None:
    frame.progress_here(roles_settings.PURPOSE)
    if jobs.running(roles_settings.PURPOSE):
        st.info("The questions are being read; the roles appear here when that is done.")
    elif asked is not None:
        st.info(
            "Nothing is scored yet. Press “Find the roles”: every neuron is then scored on every question, and the "
            "counts per role and layer appear here. The rule's sliders re-assign at once, without the model. MPC is "
            "the fastest score; LPS, the paper's, takes some minutes."
        )


def _say_stale(found: work.Found, asked: work.Asked | None) -> None:
    frame.progress_here(roles_settings.PURPOSE)
    reasons = work.stale_reasons(found.asked, asked) if asked is not None else []
    if reasons and not jobs.running(roles_settings.PURPOSE):
        text = "; ".join(reasons)
        st.warning(f"{text[:1].upper()}{text[1:]}. Press “Find the roles” to score again.")


def _roles(found: work.Found, rule: "RolesConfig") -> "Roles":
    """The roles by these scores and this rule."""
    from nmke.roles import assign_roles
    from nmke.roles.config import SCORED

    config = rule.model_copy(update={name: getattr(found.scores.config, name) for name in SCORED})
    if work.draws(found.scores, config.resamples) > work.QUICK_DRAWS:
        most = max(work.QUICK_DRAWS // work.draws(found.scores, 1), 0)
        st.caption(
            f"With so many neurons the questions are drawn anew {most} times instead of {config.resamples}, so that a "
            "slider answers at once; the command line takes any number."
        )
        config = config.model_copy(update={"resamples": most})
    mine = state.get()
    roles = mine.kept.get("roles.assigned", (found.asked, config), lambda: assign_roles(found.scores, config))
    mine.settings[work.ASSIGNED] = roles
    return roles


def _results(model: "LoadedModel", found: work.Found, roles: "Roles") -> None:
    shown = (found.asked, roles.config)
    _legend(roles)
    with st.container(horizontal=True, gap="medium"):
        with st.container(width=395), frame.guard("Drawing the layers"):
            _layers(roles, shown)
        with st.container(width=395), frame.guard("Drawing the overlaps"):
            _overlaps(roles, shown)
    st.caption(f"**{work.say_stability(roles)}** {work.say_origin(found, roles)}")
    strongest, rule, tables, how = st.tabs(
        ["Strongest neurons", "Effect of the rule", "Counts and files", "How it is computed"],
        key="roles.tabs",
    )
    with strongest, frame.guard("Listing the strongest neurons"):
        roles_strongest.show(model, found, roles)
    with rule, frame.guard("Drawing the rule's effect"):
        _rule_effect(found, roles)
    with tables, frame.guard("Making the tables"):
        _tables(roles)
    with how, frame.guard("Saying how it is computed"):
        _how(found, roles)


def _legend(roles: "Roles") -> None:
    """The five roles, their colours, and how many neurons each has, with what resampling says."""
    table = work.say_counts(roles)
    square = "display:inline-block;width:0.8em;height:0.8em;border-radius:2px;margin-right:0.4em"
    chips = []
    for row in table.to_dict("records"):
        interval = (
            f" <span style='opacity:0.65'>({row['from']:,} to {row['to']:,})</span>" if "from" in row else ""
        )
        chips.append(
            f"<span style='white-space:nowrap'><span style='{square};background:"
            f"{roles_charts.ROLE_COLOURS[row['role']]}'></span>{row['role']} <b>{row['neurons']:,}</b>{interval}</span>"
        )
    st.html(
        f"<div style='display:flex;flex-wrap:wrap;gap:0.2em 1.4em;font-size:0.9rem'>{''.join(chips)}</div>",
        width="stretch",
    )


def _layers(roles: "Roles", shown: object) -> None:
    totals = roles.totals()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("**Roles per layer**")
        whole = st.toggle(
            "with inactive",
            key="roles.whole",
            persist_state="session",
            help=f"{totals['inactive']:,} neurons are active in no task; with them the bars have one length.",
        )
    counts = roles.stability.layers if roles.stability is not None else roles.counts()
    figure = state.get().kept.figure(
        "roles.stacked", (shown, whole), lambda: roles_charts.stacked(counts, whole=whole)
    )
    st.plotly_chart(charts.drawn(figure), key="roles.stacked", config=charts.CONFIG, alt="Roles per layer")
    downloads.caption(
        "Each bar is a layer, its parts the neurons of each role. A layer unlike its neighbours, or one where task "
        "neurons outnumber general ones, would be surprising.",
        figure,
        "roles-layers",
        key="roles.file.stacked",
    )


def _overlaps(roles: "Roles", shown: object) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("**Which tasks share neurons**")
        log = st.toggle(
            "log scale",
            key="roles.log",
            persist_state="session",
            help="Makes rare combinations visible beside the commonest one; bars then no longer compare by length.",
        )
    titles = work.titles_of(roles.tasks)
    table = state.get().kept.get("roles.overlaps", shown, roles.overlaps)
    if not (table["tasks"].map(len) > 0).any():
        st.info("By this rule no neuron is active in any task. Move the rule's sliders down.")
        return
    figure = state.get().kept.figure(
        "roles.upset",
        (shown, log),
        lambda: roles_charts.upset(table, roles.tasks, titles, log=log),
    )
    st.plotly_chart(charts.drawn(figure), key="roles.upset", config=charts.CONFIG, alt="Overlaps of tasks")
    downloads.caption(
        "Each bar counts the neurons active in exactly the tasks dotted below; whiskers: 95% by resampling the "
        "questions. Two tasks of different domains sharing more than two of one domain would be surprising.",
        figure,
        "roles-overlaps",
        key="roles.file.upset",
    )


# ---- the rule ------------------------------------------------------------------------------------------------------

_SWEEPS = {
    "task_share": ("share of questions s", tuple(round(0.05 * step, 2) for step in range(1, 21))),
    "top_share": ("top share q", (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)),
    "level": ("level a", (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)),
}


def _rule_effect(found: work.Found, roles: "Roles") -> None:
    from nmke.roles import sweep_rule

    settings = ["level"] if roles.config.rule == "sign test" else ["task_share", "top_share"]
    setting = settings[0]
    if len(settings) > 1:
        picked = st.segmented_control(
            "Setting to move",
            settings,
            key="roles.sweep",
            default=None if "roles.sweep" in st.session_state else settings[0],
            required=True,
            persist_state="session",
            format_func=lambda name: _SWEEPS[name][0],
            label_visibility="collapsed",
        )
        setting = picked or settings[0]
    title, values = _SWEEPS[setting]
    now = getattr(roles.config, setting)
    tried = sorted({*values, now})
    key = (found.asked, roles.config, setting)
    figure = state.get().kept.figure(
        "roles.sweep",
        key,
        lambda: roles_charts.sweep(
            sweep_rule(found.scores, roles.config, setting, tried),
            title=title,
            now=now,
            log=setting == "level",
        ),
    )
    st.plotly_chart(
        charts.drawn(figure), key="roles.sweep.chart", config=charts.CONFIG, alt="Effect of the rule"
    )
    downloads.caption(
        "Neurons per role as this one setting moves, the others as on the left; the dotted line is the setting in "
        "force. A count that is steep there depends on the rule more than on the model.",
        figure,
        "roles-rule",
        key="roles.file.sweep",
    )


# ---- tables and words -----------------------------------------------------------------------------------------------


def _tables(roles: "Roles") -> None:
    st.dataframe(
        work.say_counts(roles),
        hide_index=True,
        key="roles.counts",
        column_config={
            "share": st.column_config.NumberColumn(format="percent"),
            "shift": st.column_config.NumberColumn(
                help="Mean count of the drawn questions minus the count: how noise moves it."
            ),
            "same neurons": st.column_config.NumberColumn(
                format="%.2f",
                help="Mean overlap (intersection over union) of the role's neurons with those of drawn questions.",
            ),
        },
    )
    st.caption(
        "From and to: 95% interval by resampling the questions. Same neurons: how much of a role stays the same set; a "
        "count can be steady while its neurons change."
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("**Every neuron**")
        downloads.table_files(roles.frame, "roles", key="roles.file.roles")
        st.markdown("**Counts per layer**")
        downloads.table_files(lambda: _layer_table(roles), "role-counts", key="roles.file.counts")
        st.markdown("**Overlaps**")
        downloads.table_files(lambda: _overlap_table(roles), "task-overlaps", key="roles.file.overlaps")


def _layer_table(roles: "Roles") -> pd.DataFrame:
    return roles.stability.layers if roles.stability is not None else roles.counts()


def _overlap_table(roles: "Roles") -> pd.DataFrame:
    table = roles.overlaps()
    return table.assign(tasks=table["tasks"].map(", ".join))


def _how(found: work.Found, roles: "Roles") -> None:
    from nmke.roles import ROLE_FORMULA, RULE_FORMULAS

    config = roles.config
    if config.rule == "top share":
        values = f"q = {config.top_share:g}, s = {config.task_share:g}"
    else:
        values = f"a = {config.level:g}, correction for many tests: {config.correction}"
    followed = work.followed_tokens(found.scores) if config.attribution.kind != "mpc" else ""
    domains = ", ".join(
        f"{title} ({roles.domains[task]})" for task, title in work.titles_of(roles.tasks).items()
    )
    lines = [
        f"**Rule.** {RULE_FORMULAS[config.rule]} Here {values}.",
        f"**Roles.** {ROLE_FORMULA}",
        f"**Tasks (domains).** {domains}.",
        f"**Score.** {work.say_origin(found, roles)}"
        + (f" Tokens followed most: {followed}." if followed else ""),
        "**Kept.** Of each question every neuron's rank in its layer and how many lie above the mean; both rules "
        "follow from these exactly, so that sliders need no model.",
        f"**Intervals.** Each task's questions drawn anew with replacement {config.resamples} times, seed "
        f"{config.seed}; interval: the count plus the 2.5% and 97.5% quantiles of the drawn counts about their mean. "
        "The shift between that mean and the count is given in the table: noise makes few neurons pass in all tasks.",
        "**Default.** The top tenth on at least half of the questions, the right answer followed: on the default model "
        "it keeps 86% (LPS) and 91% (MPC) of the neurons with a role when the questions are drawn anew; following the "
        "model's own next token keeps 62%. What it keeps here is said under the charts.",
    ]
    st.markdown("\n\n".join(line.replace("$", "\\$") for line in lines))
