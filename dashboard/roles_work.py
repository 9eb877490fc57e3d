"""The Roles page's long work and what it says about it; no Streamlit here."""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dashboard.roles_charts import ORDER
from nmke.progress import Progress
from nmke.questions import domain_of, title_of

if TYPE_CHECKING:
    from nmke.loading import LoadedModel
    from nmke.roles import QuestionScores, Roles, RolesConfig
    from nmke.session import EditSession

#: What the newest roles are kept under, for the pages that switch neurons off.
ASSIGNED = "roles.assigned"
#: A resampling of more drawn neurons than this takes longer than a click should.
QUICK_DRAWS = 2_000_000_000
#: Tokens of a question, about: only for an estimate before anything is measured.
_TOKENS = {"letters": 100, "cloze": 35}


@dataclass(frozen=True)
class Asked:
    """What scores depend on; two equal ones give the same scores. The rule in ``config`` is the default one."""

    weight_hash: str
    edit_key: Hashable
    edit_version: int
    source: str
    subjects: tuple[str, ...]
    limit: int
    seed: int
    layers: tuple[int, ...]
    config: "RolesConfig"


@dataclass(frozen=True)
class Found:
    """Scores together with what they were computed from."""

    asked: Asked
    scores: "QuestionScores"


def find(model: "LoadedModel", session: "EditSession", asked: Asked, progress: Progress) -> Found:
    """Fetch the questions and score them on the model as this browser session has edited it."""
    from nmke.questions import load_questions
    from nmke.roles import score_once

    progress.update("reading the questions", 0, None)
    questions = load_questions(asked.source, asked.subjects, asked.limit, asked.seed, progress)
    edits = session.digest if session.version else ""
    with session.active():
        return Found(asked, score_once(model, questions, asked.layers, asked.config, progress, edits))


def stale_reasons(then: Asked, now: Asked) -> list[str]:
    """How what is asked now differs from what the scores were computed from; empty when it does not."""
    reasons = []
    if then.edit_key != now.edit_key:
        reasons.append(
            f"these roles are of edit version {then.edit_version}, you are at version {now.edit_version}"
            if then.edit_version != now.edit_version
            else f"edit version {now.edit_version} is another one than when they were found"
        )
    scored = ("attribution", "form", "target")
    changed = [
        word
        for word, differs in (
            ("questions", _drawn(then) != _drawn(now)),
            ("layers", then.layers != now.layers),
            ("score settings", any(getattr(then.config, n) != getattr(now.config, n) for n in scored)),
        )
        if differs
    ]
    if changed:
        reasons.append(f"the {' and '.join(changed)} on the left changed")
    return reasons


def _drawn(asked: Asked) -> tuple[Hashable, ...]:
    return asked.source, asked.subjects, asked.limit, asked.seed


def guess_seconds(model: "LoadedModel", asked: Asked) -> float:
    """Rough seconds of scoring, before one was measured on this machine."""
    n = asked.limit * max(len(asked.subjects), 1)
    fast = not model.device.startswith("cpu")
    forward = n * 2.0 * model.n_parameters * _TOKENS[asked.config.form] / (1e13 if fast else 1e11)
    if asked.config.attribution.kind == "mpc":
        return 1.0 + forward
    # About twenty thousandths of a second a question and layer of 1536 neurons, most of it in products with a draw
    # of the vocabulary (benchmarks/speed.md).
    layer = 0.012 * model.d_mlp * model.d_model / (1536 * 576) / (100 if fast else 1)
    return 2.0 + forward + n * len(asked.layers) * layer


def keep_upload(name: str, data: bytes) -> str:
    """An uploaded file of questions as a path the engine reads."""
    from nmke.resources import home
    from nmke.store import written_atomically

    path = home() / "questions" / "uploads" / hashlib.sha256(data).hexdigest()[:16] / Path(name).name
    if not path.exists():
        with written_atomically(path) as temporary:
            temporary.write_bytes(data)
    return str(path)


def short_title(subject: str) -> str:
    """A subject with its domain first, so that it can be told apart where there is little room."""
    domain = domain_of(subject)
    level = subject.removesuffix(domain).replace("_", " ").strip()
    return f"{title_of(domain)}, {level}" if level else title_of(domain)


def titles_of(tasks: Sequence[str]) -> dict[str, str]:
    """What each task is called on the screen."""
    return {task: short_title(task) for task in tasks}


def say_counts(roles: "Roles") -> pd.DataFrame:
    """One row a role: count, share, interval, shift and overlap, for people."""
    totals = roles.totals()
    whole = max(sum(totals.values()), 1)
    table = pd.DataFrame(
        {
            "role": list(ORDER),
            "neurons": [totals[role] for role in ORDER],
            "share": [totals[role] / whole for role in ORDER],
        }
    )
    if roles.stability is not None:
        drawn = roles.stability.roles.set_index("role").loc[list(ORDER)]
        table["from"] = drawn["low"].round().astype(int).to_numpy()
        table["to"] = drawn["high"].round().astype(int).to_numpy()
        table["shift"] = drawn["shift"].round().astype(int).to_numpy()
        table["same neurons"] = drawn["jaccard"].to_numpy()
    return table


def say_stability(roles: "Roles") -> str:
    """How far the roles depend on the questions, in a sentence."""
    stability = roles.stability
    if stability is None:
        return "No resampling was asked for, so nothing is said about how far the counts depend on the questions."
    kept, low, high = stability.kept
    active, low_active, high_active = stability.kept_active
    return (
        f"Questions drawn anew within each task {stability.resamples} times (seed {stability.seed}): {kept:.1%} of all "
        f"neurons keep their role ({low:.1%} to {high:.1%}), and {active:.1%} of those that have one "
        f"({low_active:.1%} to {high_active:.1%})."
    )


def say_origin(found: Found, roles: "Roles") -> str:
    """What was computed, from what, with which settings."""
    scores, config = found.scores, roles.config
    kind = config.attribution.kind
    sizes = sorted(set(scores.sizes))
    each = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    followed = {"top1": "the model's own next token", "answer": "the right answer's first token"}[
        config.target
    ]
    parts = [
        f"Questions: {scores.source}; {each} of each of {len(scores.tasks)} subjects, in the form “{config.form}”",
        f"score: {kind.upper()} at the last token"
        + ("" if kind == "mpc" else f", following {followed}, within {config.attribution.tolerance:g}"),
        f"{len(scores.layers)} layers, {scores.seconds:.0f} s"
        if scores.seconds >= 1
        else f"{len(scores.layers)} layers",
        f"edit version {found.asked.edit_version}" if found.asked.edit_version else "the model as loaded",
    ]
    return "; ".join(parts) + "."


def followed_tokens(scores: "QuestionScores", most: int = 4) -> str:
    """Which tokens were followed, the commonest first, with their shares."""
    counts = pd.Series(list(scores.targets)).value_counts(normalize=True).head(most)
    return ", ".join(f"{token!r} {share:.0%}" for token, share in counts.items())


def draws(scores: "QuestionScores", resamples: int) -> int:
    """How many neurons, tasks and drawings a resampling goes through."""
    return resamples * len(scores.tasks) * len(scores.layers) * scores.d_mlp
