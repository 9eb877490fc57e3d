"""Roles: every rule against its definition written out by hand, on the tiny models."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nmke.attribution import AttributionConfig, Prompt, attribute
from nmke.errors import Cancelled, ConfigError, ModelError, QuestionError, ResourceError
from nmke.loading import LoadedModel
from nmke.progress import Progress
from nmke.questions import Question, QuestionSet, prompt_of
from nmke.roles import (
    ROLES,
    QuestionScores,
    Roles,
    RolesConfig,
    assign_roles,
    load_roles,
    load_scores,
    promoted_tokens,
    save_roles,
    save_scores,
    score_questions,
    scores_folder,
    strongest,
    sweep_rule,
)
from nmke.roles.resampling import draw_weights
from nmke.roles.rules import (
    active_in,
    hit_counts,
    is_active,
    least_hits,
    patterns_of,
    roles_of,
    tail_probabilities,
)
from nmke.roles.scores import count_above, rank_scores

TASKS = ("high_school_biology", "college_biology", "high_school_chemistry", "college_chemistry")
MPC = RolesConfig(attribution=AttributionConfig(kind="mpc"), form="cloze", resamples=50)


def questions(each: int = 6, tasks: tuple[str, ...] = TASKS) -> QuestionSet:
    """Short questions that differ."""
    words = ("cat", "river", "city", "boat", "dog", "language", "France", "London")
    made = [
        Question(f"{task}/{n}", task, f"Is the {words[n % 8]} {task[-7:]} {n}?", ("yes", "no"), n % 2)
        for task in tasks
        for n in range(each)
    ]
    return QuestionSet(tuple(made), "Written for this test.")


def made_scores(
    seed: int = 0, tasks: tuple[str, ...] = TASKS, each: int = 20, d_mlp: int = 40
) -> QuestionScores:
    """Scores with structure: some neurons high everywhere, some in one domain, some in one task."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [each + place for place in range(len(tasks))]
    ranks, above, strength, activation = {}, {}, {}, {}
    domains = {task: task.rpartition("_")[2] for task in tasks}
    for layer in (1, 3):
        parts = []
        for place, (task, n) in enumerate(zip(tasks, sizes, strict=True)):
            lift = torch.zeros(d_mlp)
            lift[:6] = 2.0
            lift[6:10] = 2.0 if domains[task] == domains[tasks[0]] else 0.0
            lift[10 + place] = 2.0
            lift[16:19] = 2.0 if place in (0, len(tasks) - 1) else 0.0
            parts.append(torch.randn(n, d_mlp, generator=generator) + lift)
        score = torch.cat(parts)
        ranks[layer], above[layer] = rank_scores(score).to(torch.int16), count_above(score).int()
        strength[layer] = torch.stack([part.mean(0) for part in parts])
        activation[layer] = strength[layer] - 0.5
    return QuestionScores(
        model_name="made",
        model_hash="0" * 64,
        edits="",
        tasks=tasks,
        domains=domains,
        layers=(1, 3),
        question_ids=tuple(str(n) for n in range(sum(sizes))),
        question_tasks=torch.repeat_interleave(torch.arange(len(tasks)), torch.tensor(sizes)),
        targets=("",) * sum(sizes),
        ranks=ranks,
        above=above,
        strength=strength,
        activation=activation,
        config=MPC.changed(top_share=0.3, resamples=0),
        source="made",
        sha256="1" * 64,
        seconds=0.0,
    )


# ---- scores -----------------------------------------------------------------------------------------------------


def test_ranks_and_counts_say_of_each_question_who_stands_where() -> None:
    score = torch.tensor([[3.0, -1.0, 2.0, 2.0], [0.0, 0.0, 0.0, 4.0]])
    assert rank_scores(score).tolist() == [[0, 3, 1, 2], [1, 2, 3, 0]]
    assert count_above(score).tolist() == [3, 1]


