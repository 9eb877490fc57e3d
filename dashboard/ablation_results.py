"""The results that the Ablation page keeps on disk, and what they are called."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dashboard import state
from nmke.errors import NmkeError
from nmke.storage import home

if TYPE_CHECKING:
    from nmke.ablation import AblationResults

#: Results listed on the page, the newest first.
MOST_LISTED = 30


@dataclass(frozen=True)
class Kept:
    """Results as they lie on disk."""

    name: str
    results: "AblationResults"

    @property
    def title(self) -> str:
        return title_of(self.results)


def results_folder() -> Path:
    """Where the page keeps results, a folder each."""
    return home() / "ablation" / "results"


def answers_folder() -> Path:
    """Where each condition's answers are kept, so that they need not be given twice."""
    return home() / "ablation" / "answers"


def list_results() -> list[str]:
    """The names of kept results, the newest first."""
    from nmke.ablation.results import SUMMARY

    found = [(path.stat().st_mtime_ns, path.parent.name) for path in results_folder().glob(f"*/{SUMMARY}")]
    return [name for _, name in sorted(found, reverse=True)[:MOST_LISTED]]


def open_result(name: str) -> Kept:
    """Kept results; read again only when they changed.

    Raises:
        ResourceError: they are gone or damaged.
    """
    from nmke.ablation import AblationResults
    from nmke.ablation.results import SUMMARY

    folder = results_folder() / name
    told = (folder / SUMMARY).stat() if (folder / SUMMARY).is_file() else None
    key = told and (told.st_mtime_ns, told.st_size)
    found: Kept = state.get().kept.get(
        f"ablation.result.{name}", key, lambda: Kept(name, AblationResults.load(folder))
    )
    return found


def kept_results(weight_hash: str) -> tuple[dict[str, Kept], int]:
    """The kept results of a model by name, and how many there are of others; damaged ones are left out."""
    mine: dict[str, Kept] = {}
    others = 0
    for name in list_results():
        try:
            kept = open_result(name)
        except NmkeError:
            continue
        if kept.results.about.get("model", {}).get("weight_hash") == weight_hash:
            mine[name] = kept
        else:
            others += 1
    return mine, others


def titles_of(kept: Mapping[str, Kept]) -> dict[str, str]:
    """What kept results, the newest first, are called; of those that sound alike all but the oldest are numbered."""
    alike: Counter[str] = Counter()
    titles = {}
    for name in reversed(list(kept)):
        title = kept[name].title
        alike[title] += 1
        titles[name] = title if alike[title] == 1 else f"{title} ({alike[title]})"
    return titles


def forget(name: str) -> None:
    """Remove kept results; the answers they were made of stay."""
    from nmke.storage import remove

    remove(results_folder() / Path(name).name)


def title_of(results: "AblationResults") -> str:
    """What results are called: their sets, the questions, and what is unusual."""
    sets = [one for one in results.conditions if one.kind == "set"]
    labels = list(dict.fromkeys(one.label for one in sets))
    ks = sorted({one.k for one in sets})
    numbers = f"k = {', '.join(map(str, ks))}" if len(ks) <= 3 else f"k = {ks[0]} to {ks[-1]}"
    if any(one.name.endswith(" per layer") for one in sets):
        numbers += " per layer"
    layers = sorted({layer for one in sets for layer in one.neurons})
    parts = [", ".join(labels), numbers]
    if results.about["config"]["how"] == "mean":
        parts.append("by mean")
    if layers:
        parts.append(f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}")
    edits = results.about.get("session", {}).get("edits")
    if edits:
        parts.append(f"after {edits} edit{'s' if edits != 1 else ''}")
    return f"{' · '.join(parts)} · {len(results.questions)} questions"
