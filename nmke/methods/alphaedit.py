"""AlphaEdit: ridge updates confined to directions that ordinary text hardly uses (Fang et al., arXiv 2410.02355).

Per layer ``X = (P (K_p K_p^T + K K^T) + L2 I)^-1 P K R^T`` (eq. 14): ``P`` projects on the null space of the keys'
second moment, ``K_p`` are the keys of all edits in force. NMKE is this with a mask over neurons.

Defaults: threshold 0.02, layers 4 to 8, 25 steps, KL 0.0625, decay 0.5, clamp 0.75 as in the authors' settings for
LLaMA-3-8B. Two differ from that file: L2 is 1 as in the paper's formula (the identity stands there), the file has 10;
the learning rate is 0.5, the file has 0.1.
"""

from collections.abc import Sequence
from typing import Any

from nmke.edit import Edit
from nmke.facts import Fact
from nmke.methods.base import Method
from nmke.methods.closed_form import (
    ClosedFormConfig,
    Stopwatch,
    edit_of,
    find_targets,
    guess_layers,
    prepare,
    write_layers,
)
from nmke.progress import Progress
from nmke.session import EditSession


class AlphaEditConfig(ClosedFormConfig):
    """Settings of AlphaEdit."""


class AlphaEdit(Method):
    """Null-space constrained editing."""

    name = "alphaedit"
    title = "AlphaEdit"
    about = (
        "Writes facts into directions that ordinary text and earlier edits hardly use "
        "(Fang et al., ICLR 2025)."
    )
    config_class = AlphaEditConfig

    def guess(self, n_layers: int) -> dict[str, Any]:
        return {"layers": guess_layers(n_layers)}

    def _plan(
        self, session: EditSession, facts: Sequence[Fact], config: AlphaEditConfig, progress: Progress
    ) -> Edit:
        watch = Stopwatch()
        with watch.stage("total"):
            with watch.stage("statistics"):
                templates, spaces = prepare(session, facts, config, progress)
            with watch.stage("target"):
                targets = find_targets(session, facts, templates, config, progress)
            written = write_layers(session, facts, targets, templates, spaces, {}, config, progress, watch)
        return edit_of(self.name, config, facts, written, targets, templates, watch)