@pytest.mark.parametrize("kind", ["mpc", "lps", "psa"])
def test_scores_of_questions_are_those_of_attribution_on_the_same_prompts(
    tiny: LoadedModel, cache: Path, kind: Any
) -> None:
    asked = questions(3)
    config = RolesConfig(attribution=AttributionConfig(kind=kind, tolerance=0.0), form="cloze", target="top1")
    scores = score_questions(tiny, asked, [0, 2], config)
    prompts = [Prompt(prompt_of(question, "cloze")) for question in asked.questions]
    plain = attribute(tiny, prompts, [0, 2], config.attribution)
    for layer in (0, 2):
        for task in range(4):
            rows = slice(3 * task, 3 * task + 3)
            torch.testing.assert_close(
                scores.strength[layer][task], plain.scores[layer][rows].mean(0), atol=2e-5, rtol=1e-4
            )
            torch.testing.assert_close(
                scores.activation[layer][task], plain.activations[layer][rows].mean(0), atol=2e-5, rtol=1e-4
            )
        # Ranks may differ where scores are equal but for rounding, so scores are compared in rank order.
        expected = plain.scores[layer].sort(dim=1, descending=True).values
        ranked = torch.empty_like(expected).scatter_(1, scores.ranks[layer].long(), plain.scores[layer])
        torch.testing.assert_close(ranked, expected, atol=2e-5, rtol=1e-4)
        z = (plain.scores[layer] - plain.scores[layer].mean(1, keepdim=True)) > 0
        assert (scores.above[layer] - z.sum(1)).abs().max() <= 1
    followed = ("",) * 12 if kind == "mpc" else plain.target_tokens
    assert scores.targets == tuple(followed)


def test_the_right_answer_can_be_followed_instead_of_the_top_token(llama: LoadedModel, cache: Path) -> None:
    config = RolesConfig(target="answer", form="letters")
    scores = score_questions(llama, questions(2), [1], config)
    first = llama.tokenizer.decode(llama.tokenizer(" A", add_special_tokens=False).input_ids[:1])
    assert scores.targets[0] == first


def test_scoring_twice_gives_the_same_bits_whatever_the_grouping_of_forward_passes(
    llama: LoadedModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = score_questions(llama, questions(), None, MPC), score_questions(llama, questions(), None, MPC)
    assert all(torch.equal(one.ranks[layer], two.ranks[layer]) for layer in one.layers)
    monkeypatch.setattr("nmke.roles.scores.FORWARD", 2)
    monkeypatch.setattr("nmke.roles.scores.TOGETHER", 4)
    three = score_questions(llama, questions(), None, MPC)
    for layer in one.layers:
        torch.testing.assert_close(one.strength[layer], three.strength[layer], atol=1e-5, rtol=1e-4)


def test_one_subject_alone_is_refused(llama: LoadedModel) -> None:
    with pytest.raises(QuestionError, match="at least two subjects"):
        score_questions(llama, questions(2, TASKS[:1]), None, MPC)


def test_a_question_longer_than_the_context_is_refused_by_name(llama: LoadedModel) -> None:
    long = Question("too long", TASKS[1], "word " * 400, ("yes", "no"), 0)
    asked = QuestionSet((*questions(1).questions, long), "test")
    with pytest.raises(QuestionError, match="'too long'"):
        score_questions(llama, asked, None, MPC)


def test_zero_questions_are_refused() -> None:
    with pytest.raises(QuestionError, match="no questions"):
        QuestionSet((), "nothing")


class _Stops(Progress):
    def __init__(self, after: int) -> None:
        self.left, self.seen = after, []

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        self.seen.append((stage, done, total))
        self.left -= 1
        if self.left < 0:
            raise Cancelled


@pytest.mark.parametrize("after", [0, 1, 3, 8])
def test_scoring_can_be_cancelled_at_any_step_and_leaves_the_model_as_it_was(
    llama: LoadedModel, cache: Path, after: int
) -> None:
    before = {name: value.clone() for name, value in llama.bridge.state_dict().items()}
    with pytest.raises(Cancelled):
        score_questions(llama, questions(), None, RolesConfig(form="cloze"), _Stops(after))
    assert all(torch.equal(value, before[name]) for name, value in llama.bridge.state_dict().items())
    assert not llama.bridge.blocks[0].mlp.hook_post.fwd_hooks


def test_progress_is_one_stage_that_rises_to_the_number_of_questions(llama: LoadedModel, cache: Path) -> None:
    watch = _Stops(10**6)
    score_questions(llama, questions(), None, RolesConfig(form="cloze"), watch)
    done = [step for stage, step, _ in watch.seen if stage.startswith("scoring")]
    assert done == sorted(done)
    assert done[-1] == 24
    assert {total for stage, _, total in watch.seen if stage.startswith("scoring")} == {24}


# ---- the rule -----------------------------------------------------------------------------------------------------


def _plain_active(scores: QuestionScores, layer: int, config: RolesConfig) -> list[list[bool]]:
    """The rule by its words, neuron by neuron."""
    ranks, above = scores.ranks[layer].tolist(), scores.above[layer].tolist()
    d_mlp = len(ranks[0])
    found = []
    for task in range(len(scores.tasks)):
        rows = [row for row, of in enumerate(scores.question_tasks.tolist()) if of == task]
        n = len(rows)
        row_of_task = []
        counts = []
        for neuron in range(d_mlp):
            if config.rule == "top share":
                k = sum(ranks[row][neuron] + 1 <= round(config.top_share * d_mlp) for row in rows)
                row_of_task.append(k / n >= config.task_share)
            else:
                counts.append(sum(ranks[row][neuron] < above[row] for row in rows))
        if config.rule == "sign test":
            p = [sum(math.comb(n, j) for j in range(k, n + 1)) / 2**n for k in counts]
            if config.correction == "fdr":
                order = sorted(range(d_mlp), key=lambda i: p[i])
                best = max(
                    (r for r in range(1, d_mlp + 1) if p[order[r - 1]] <= config.level * r / d_mlp), default=0
                )
                limit = p[order[best - 1]] if best else -1.0
            else:
                limit = config.level / (d_mlp if config.correction == "bonferroni" else 1)
            row_of_task = [value <= limit for value in p]
        found.append(row_of_task)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": "top share", "top_share": 0.3, "task_share": 0.5},
        {"rule": "top share", "top_share": 0.2, "task_share": 0.45},
        {"rule": "top share", "top_share": 0.6, "task_share": 1.0},
        {"rule": "sign test", "correction": "none"},
        {"rule": "sign test", "correction": "bonferroni"},
        {"rule": "sign test", "correction": "fdr"},
        {"rule": "sign test", "correction": "fdr", "level": 0.3},
    ],
)
def test_who_is_active_follows_the_rule_as_written(changes: dict[str, Any]) -> None:
    scores = made_scores()
    config = scores.config.changed(**changes)
    for layer in scores.layers:
        active = active_in(hit_counts(scores, layer, config), scores.sizes, config)
        assert active.tolist() == _plain_active(scores, layer, config)
        assert 0 < int(active.sum()) < active.numel()


