"""A small sweep on a tiny model saved to disk, for tests; and what may differ between two times it is run."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file

from tests.tiny import make_tiny

PLACES = ("France", "Italy", "Spain", "Germany", "England", "London", "Madrid", "Rome")
TIMES = ("seconds", "preparation", "stages", "peak_memory")
NEVER = ("resume", "stopped", "failed")


def write_inputs(folder: Path) -> dict[str, Path]:
    """Write a model, facts and a text; returns where they lie."""
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
    return {
        "model": make_tiny("llama", folder / "llama"),
        "facts": folder / "facts.jsonl",
        "text": folder / "text.txt",
    }


def write_sweep(
    folder: Path,
    *,
    edits: int = 4,
    marks: tuple[int, ...] = (1, 4),
    seeds: str = "[3]",
    steps: int = 4,
    fine_tuning: bool = True,
) -> Path:
    """Write a sweep of NMKE with two values of its ridge, and FT-M, and its inputs; returns the file."""
    at = write_inputs(folder)
    file = folder / "sweep.yaml"
    file.write_text(f"""\
models: [{at["model"]}]
data: [{at["facts"]}]
seeds: {seeds}
device: cpu
methods:
  - name: nmke
    set:
      null_space_threshold: 1.0e+6
      statistics: {{text: {at["text"]}, tokens: 400, window: 32}}
      target.steps: {steps}
      target.learning_rate: 0.1
    layers: ["1-2"]
    grid:
      ridge: [1.0, 20.0]
{"  - {name: ft-m, set: {layer: 1, steps: 4}}" if fine_tuning else ""}
run:
  edits: {edits}
  marks: [{", ".join(map(str, marks))}]
  checkpoint_every: 2
  perplexity_tokens: 100
  perplexity_text: {at["text"]}
""")
    return file


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if not key.startswith(TIMES)}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def numbers(sweep: Path) -> dict[str, Any]:
    """Everything the runs of a sweep found, without its times: events, predictions, the tensors to the bit."""
    found: dict[str, Any] = {}
    for path in sorted((sweep / "runs").glob("*/runs/*/events.jsonl")):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [timeless(event) for event in events if event["event"] not in NEVER]
        found[str(path.relative_to(sweep))] = kept
    for path in sorted(sweep.rglob("*.parquet")):
        found[str(path.relative_to(sweep))] = pd.read_parquet(path).to_json()
    for path in sorted(sweep.rglob("checkpoint.safetensors")):
        tensors = load_file(path)
        del tensors["record"]  # holds seconds
        found[str(path.relative_to(sweep))] = {
            name: (str(tensor.dtype), tuple(tensor.shape), tensor.contiguous().numpy().tobytes())
            for name, tensor in tensors.items()
        }
    return found
