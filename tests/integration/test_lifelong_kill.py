"""``nmke lifelong`` killed outright at random moments: the same command ends with the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.tiny import make_tiny

pytestmark = pytest.mark.slow

PLACES = ("France", "Italy", "Spain", "Germany", "England", "London", "Madrid", "Rome")
TIMES = ("seconds", "preparation", "stages", "peak_memory")
EDITS = 8
NEVER = ("resume", "stopped", "failed")


def write_inputs(folder: Path) -> list[str]:
    """The command's arguments, its inputs written."""
    make_tiny("llama", folder / "llama")
    facts = [
        {
            "prompt": f"The {thing} of {{}} is",
            "subject": place,
            "target_new": answer,
            "target_true": "Paris",
            "paraphrases": [f"{place} has the {thing}"],
            "neighborhood": [{"prompt": "The river is", "answer": "wide"}],
        }
        for thing, answer in (("capital", "the boat"), ("language", "meow"))
        for place in PLACES
    ]
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    lines = [f"The river {n} is wide, and cat {n * 7} says meow to dog {n * 3}." for n in range(80)]
    (folder / "text.txt").write_text("\n".join(lines))
    common = ["layers=1-2", "null_space_threshold=1e6", "statistics.tokens=400", "statistics.window=32"]
    common += [f"statistics.text={folder / 'text.txt'}", "target.steps=6", "target.learning_rate=0.1"]
    return [
        *("--model", str(folder / "llama"), "--data", str(folder / "facts.jsonl"), "--device", "cpu"),
        *("--methods", "nmke", "--entrant", "timid=nmke:ridge=20", "--seeds", "3"),
        *(part for setting in common for part in ("--set", f"nmke.{setting}")),
        *(
            "--edits",
            str(EDITS),
            "--eval-at",
            f"1,5,{EDITS}",
            "--checkpoint-every",
            "3",
            "--generate-tokens",
            "3",
        ),
        *("--perplexity-text", str(folder / "text.txt"), "--perplexity-tokens", "200"),
    ]


def launch(arguments: list[str], out: Path, home: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "NMKE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-c",
        "from nmke.cli import app; app()",
        "lifelong",
        *arguments,
        "--out",
        str(out),
    ]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def lines_in(out: Path) -> int:
    """Whole lines in all event files."""
    return sum(path.read_bytes().count(b"\n") for path in out.glob("runs/*/events.jsonl"))


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not k.startswith(TIMES)}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def numbers(out: Path) -> dict[str, Any]:
    """Everything a run found, without its times."""
    found: dict[str, Any] = {"summary": timeless(json.loads((out / "summary.json").read_text()))}
    for path in sorted(out.glob("runs/*/events.jsonl")):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [timeless(event) for event in events if event["event"] not in NEVER]
    for path in sorted(out.glob("**/*.parquet")):
        found[str(path.relative_to(out))] = pd.read_parquet(path).to_json()
    return found


def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    arguments = write_inputs(tmp_path)
    straight = launch(arguments, tmp_path / "straight", tmp_path / "home")
    _, told = straight.communicate(timeout=400)
    assert straight.returncode == 0, told
    whole = lines_in(tmp_path / "straight")
    assert whole == 2 * (EDITS + 3 + 1)

    chance, out = random.Random(), tmp_path / "killed"
    seed = chance.randrange(10**6)
    chance.seed(seed)
    killed: list[bool] = []
    for after in sorted(chance.sample(range(0, whole - 6), 3)):
        work = launch(arguments, out, tmp_path / "home")
        while work.poll() is None and (not out.exists() or lines_in(out) < after):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.3)
        work.send_signal(signal.SIGKILL)
        work.communicate()
        killed.append(work.returncode == -signal.SIGKILL)
    assert killed == [True] * 3, f"seed {seed}"
    last = launch(arguments, out, tmp_path / "home")
    _, told = last.communicate(timeout=400)
    assert last.returncode == 0, told
    assert numbers(out) == numbers(tmp_path / "straight"), f"seed {seed}"
    assert not list(out.rglob(".partial-*"))
    digests = [event["digest"] for event in numbers(out)["timid-seed3"] if event["event"] == "edit"]
    assert len(digests) == len(set(digests)) == EDITS