def test_tail_probabilities_are_those_of_the_binomial_distribution() -> None:
    assert tail_probabilities(4) == (1.0, 15 / 16, 11 / 16, 5 / 16, 1 / 16)
    assert least_hits(4, 1 / 16) == 4
    assert least_hits(4, 0.06) == 5


def test_a_share_of_questions_that_is_a_whole_number_is_met_by_just_so_many() -> None:
    config = MPC.changed(task_share=0.7)
    assert is_active(torch.tensor([[6.0, 7.0]]), 10, config).tolist() == [[False, True]]


def test_roles_follow_from_the_set_of_tasks() -> None:
    wanted = {
        (0, 0, 0, 0): "inactive",
        (1, 0, 0, 0): "task",
        (0, 0, 0, 1): "task",
        (1, 1, 0, 0): "domain",
        (0, 0, 1, 1): "domain",
        (1, 0, 1, 0): "mixed",
        (1, 1, 1, 0): "mixed",
        (1, 1, 1, 1): "general",
    }
    active = torch.tensor([list(bits) for bits in wanted]).bool().T
    codes = roles_of(active, ((0, 1), (2, 3)))
    assert [ROLES[code] for code in codes.tolist()] == list(wanted.values())


def test_a_domain_of_one_task_gives_task_neurons_and_part_of_a_domain_is_mixed() -> None:
    active = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 1, 1]]).bool()
    codes = roles_of(active, ((0, 1, 2), (3,)))
    assert [ROLES[code] for code in codes.tolist()] == ["task", "mixed", "task", "general"]


def test_where_all_tasks_are_of_one_domain_being_active_in_all_is_general() -> None:
    assert ROLES[int(roles_of(torch.ones(2, 1).bool(), ((0, 1),))[0])] == "general"


