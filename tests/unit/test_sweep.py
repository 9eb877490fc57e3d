"""Sweeps: the file and what is refused in it, its runs, doing them in this process, what the folder tells."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nmke.cli.lifelong import read_entrants
from nmke.cli.options import change_settings
from nmke.errors import Cancelled, ConfigError, ResourceError, SessionError
from nmke.lifelong.files import is_held
from nmke.lifelong.spec import LifelongConfig
from nmke.methods import get_method
from nmke.progress import Progress
from nmke.sweep import Plan, plan, ray_executor, read, read_spec, run_sweep
from nmke.sweep.executors import Watch
from nmke.sweep.messages import Message, receive, send
from nmke.sweep.planning import Run
from nmke.sweep.ray_config import RayConfig, room_in
from nmke.sweep.ray_executor import RayExecutor, _Driver
from nmke.sweep.ray_worker import SCRATCH, Worker, _remove_orphans
from nmke.sweep.results import choose
from nmke.sweep.spec import parse_spec
from nmke.sweep.transfer import Changes, File, whole, write_files
from nmke.sweep.work import Task
from tests.sweeping import numbers, write_sweep

GOOD = """\
data: counterfact:facts.json
models: [smollm2-135m, other/model]
seeds: [0, 1]
layers: ["4-6", "10"]
methods:
  - alphaedit
  - name: nmke
    label: masked
    set: {target.steps: 7}
    grid:
      mask.general_low: [0.1, 0.2]
      ridge: [1, 2.0, 10]
    layers: ["4-8"]
