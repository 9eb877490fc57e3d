"""General ability at the marks of a run: the suite that the run's settings name, asked of every state it measures.

What the figures were measured on (questions, harness) is written down at the first measurement and must stay the same
until the run ends, also when it is resumed elsewhere.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nmke.ability.config import AbilityConfig
from nmke.errors import SessionError
from nmke.lifelong.files import ABILITIES, read_json
from nmke.lifelong.spec import LifelongConfig
from nmke.lifelong.unedited import Ability
from nmke.loading import LoadedModel
from nmke.progress import Progress, Silent
from nmke.store import plain, write_json


class Suite:
    """The abilities that a run's settings name.

    Args:
        folder: the run's.
    """

    def __init__(self, config: LifelongConfig, folder: Path, progress: Progress) -> None:
        self._config, self._data = settings_of(config)
        self._folder, self._progress = folder, progress

    def at(self, state: str) -> Ability:
        """Judges the model while it computes in a state; see :func:`nmke.ability.state_of`."""

        def judge(model: LoadedModel) -> Mapping[str, float]:
            from nmke.ability import judge_abilities

            report = judge_abilities(model, self._config, state, self._data, self._progress)
            self._require_same([score.to_dict() for score in report.scores])
            return report.figures()

        return judge

    def _require_same(self, scores: list[dict[str, Any]]) -> None:
        """Write down what was asked, or compare it with what was written.

        Raises:
            SessionError: other questions, or another harness, than the run began with.
        """
        kept = ("sha256", "n", "metric", "formula", "fewshot", "limit", "seed", "harness_version", "source")
        now = plain({score["task"]: {name: score[name] for name in kept} for score in scores})
        path = self._folder / ABILITIES
        if not path.is_file():
            write_json(path, now)
            return
        before = read_json(path)
        for task, asked in now.items():
            for name in ("sha256", "metric", "harness_version"):
                if before.get(task, {}).get(name) != asked[name]:
                    raise SessionError(
                        f"{task} is asked with other {'questions' if name == 'sha256' else 'rules'} than when the "
                        "run was begun.",
                        "Put the same data and harness in place, or start a new run.",
                    )


def settings_of(config: LifelongConfig) -> tuple[AbilityConfig, Path | None]:
    """What is asked at every mark, and the folder it is asked from."""
    asked = AbilityConfig.make(
        tasks=config.abilities, limit=config.ability_limit, run_code=config.ability_run_code
    )
    return asked, Path(config.ability_data).expanduser() if config.ability_data.strip() else None


def check_abilities(config: LifelongConfig, progress: Progress | None = None) -> None:
    """Refuse, before anything is computed, abilities that could not be judged.

    Raises:
        ResourceError: no harness, or no questions.
        ConfigError: HumanEval without the yes; QuestionError: a file that cannot be used.
    """
    if not config.abilities:
        return
    from nmke.ability.harness import harness_version
    from nmke.ability.running import read_task, require_consent

    asked, data = settings_of(config)
    require_consent(asked)
    harness_version()
    for task in asked.tasks:
        read_task(task, asked, data, progress or Silent())