def test_counts_and_roles_agree_with_a_plain_count() -> None:
    roles = assign_roles(made_scores())
    plain = Counter(ROLES[code] for layer in roles.layers for code in roles.codes[layer].tolist())
    assert roles.totals() == {role: plain[role] for role in ROLES}
    assert roles.totals()["general"] >= 8
    per_layer = roles.counts()
    assert per_layer["count"].sum() == 80
    assert set(per_layer["layer"]) == {1, 3}


def test_settings_that_would_change_the_scores_are_refused_when_re_assigning() -> None:
    scores = made_scores()
    with pytest.raises(ConfigError, match="target"):
        assign_roles(scores, scores.config.changed(target="top1"))


@pytest.mark.parametrize(
    ("setting", "values", "rule"),
    [
        ("task_share", (0.2, 0.5, 0.9), "top share"),
        ("top_share", (0.1, 0.3, 0.6), "top share"),
        ("level", (0.001, 0.05, 0.3), "sign test"),
    ],
)
def test_the_sweep_gives_the_counts_of_assigning_at_each_value(setting: str, values: Any, rule: str) -> None:
    scores = made_scores()
    config = scores.config.changed(rule=rule)
    swept = sweep_rule(scores, config, setting, values)
    for value in values:
        totals = assign_roles(scores, config.changed(**{setting: value})).totals()
        rows = swept[swept["value"] == value]
        assert dict(zip(rows["role"], rows["count"], strict=True)) == totals


# ---- resampling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["top share", "sign test"])
def test_resampling_in_one_product_gives_what_drawing_each_question_gives(rule: Any) -> None:
    scores = made_scores()
    config = scores.config.changed(rule=rule, resamples=40, seed=3)
    roles = assign_roles(scores, config)
    assert roles.stability is not None
    weights = draw_weights(scores.sizes, 40, 3)
    members = ((0, 1), (2, 3))
    drawn, kept, overlap, patterns = [], [], [], []
    for draw in range(40):
        counts, same, sets = Counter(), 0, {role: [0, 0] for role in ROLES}
        combination = Counter()
        for layer in scores.layers:
            rows = [
                row
                for task, n in enumerate(scores.sizes)
                for place in range(n)
                for row in [scores.rows(task).start + place] * int(weights[task][draw, place])
            ]
            again = replace(
                scores,
                ranks={layer: scores.ranks[layer][rows]},
                above={layer: scores.above[layer][rows]},
            )
            active = active_in(hit_counts(again, layer, config), scores.sizes, config)
            codes, usual = roles_of(active, members).tolist(), roles.codes[layer].tolist()
            combination.update(patterns_of(active).tolist())
            counts.update(ROLES[code] for code in codes)
            same += sum(a == b for a, b in zip(codes, usual, strict=True))
            for code, role in enumerate(ROLES):
                sets[role][0] += sum(a == code and b == code for a, b in zip(codes, usual, strict=True))
                sets[role][1] += sum(a == code or b == code for a, b in zip(codes, usual, strict=True))
        drawn.append([counts[role] for role in ROLES])
        kept.append(same / 80)
        overlap.append([both / either if either else 1.0 for both, either in sets.values()])
        patterns.append(combination)
    table = roles.stability.roles
    np.testing.assert_allclose(table["shift"], np.mean(drawn, 0) - table["count"])
    np.testing.assert_allclose(table["jaccard"], np.mean(overlap, 0))
    spread = np.quantile(np.array(drawn) - np.mean(drawn, 0), (0.025, 0.975), axis=0)
    np.testing.assert_allclose(table["low"], np.maximum(table["count"] + np.minimum(spread[0], 0), 0))
    np.testing.assert_allclose(table["high"], table["count"] + np.maximum(spread[1], 0))
    assert roles.stability.kept[0] == pytest.approx(np.mean(kept))
    for row in roles.stability.overlaps.itertuples():
        values = np.array([combination[row.pattern] for combination in patterns])
        assert row.high == pytest.approx(row.count + max(np.quantile(values - values.mean(), 0.975), 0))


def test_each_drawing_holds_as_many_questions_as_the_task() -> None:
    weights = draw_weights([5, 9], 30, 0)
    assert [set(weight.sum(1).tolist()) for weight in weights] == [{5.0}, {9.0}]
    assert torch.equal(draw_weights([5, 9], 30, 0)[1], weights[1])
    assert not torch.equal(draw_weights([5, 9], 30, 1)[1], weights[1])


