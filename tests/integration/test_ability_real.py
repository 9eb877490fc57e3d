"""Our MMLU is lm-evaluation-harness' MMLU: the same numbers, question by question, as its plain model class gives.

Twice 25 of the real questions, asked of the real small model by both.
"""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmke.ability import TASKS, AbilityConfig, AbilityReport, find_data, find_isolation, judge_abilities
from nmke.ability.definitions import DEFINITIONS
from nmke.ability.harness import load_harness
from nmke.ability.sandbox import run_program
from nmke.loading import LoadedModel

SUBJECTS = ("world_religions", "elementary_mathematics")
EACH = 25


@pytest.fixture(scope="module")
def data(shared: Path) -> Path:
    return shared / "data"


@pytest.fixture(scope="module")
def ours(
    smollm2: LoadedModel, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AbilityReport, AbilityReport]:
    """Asked twice, with an empty cache before the first."""
    config = AbilityConfig(tasks=("mmlu",), subjects=SUBJECTS, limit=EACH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NMKE_HOME", str(tmp_path_factory.mktemp("home")))
        return tuple(judge_abilities(smollm2, config, "", data) for _ in range(2))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def plain(smollm2: LoadedModel, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the harness gives by itself: its own class loads the folder, its own files and index name the tasks."""
    import lm_eval.tasks
    from datasets import disable_progress_bars
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    disable_progress_bars()
    folder = tmp_path_factory.mktemp("plain")
    text = (data / "mmlu_test.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    tasks = TaskManager(include_defaults=False)  # reading all of its thousands of definitions takes a minute
    folder_of_tasks = Path(lm_eval.tasks.__file__).parent
    asked = []
    for subject in SUBJECTS:
        mine = [row for row in rows if row["subject"] == subject]
        for split in ("test", "dev"):
            (folder / f"{subject}_{split}.jsonl").write_text("\n".join(map(json.dumps, mine)))
        files = {split: str(folder / f"{subject}_{split}.jsonl") for split in ("test", "dev")}
        # The one thing that must be told: the hub is not asked, the very file is read by the data-set library.
        definition = folder_of_tasks / "mmlu" / "default" / f"mmlu_{subject}.yaml"
        own = folder / f"{subject}.yaml"
        own.write_text(
            f"include: {definition}\ntask: plain_{subject}\ndataset_path: json\ndataset_name: null\n"
            f"dataset_kwargs: {{data_files: {json.dumps(files)}, cache_dir: {json.dumps(str(folder))}}}\n"
        )
        asked.append(str(own))
    judged = HFLM(pretrained=smollm2.resolved.path, device="cpu", dtype="float32", batch_size=4)
    loaded = tasks.load(asked)
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=0)
    found = evaluate(judged, loaded, limit=EACH, bootstrap_iters=0)
    assert found is not None
    return found


def test_the_real_files_are_read_and_defined_whole(data: Path) -> None:
    harness, counts = load_harness(), {}
    for task in TASKS:
        found = find_data(task, data)
        counts[task] = found.count
        for part in found.parts:
            assert (harness.folder / DEFINITIONS[task].file.format(part)).is_file(), part
    assert counts == {"mmlu": 14042, "gsm8k": 1319, "commonsense_qa": 1221, "bbh": 6511, "humaneval": 164}


@pytest.mark.skipif(not find_isolation().allowed, reason="this machine offers nothing that keeps code in")
def test_published_solutions_of_humaneval_pass_and_empty_ones_fail(data: Path) -> None:
    problems = [json.loads(line) for line in (data / "humaneval.jsonl").read_text().split("\n") if line]
    for problem in problems[::16]:
        tests = f"\n{problem['test']}\ncheck({problem['entry_point']})"
        assert run_program(problem["prompt"] + problem["canonical_solution"] + tests).reason == "passed"
        assert not run_program(problem["prompt"] + "    pass\n" + tests).passed


@pytest.mark.slow
def test_every_log_probability_equals_the_plain_harness(
    ours: tuple[AbilityReport, AbilityReport], plain: dict[str, Any]
) -> None:
    rows = ours[0].samples.set_index(["part", "number"])
    compared = 0
    for subject in SUBJECTS:
        for sample in plain["samples"][f"plain_{subject}"]:
            mine = rows.loc[(subject, sample["doc_id"])]
            assert mine["prompt"] == sample["arguments"][0][0]
            theirs = [float(answer[0][0]) for answer in sample["resps"]]
            np.testing.assert_allclose(mine["choices_logp"], theirs, atol=1e-4, rtol=0)
            assert mine["right"] == bool(sample["acc"])
            compared += 1
    assert compared == len(rows) == 2 * EACH


@pytest.mark.slow
def test_the_number_equals_the_plain_harness(
    ours: tuple[AbilityReport, AbilityReport], plain: dict[str, Any]
) -> None:
    score = ours[0].score("mmlu")
    theirs = [plain["results"][f"plain_{subject}"]["acc,none"] for subject in SUBJECTS]
    assert score.value == pytest.approx(np.mean(theirs), abs=1e-12) and score.n == 2 * EACH
    assert [score.parts[subject][0] for subject in SUBJECTS] == pytest.approx(theirs, abs=1e-12)
    assert score.interval.low < score.value < score.interval.high


@pytest.mark.slow
def test_the_second_time_costs_nothing(ours: tuple[AbilityReport, AbilityReport]) -> None:
    first, second = ours
    assert not first.score("mmlu").cached and second.score("mmlu").cached
    assert second.score("mmlu").seconds == pytest.approx(first.score("mmlu").seconds)
    assert second.samples.equals(first.samples)
