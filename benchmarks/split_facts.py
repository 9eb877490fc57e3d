"""The facts of the long runs: some to choose settings on, the rest to report on, none of them among other facts.

    python benchmarks/split_facts.py counterfact.jsonl counterfact_more.jsonl --without lifelong_facts.jsonl --out out/

The files are CounterFact's records as JSON Lines. Writes choose.jsonl, the first records of the first file, and
rest.jsonl, all others in their order; with two neighbourhood prompts each, which is most of what a mark measures.
"""

import argparse
import json
from pathlib import Path

from nmke.readers import read_facts

NEIGHBORS = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--without", type=Path, help="facts whose prompts are left out")
    parser.add_argument("--choose", type=int, default=100, help="records to choose settings on")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()

    seen = {fact.prompt for fact in read_facts(chosen.without).facts} if chosen.without else set()
    kept = []
    for file in chosen.files:
        facts = read_facts(file).facts
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        for fact, line in zip(facts, lines, strict=True):  # a record that is no fact would shift them
            if fact.prompt not in seen:
                record = json.loads(line)
                record["neighborhood_prompts"] = record["neighborhood_prompts"][:NEIGHBORS]
                kept.append(json.dumps(record, ensure_ascii=False) + "\n")
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "choose.jsonl").write_text("".join(kept[: chosen.choose]), encoding="utf-8")
    (chosen.out / "rest.jsonl").write_text("".join(kept[chosen.choose :]), encoding="utf-8")


if __name__ == "__main__":
    main()