def test_the_size_of_the_blocks_does_not_change_what_resampling_says(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = made_scores()
    config = scores.config.changed(resamples=30)
    whole = assign_roles(scores, config)
    monkeypatch.setattr("nmke.roles.resampling._BLOCK", 1)
    pieces = assign_roles(scores, config)
    assert whole.stability is not None and pieces.stability is not None
    for name in ("roles", "layers", "overlaps"):
        assert getattr(whole.stability, name).equals(getattr(pieces.stability, name))


def test_intervals_hold_the_counts_and_more_questions_make_them_narrower() -> None:
    def width(each: int) -> float:
        scores = made_scores(each=each)
        roles = assign_roles(scores, scores.config.changed(top_share=0.3, task_share=0.4, resamples=200))
        assert roles.stability is not None
        table = roles.stability.roles
        assert ((table["low"] <= table["count"]) & (table["count"] <= table["high"])).all()
        return float((table["high"] - table["low"]).sum())

    assert width(400) < width(20)


def test_resampling_can_be_cancelled() -> None:
    scores = made_scores()
    with pytest.raises(Cancelled):
        assign_roles(scores, scores.config.changed(resamples=20), _Stops(1))


# ---- results ------------------------------------------------------------------------------------------------------


def test_overlaps_count_the_neurons_of_each_combination() -> None:
    roles = assign_roles(made_scores())
    table = roles.overlaps()
    plain = Counter(
        tuple(task for task, on in zip(TASKS, column, strict=True) if on)
        for layer in roles.layers
        for column in roles.active[layer].T.tolist()
    )
    assert dict(zip(table["tasks"], table["count"], strict=True)) == {**plain, (): plain[()]}
    assert table.set_index("tasks")["role"][TASKS] == "general"
    assert table["count"].is_monotonic_decreasing


def test_the_strongest_of_a_role_are_ranked_by_their_mean_score_where_they_are_active() -> None:
    roles = assign_roles(made_scores())
    found = strongest(roles, "domain", 3)
    plain = []
    for layer in roles.layers:
        for neuron, code in enumerate(roles.codes[layer].tolist()):
            if ROLES[code] == "domain":
                on = [task for task in range(4) if roles.active[layer][task, neuron]]
                mean = sum(float(roles.strength[layer][task, neuron]) for task in on) / len(on)
                plain.append((mean, layer, neuron))
    best = sorted(plain, reverse=True)[:3]
    assert list(zip(found["layer"], found["neuron"], strict=True)) == [(layer, n) for _, layer, n in best]
    np.testing.assert_allclose(found["strength"], [mean for mean, _, _ in best], rtol=1e-6)
    assert all(set(tasks) in ({TASKS[0], TASKS[1]}, {TASKS[2], TASKS[3]}) for tasks in found["tasks"])


def test_the_strongest_can_be_asked_of_one_task_one_domain_some_layers_or_every_layer() -> None:
    roles = assign_roles(made_scores())
    assert set(strongest(roles, "task", 5, task=TASKS[1])["tasks"]) == {(TASKS[1],)}
    assert all(TASKS[0] in tasks for tasks in strongest(roles, "domain", 5, domain="biology")["tasks"])
    assert set(strongest(roles, "general", 5, layers=[3])["layer"]) == {3}
    assert strongest(roles, "general", 2, per_layer=True)["layer"].tolist() == [1, 1, 3, 3]
    assert len(strongest(roles, "inactive", 4)) == 4
    by_task = strongest(roles, "general", 1, task=TASKS[2])
    layer, neuron = by_task.loc[0, "layer"], by_task.loc[0, "neuron"]
    assert by_task.loc[0, "strength"] == pytest.approx(float(roles.strength[layer][2, neuron]))


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"role": "king"}, "role 'king'"),
        ({"role": "task", "task": "law"}, "task 'law'"),
        ({"role": "task", "domain": "law"}, "domain 'law'"),
        ({"role": "task", "layers": [2]}, "layer 2"),
    ],
)
def test_what_is_not_there_is_named(asked: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        strongest(assign_roles(made_scores()), k=3, **asked)


def test_the_table_holds_one_row_a_neuron() -> None:
    roles = assign_roles(made_scores())
    table = roles.frame()
    assert len(table) == 80
    row = table[(table["layer"] == 3) & (table["neuron"] == 11)].iloc[0]
    assert row["role"] == ROLES[int(roles.codes[3][11])]
    assert bool(row[f"active.{TASKS[1]}"]) == bool(roles.active[3][1, 11])
    assert row[f"strength.{TASKS[1]}"] == pytest.approx(float(roles.strength[3][1, 11]))


@pytest.mark.parametrize("resamples", [0, 20])
def test_roles_come_back_from_disk_as_they_were(tmp_path: Path, resamples: int) -> None:
    scores = made_scores()
    roles = assign_roles(scores, scores.config.changed(resamples=resamples))
    again = load_roles(save_roles(roles, tmp_path / "roles"))
    for layer in roles.layers:
        for name in ("active", "strength", "activation", "codes"):
            assert torch.equal(getattr(again, name)[layer], getattr(roles, name)[layer])
    assert again.config == roles.config
    assert (again.tasks, again.domains, again.sizes) == (roles.tasks, roles.domains, roles.sizes)
    assert again.intervals == roles.intervals
    assert again.overlaps().equals(roles.overlaps())
    assert strongest(again, "general", 4).equals(strongest(roles, "general", 4))


def test_a_folder_without_roles_and_a_damaged_one_are_told_apart_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="holds no roles"):
        load_roles(tmp_path)
    save_roles(assign_roles(made_scores()), tmp_path)
    (tmp_path / "summary.json").write_text("{", encoding="utf-8")
    with pytest.raises(ResourceError, match="cannot be read"):
        load_roles(tmp_path)