run: {edits: 20, batch: 2}
"""


def planned(text: str, *, many: bool = False) -> Plan:
    return plan(parse_spec(text), many=many)


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        planned(text)
    return error.value


# ---- the file ---------------------------------------------------------------------------------------------------


def test_every_combination_is_one_run() -> None:
    runs = planned(GOOD).runs
    assert len(runs) == 2 * 2 * (2 + 2 * 3)
    assert len({run.name for run in runs}) == len(runs)
    masked = [run for run in runs if run.method == "nmke" and run.seed == 1 and run.model == "smollm2-135m"]
    assert {(run.changes["mask.general_low"], run.changes["ridge"]) for run in masked} == {
        (low, ridge) for low in (0.1, 0.2) for ridge in (1.0, 2.0, 10.0)
    }
    assert all(
        run.changes["target.steps"] == 7 and run.changes["layers"] == [4, 5, 6, 7, 8] for run in masked
    )
    others = {tuple(run.changes["layers"]) for run in runs if run.method == "alphaedit"}
    assert others == {(4, 5, 6), (10,)}


def test_names_are_readable_and_do_not_change_when_the_sweep_grows() -> None:
    names = [run.name for run in planned(GOOD).runs]
    assert "smollm2-135m_counterfact_masked-mask.general_low-0.1-ridge-10.0-layers-4-8_seed1" in names
    more = GOOD.replace("seeds: [0, 1]", "seeds: [5, 0, 1]").replace("ridge: [1,", "ridge: [0.5, 1,")
    assert set(names) < {run.name for run in planned(more).runs}


def test_runs_of_one_model_are_beside_each_other() -> None:
    models = [run.model for run in planned(GOOD).runs]
    assert models == sorted(models, key=["smollm2-135m", "other/model"].index)


def test_marks_are_the_papers_unless_named() -> None:
    assert planned(GOOD).runs[0].config.marks == (2, 10, 20)
    assert planned(GOOD.replace("batch: 2", "marks: [3]")).runs[0].config.marks == (3,)


def test_nested_settings_mean_the_same_as_dotted_ones() -> None:
    nested = GOOD.replace("{target.steps: 7}", "{target: {steps: 7}}").replace(
        "mask.general_low: [0.1, 0.2]", "mask: {general_low: [0.1, 0.2]}"
    )
    assert planned(nested) == planned(GOOD)


def test_a_method_with_one_layer_takes_single_layers_alone() -> None:
    text = "data: examples\nmethods: [ft-m]\nlayers: [3, 5]\nrun: {edits: 2}\n"
    assert [run.changes for run in planned(text).runs] == [{"layer": 3}, {"layer": 5}]
    error = refused(text.replace("[3, 5]", '["3-5"]'))
    assert error.what.startswith("Row 3: ft-m edits one layer, not 3, 4, 5")
    assert "layers: list of its own" in error.remedy


def test_the_documented_sweep_is_planned() -> None:
    page = Path(__file__).parents[2] / "docs" / "comparison-on-a-cluster.md"
    runs = planned(page.read_text().split("```yaml\n")[1].split("```")[0]).runs
    # Its highest share 0.6 is above the authors' 0.4, and below the preset's of the model it names.
    assert {run.changes.get("mask.general_low") for run in runs} == {None, 0.3, 0.6}


@pytest.mark.parametrize(
    ("old", "new", "row", "words", "remedy"),
    [
        ("- alphaedit", "- alfaedit", 6, "there is no method 'alfaedit'", "Did you mean alphaedit?"),
        ("name: nmke", "name: nmk", 7, "there is no method 'nmk'", "Did you mean nmke?"),
        ("seeds: [0, 1]", "seed: [0, 1]", 3, "there is no key 'seed'", "Did you mean seeds?"),
        ("label: masked", "lable: masked", 8, "there is no key 'lable'", "Did you mean label?"),
        ("batch: 2", "bach: 2", 14, "there is no key 'bach'", "Did you mean batch?"),
        ("target.steps: 7", "target.step: 7", 9, "nmke has no setting 'target.step'", "target.steps?"),
        ("      ridge:", "      rigde:", 12, "nmke has no setting 'rigde'", "Did you mean ridge?"),
        ("[0.1, 0.2]", "[]", 11, "the list of mask.general_low is empty, so there is nothing to run", ""),
        ("[0.1, 0.2]", "0.1", 11, "mask.general_low needs a list of values", ""),
        ("[0.1, 0.2]", "[0.1, 0.1]", 11, "names a value twice", ""),
        ("[0.1, 0.2]", "[0.1, 7]", 10, "general_low", ""),
        ("seeds: [0, 1]", "seeds: []", 3, "seeds is empty, so there is nothing to run", "Name at least one"),
        ("seeds: [0, 1]", "seeds: [0, 0]", 3, "one is named twice", ""),
        ('["4-8"]', '["8-4"]', 13, "names no layers", ""),
        ("edits: 20", "edits: none", 14, "edits", ""),
        ("edits: 20", "edits: 20, seeds: [1]", 14, "seeds stand at the top", ""),
        ("label: masked", "label: a/b\n    name: nmke", 9, "name is there twice", "Keep one"),
        ("  - alphaedit", "  - masked: {", 14, "the file is no YAML", ""),
        ("data: counterfact:facts.json\n", "", 1, "data is missing", "counterfact:FILE"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_row_and_a_remedy(
    old: str, new: str, row: int, words: str, remedy: str
) -> None:
    assert old in GOOD
    error = refused(GOOD.replace(old, new, 1))
    assert words in error.what
    assert remedy in error.remedy and error.remedy
    if "no YAML" not in words:
        where = error.what.split(":")[0]
        # A list's mistake is told at the list or one of its rows' headings.
        assert where in (f"Row {row}", f"Row {row - 1}"), error.what


def test_an_empty_grid_is_refused() -> None:
    for text in ("", "methods: []\ndata: examples\nrun: {edits: 2}\n", "[]", "just words"):
        assert "nothing to run" in str(refused(text)) or "no settings of a sweep" in str(refused(text))


def test_two_rows_with_one_label_are_refused() -> None:
    error = refused(
        "data: examples\nmethods:\n  - ft-m\n  - {name: ft-m, set: {layer: 3}}\nrun: {edits: 2}\n"
    )
    assert error.what == "Row 4: two configurations have the label 'ft-m'."


def test_ten_thousand_runs_are_asked_for_twice() -> None:
    text = "data: examples\nmethods: [ft-m]\nseeds: [%s]\nrun: {edits: 1}\n"
    most = ", ".join(map(str, range(10_000)))
    error = refused(text % most)
    assert "10,000 runs" in error.what and "--yes" in error.remedy
    assert len(planned(text % most, many=True).runs) == 10_000
    assert len(planned(text % most.removesuffix(", 9999")).runs) == 9_999


def test_a_huge_grid_is_refused_without_being_written_out() -> None:
    values = ", ".join(map(str, range(1, 2000)))
    grid = "".join(f"      {name}: [{values}]\n" for name in ("target.steps", "ridge", "statistics.tokens"))
    error = refused(f"data: examples\nmethods:\n  - name: nmke\n    grid:\n{grid}run: {{edits: 1}}\n")
    assert f"{1999**3:,} runs" in error.what


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        read_spec(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="sweep|nothing|YAML"):
        parse_spec("!!python/object/apply:os.system [echo]")
    with pytest.raises(ConfigError, match="nested too deeply"):
        parse_spec("data: " + "[" * 50 + "]" * 50)


# ---- commands ---------------------------------------------------------------------------------------------------


def test_the_command_of_a_run_means_that_run() -> None:
    named = GOOD.replace("    label: masked\n", "    preset: careful\n")
    for run in (*planned(GOOD).runs, *planned(named).runs):
        words = shlex.split(run.command())
        given = dict(zip(words[2::2], words[3::2], strict=True))
        (entrant,) = read_entrants("", [given["--entrant"]], None)
        assert (entrant.label, entrant.method) == (run.label, run.method)
        assert entrant.preset == run.preset
        default = get_method(run.method).config_class()
        assert change_settings(default, entrant.changes) == run.entrant(default).config
        assert given["--model"] == run.model and given["--data"] == run.data
        assert given["--edits"] == "20" and given["--batch"] == "2" and given["--seeds"] == str(run.seed)
        assert given["--eval-at"] == "2,10,20" and given["--out"] == run.name


def test_a_run_comes_back_from_plain_values() -> None:
    named = planned(GOOD.replace("    label: masked\n", "    preset: careful\n")).runs
    assert named[-1].preset == "careful" and named[-1].label.startswith("nmke careful ")
    for run in (*planned(GOOD).runs, *named):
        assert Run.from_dict(json.loads(json.dumps(run.to_dict()))) == run


# ---- doing it ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file of a sweep, and in ``out`` the sweep done in this process; not to be changed."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NMKE_HOME", str(folder / "home"))
        run_sweep(folder / "out", plan(read_spec(write_sweep(folder))))
    return folder


def test_the_folder_holds_every_run_its_command_and_the_best(finished: Path) -> None:
    out = finished / "out"
    results = read(out)
    assert results.complete and not results.at_work
    manifest = json.loads((out / "sweep.json").read_text())
    summary = json.loads((out / "summary.json").read_text())
    assert [run["name"] for run in manifest["runs"]] == list(summary["runs"])
    assert all(run["command"].startswith("nmke lifelong ") for run in manifest["runs"])
    for entry in summary["runs"].values():
        assert entry["state"] == "done" and entry["last"]["T"] == 4
    assert summary["runs"]["llama_facts_ft-m_seed3"]["changes"] == {"layer": 1, "steps": 4}
    assert {one["method"]: one["of"] for one in summary["best"]} == {"nmke": 2, "ft-m": 1}
    assert "reliability, generalisation and locality" in summary["criterion"]
    table = results.table()
    assert len(table) == 3 * 2
    mean = (table["reliability"] + table["generalization"] + table["locality"]) / 3
    assert (table["quality"] - mean).abs().max() < 1e-12


def test_results_are_read_without_torch(finished: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nmke.sweep import read; "
        f"r = read(Path({str(finished / 'out')!r})); r.table(); r.best(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_what_is_done_is_passed_over_and_what_was_cut_off_goes_on(
    finished: Path, tmp_path: Path, cache: Path
) -> None:
    planned = plan(read_spec(finished / "sweep.yaml"))

    class Stop(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            if done == 6 and stage == "sweeping":  # in the middle of the second run
                raise Cancelled

    out = tmp_path / "out"
    with pytest.raises(Cancelled):
        run_sweep(out, planned, progress=Stop())
    before = read(out)
    assert [entry["state"] for entry in before.status] == ["done", "waiting", "waiting"]
    first = out / "runs" / planned.runs[0].name
    stamp = (first / "summary.json").stat().st_mtime_ns
    assert run_sweep(out, planned).complete
    assert (first / "summary.json").stat().st_mtime_ns == stamp
    assert numbers(out) == numbers(finished / "out")


@pytest.mark.slow
def test_progress_counts_all_runs_and_estimates_the_rest(
    finished: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmke.sweep import running

    seen: list[tuple[int, int | None, str]] = []

    class Watching(Progress):
        def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
            assert stage == "sweeping" or "reading" in stage
            seen.append((done, total, note))

    clock = iter(range(0, 10**9, 60))
    monkeypatch.setattr(running.time, "monotonic", lambda: float(next(clock)))
    planned = plan(read_spec(finished / "sweep.yaml"))
    run_sweep(tmp_path / "out", planned, progress=Watching())
    assert {total for _, total, _ in seen} == {12}
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == 12 and seen[-1][2].startswith("3 of 3 runs")
    assert any("min left" in note or "h left" in note for _, _, note in seen)
    assert any(note.startswith("1 of 3 runs") and planned.runs[1].name in note for _, _, note in seen)


@pytest.mark.slow
def test_a_run_that_cannot_be_begun_does_not_stop_the_others(tmp_path: Path, cache: Path) -> None:
    file = write_sweep(tmp_path)
    file.write_text(file.read_text().replace("set: {layer: 1, steps: 4}", "set: {layer: 99, steps: 4}"))
    told: list[str] = []
    results = run_sweep(tmp_path / "out", plan(read_spec(file)), tell=told.append)
    states = {entry["label"]: (entry["state"], entry["message"]) for entry in results.status}
    assert [state for state, _ in states.values()] == ["done", "done", "failed"]
    assert "99" in states["ft-m"][1] and "99" in told[0]
    assert not results.complete


def test_another_sweep_is_not_written_into_the_same_folder(finished: Path) -> None:
    text = (finished / "sweep.yaml").read_text()
    with pytest.raises(
        SessionError, match="holds another sweep: of llama_facts_.* edits is 4 there and 3 here"
    ):
        run_sweep(
            finished / "out",
            planned(text.replace("edits: 4", "edits: 3").replace("marks: [1, 4]", "marks: [1, 3]")),
        )
    with pytest.raises(SessionError, match="holds something that is no sweep"):
        run_sweep(finished, planned(text))


def test_the_better_quality_wins_and_perplexity_breaks_ties() -> None:
    assert choose({"a": (0.5, 10.0), "b": (0.6, 99.0)}) == "b"
    assert choose({"a": (0.5, 10.0), "b": (0.5, 9.0), "c": (0.5, None)}) == "b"
    assert choose({"a": (None, 1.0), "b": (0.1, None)}) == "b"
    assert choose({"a": (0.5, None), "b": (0.5, None)}) == "a"


# ---- to workers and back ----------------------------------------------------------------------------------------


def test_a_task_travels_with_its_facts(finished: Path) -> None:
    from nmke.lifelong import read_data

    run = plan(read_spec(finished / "sweep.yaml")).runs[0]
    data = read_data(run.data)
    task = Task(run, data.facts, data.about)
    assert Task.from_bytes(task.to_bytes()) == task


def test_changed_files_come_in_an_order_that_a_loss_does_not_hurt(tmp_path: Path) -> None:
    own = tmp_path / "run" / "runs" / "a-seed0"
    own.mkdir(parents=True)
    changes = Changes(tmp_path / "run")
    for name in ("checkpoint.safetensors", "events.jsonl", "predictions-1.parquet", ".partial-x", ".lock"):
        (own / name).write_text(name)
    (tmp_path / "run" / "spec.json").write_text("{}")
    names = [file.name.split("/")[-1] for file in changes.take()]
    assert set(names[:2]) == {"predictions-1.parquet", "spec.json"}
    assert names[2:] == ["events.jsonl", "checkpoint.safetensors"]
    assert changes.take() == []
    (own / "events.jsonl").write_text("more of them")
    assert [file.content for file in changes.take()] == [b"more of them"]
    write_files(tmp_path / "copy", whole(tmp_path / "run"))
    assert {f.name: f.content for f in whole(tmp_path / "copy")} == {
        f.name: f.content for f in whole(tmp_path / "run")
    }


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", ""])
def test_a_worker_cannot_write_outside_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(SessionError, match="strange name"):
        write_files(tmp_path / "run", [File(name, b"")])
    assert list(tmp_path.iterdir()) == []


def test_messages_arrive_with_their_files() -> None:
    from multiprocessing import Pipe

    ours, theirs = Pipe()
    send(ours, Message("news", {"name": "a"}, [File("x", b""), File("y/z", b"12")]))
    assert receive(theirs, 1.0) == Message("news", {"name": "a"}, [File("x", b""), File("y/z", b"12")])
    assert receive(theirs, 0.0) is None
    ours.close()
    with pytest.raises(EOFError):
        receive(theirs, 0.0)


@pytest.mark.slow
def test_a_worker_without_a_cluster_gives_the_same_bits(
    finished: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nmke.lifelong import read_data

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    run = plan(read_spec(finished / "sweep.yaml")).runs[2]
    data = read_data(run.data)
    worker = Worker()
    worker.begin(Task(run, data.facts[:4], data.about).to_bytes(), [])
    ended = False
    while not ended:
        news = worker.news()
        write_files(tmp_path / "out" / "runs" / run.name, [File(*file) for file in news["files"]])
        ended = news["ended"]
    assert news["error"] == ""
    mine, plain = numbers(tmp_path / "out"), numbers(finished / "out")
    assert mine and mine == {name: plain[name] for name in plain if f"/{run.name}/" in name}
    assert not list(tmp_path.glob(f"{SCRATCH}*"))


def test_what_killed_workers_left_is_removed(tmp_path: Path) -> None:
    import os

    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    (tmp_path / f"{SCRATCH}{gone.stdout.strip()}-abc").mkdir()
    (tmp_path / f"{SCRATCH}{os.getpid()}-abc").mkdir()
    (tmp_path / "other").mkdir()
    _remove_orphans(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{SCRATCH}{os.getpid()}-abc", "other"}


# ---- Ray, without a cluster -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "words"),
    [("ray://head:10001", "Ray Client is not used"), ("head", "HOST:PORT"), ("head:99999", "HOST:PORT")],
)
def test_an_address_that_cannot_be_one_is_refused(address: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RayConfig.make(address=address)


def test_without_ray_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nmke.sweep.ray_executor.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install"):
        RayExecutor()


def test_a_file_of_requirements_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("nmke.sweep.ray_executor.find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="There is no file"):
        RayExecutor(RayConfig(requirements=str(tmp_path / "none.txt")))


@pytest.mark.parametrize(
    ("config", "runs"),
    [
        ({}, 8),
        ({"cpus": 3}, 2),
        ({"gpus": 0.5}, 4),
        ({"gpus": 3.0}, 0),
        ({"memory_gb": 10.0}, 3),
        ({"cpus": 2, "gpus": 1.0, "memory_gb": 1.0}, 2),
    ],
)
def test_a_machine_has_room_for_as_many_runs_as_its_scarcest_thing_allows(
    config: dict[str, Any], runs: int
) -> None:
    assert room_in({"CPU": 8.0, "GPU": 2.0, "memory": 32e9}, RayConfig(**config)) == runs


def test_the_usual_settings_of_a_run_need_no_words_in_its_command() -> None:
    (run,) = planned("data: examples\nmethods: [ft-m]\nrun: {edits: 2000}\n").runs
    assert run.config == LifelongConfig(seeds=(0,))
    assert "--perplexity" not in run.command() and "--batch" not in run.command()


class FakeRay:
    """A line to workers of which those for some runs are always lost, each after saving a checkpoint or not."""

    def __init__(self, losing: str, saving: int) -> None:
        self.losing, self.saving, self.handed = losing, saving, []
        self.messages: list[Message] = []

    def send(self, message: Message) -> None:
        name = message.values["name"]
        self.handed.append((name, {file.name for file in message.files[1:]}))
        if self.losing not in name:
            self.messages.append(Message("ended", {"name": name, "error": ""}))
            return
        if self.saving:
            self.saving -= 1
            file = File("runs/a-seed3/checkpoint.safetensors", b"saved")
            values = {"name": name, "progress": ["editing (a)", 1, 4, ""]}
            self.messages.append(Message("news", values, [file]))
        self.messages.append(Message("lost", {"name": name, "reason": "it ran out of memory"}))

    def receive(self, seconds: float) -> Message | None:
        return self.messages.pop(0) if self.messages else None


class Notes(Watch):
    def __init__(self) -> None:
        self.messages: dict[str, str] = {}
        self.told: list[str] = []

    def tick(self) -> None: ...
    def going(self, run: str, stage: str, done: int, total: int | None, note: str = "") -> None: ...

    def ended(self, run: str, message: str = "") -> None:
        self.messages[run] = message

    def tell(self, message: str) -> None:
        self.told.append(message)


@pytest.mark.parametrize(("saving", "handed"), [(0, 3), (2, 4)])
def test_a_run_whose_workers_are_lost_again_and_again_is_given_up_and_the_others_go_on(
    finished: Path, tmp_path: Path, saving: int, handed: int
) -> None:
    runs = plan(read_spec(finished / "sweep.yaml")).runs
    tasks = [Task(run, (), {}) for run in runs]
    ray, notes = FakeRay("ridge-1.0", saving), Notes()
    driver = _Driver(ray, RayConfig(memory_gb=4.0), tasks, tmp_path, notes, lambda name, pid: None)  # type: ignore[arg-type]
    driver.go([{"CPU": 2.0, "GPU": 0.0, "memory": 8e9}])
    lost, *others = [run.name for run in runs]
    assert "lost 3 times in a row" in notes.messages[lost] and "memory" in notes.messages[lost]
    assert all(notes.messages[name] == "" for name in others)
    assert [name for name, _ in ray.handed].count(lost) == handed
    # What was saved goes with the run to its next worker.
    again = [files for name, files in ray.handed if name == lost][1:]
    assert all(files == ({"runs/a-seed3/checkpoint.safetensors"} if saving else set()) for files in again)
    assert not is_held(tmp_path / lost)


def test_a_cluster_without_any_room_for_long_ends_the_sweep(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan(read_spec(finished / "sweep.yaml")).runs
    ray = FakeRay("nothing", 0)
    monkeypatch.setattr(ray_executor, "ROOMLESS", -1.0)
    driver = _Driver(ray, RayConfig(), [Task(runs[0], (), {})], tmp_path, Notes(), lambda name, pid: None)  # type: ignore[arg-type]
    with pytest.raises(ResourceError, match="no room for a run"):
        driver.go([])