def test_scores_come_back_from_disk_and_give_the_same_roles(llama: LoadedModel, cache: Path) -> None:
    asked = questions()
    scores = score_questions(llama, asked, None, MPC)
    folder = scores_folder(llama, asked, scores.layers, MPC)
    assert load_scores(folder) is None
    again = load_scores(save_scores(scores, folder))
    assert again is not None
    assert all(torch.equal(again.ranks[layer], scores.ranks[layer]) for layer in scores.layers)
    one, two = assign_roles(again), assign_roles(scores)
    assert all(torch.equal(one.codes[layer], two.codes[layer]) for layer in scores.layers)


def test_scores_are_filed_under_everything_they_depend_on(llama: LoadedModel, cache: Path) -> None:
    asked = questions()
    folders = {
        scores_folder(llama, asked, (0, 1), MPC),
        scores_folder(llama, asked, (0,), MPC),
        scores_folder(llama, questions(3), (0, 1), MPC),
        scores_folder(llama, asked, (0, 1), MPC.changed(form="letters")),
        scores_folder(llama, asked, (0, 1), MPC.changed(target="top1")),
        scores_folder(llama, asked, (0, 1), MPC, edits="x"),
        scores_folder(llama, asked, (0, 1), MPC.changed(attribution=AttributionConfig(kind="mpc", scale=2))),
    }
    assert len(folders) == 7
    assert scores_folder(llama, asked, (0, 1), MPC.changed(top_share=0.2)) in folders


def test_another_models_roles_are_refused(llama: LoadedModel, gpt2: LoadedModel, cache: Path) -> None:
    roles: Roles = assign_roles(score_questions(llama, questions(), None, MPC))
    roles.require_for(llama)
    with pytest.raises(ModelError, match="whose weights are not those"):
        roles.require_for(gpt2)


def test_promoted_tokens_are_those_with_the_largest_logits(tiny: LoadedModel) -> None:
    found = promoted_tokens(tiny, [(0, 3), (2, 5), (2, 5)], k=4, signs=[1.0, 1.0, -1.0])
    for (layer, neuron), sign, tokens in zip([(0, 3), (2, 5), (2, 5)], (1, 1, -1), found, strict=True):
        value = sign * tiny.W_out(layer)[neuron].float()
        logits = tiny.readout.direction(value) @ tiny.readout.unembedding.float().T
        assert tokens == tuple(tiny.tokenizer.decode([int(t)]) for t in logits.topk(4).indices)
    assert promoted_tokens(tiny, []) == []
