"""ROME: one fact, one layer, one rank-one update that maps a key exactly to its value (Meng et al., arXiv 2202.05262).

With ``k`` the down projection's input at the subject's last token, ``C = E[k k^T]`` over a text, and ``v*`` the wanted
output of the MLP there::

    u = C^-1 k_mean / (k^T C^-1 k_mean)         X = u (v* - m(k))^T        (eq. 2)

``k_mean`` averages over the contexts, all alike, the bare prompt among them. The published code takes for ``k`` and for
``m(k)``, the MLP's present output, the bare prompt's. The two keys differ, and where they have little in common ``u``
grows so large that the edit destroys the model. *Rebuilding ROME* (Gupta et al., arXiv 2403.07175) therefore takes the
averages everywhere; ``consistent_keys`` does that. ``v*`` is then still the bare prompt's output and delta.

``delta = v* - m(bare)`` minimises what MEMIT's z minimises (:mod:`nmke.target`), added to the MLP's output. Added to
the residual after the same layer at the same token it computes the same, so the same optimisation is used; only its
two measures of size are taken of the MLP's output instead of the residual, as in the published code.

Differences from the published code: its contexts are 20 continuations of 5 and 10 tokens sampled from the
start-of-text token, ours are :mod:`nmke.contexts`' five and the bare prompt; ``C`` is steadied
(:func:`nmke.solve.steadied`). Defaults are the authors' for GPT-J.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from nmke.config import Config
from nmke.edit import Edit, WeightPatch
from nmke.errors import EditError
from nmke.facts import Fact
from nmke.history import exactly
from nmke.methods.base import Method
from nmke.methods.closed_form import (
    Stopwatch,
    Written,
    edit_of,
    factored_norm,
    prepare_facts,
    second_moments,
)
from nmke.model import EditableModel
from nmke.moments import StatisticsConfig
from nmke.progress import Progress
from nmke.session import EditSession
from nmke.sites import MLP_OUT, POST, RESID_POST
from nmke.solve import cholesky, equality_factors, steadied
from nmke.target import Target, TargetConfig, optimise_targets
from nmke.tokens import encode, fill_template, find_subject_last, pad, pad_id


class ROMEConfig(Config):
    """Settings of ROME."""

    layer: int = Field(5, ge=0, title="Edited layer", description="Which layer's down projection is changed.")
    consistent_keys: bool = Field(
        False,
        title="Consistent keys (R-ROME)",
        description="Uses the key averaged over contexts everywhere. The published ROME mixes it with the bare "
        "prompt's key, which now and then destroys the model.",
    )
    statistics: StatisticsConfig = Field(
        StatisticsConfig(),
        title="Statistics text",
        description="The text whose keys are moved least; 'none' treats all directions alike.",
    )
    target: TargetConfig = Field(
        TargetConfig(steps=20, clamp_norm_factor=4.0),
        title="v* optimisation",
        description="How the wanted output of the MLP is found; decay and clamp are measured against that output.",
    )
    context_seed: int = Field(0, ge=0, title="Context seed", description="Seed of the five context texts.")


@dataclass(frozen=True)
class Reading:
    """What one layer has at the subject's last token, under every context, the bare prompt first.

    Attributes:
        keys: the down projection's inputs [context, d_mlp], float32.
        written: the MLP's outputs [context, d_model].
        residual: the bare prompt's residual after the layer [d_model].
    """

    keys: Float[Tensor, "context d_mlp"]
    written: Float[Tensor, "context d_model"]
    residual: Float[Tensor, " d_model"]


class ROME(Method):
    """Rank-one model editing."""

    name = "rome"
    title = "ROME"
    about = (
        "Writes one fact into one layer by a rank-one update that maps the subject exactly to its new value "
        "(Meng et al., NeurIPS 2022)."
    )
    config_class = ROMEConfig
    facts_at_once = 1

    def guess(self, n_layers: int) -> dict[str, Any]:
        return {"layer": min(round(n_layers * 5 / 32), n_layers - 1)}

    def _plan(
        self, session: EditSession, facts: Sequence[Fact], config: ROMEConfig, progress: Progress
    ) -> Edit:
        watch, model, layer = Stopwatch(), session.model, config.layer
        with watch.stage("total"):
            with watch.stage("statistics"):
                templates = prepare_facts(session, facts, [layer], config.context_seed, progress)
                moments = second_moments(model, config.statistics, [layer], progress)
            with session.active(), watch.stage("keys"):
                reading = read_subject(model, facts[0], layer, templates)
            with session.active(), watch.stage("target"):
                settings = sized_by_output(config.target, reading.written[0], reading.residual)
                target = optimise_targets(model, facts, layer, templates, settings, progress)[0]
            progress.update("writing layers", 0, 1, f"layer {layer}")
            with watch.stage("solve"):
                written = write_one(reading, target, config, None if moments is None else moments[layer])
        return edit_of(self.name, config, facts, written, [target], templates, watch)


@torch.no_grad()
def read_subject(model: EditableModel, fact: Fact, layer: int, templates: Sequence[str]) -> Reading:
    """Run the fact's prompt under every context up to the layer, with whatever weights are active."""
    rows = [encode(model.tokenizer, fill_template(template, fact.prompt)) for template in templates]
    places = torch.tensor([find_subject_last(model.tokenizer, fact, template) for template in templates])
    sites = [(POST, layer), (MLP_OUT, layer), (RESID_POST, layer)]
    kept = model.run(pad(rows, pad_id(model.tokenizer)), sites, stop_after=layer)
    keys, written, resid = (
        kept[site][torch.arange(len(rows)), places].float().to(model.device) for site in sites
    )
    return Reading(keys, written, resid[0])


def sized_by_output(
    config: TargetConfig, written: Float[Tensor, " d_model"], residual: Float[Tensor, " d_model"]
) -> TargetConfig:
    """Settings that mean, of a delta on the residual, what ``config`` means of a delta on the MLP's output.

    Decay is ``c |delta| / |h|^2`` and the clamp ``f |h|``; ``h`` is the residual for :mod:`nmke.target` and the MLP's
    output for ROME.

    Raises:
        EditError: the MLP writes nothing there, so that its size is no measure.
    """
    ratio = float(residual.norm() / written.norm())
    if not 0 < ratio < float("inf"):
        raise EditError(
            "The MLP writes nothing at the subject's last token, so the size of its change cannot be bounded.",
            "Choose another layer.",
        )
    # 100 times the residual bounds nothing any more; the settings end there.
    clamp = min(config.clamp_norm_factor / ratio, 100.0)
    return config.changed(weight_decay=config.weight_decay * ratio**2, clamp_norm_factor=clamp)


def write_one(reading: Reading, target: Target, config: ROMEConfig, C: Tensor | None) -> Written:
    """The rank-one update.

    Args:
        C: second moment of the layer's keys [d_mlp, d_mlp]; None for the identity.
    """
    mean = exactly(reading.keys.mean(0)[:, None])
    delta = exactly((target.z - target.start)[:, None])
    k, R = exactly(reading.keys[0][:, None]), delta
    if config.consistent_keys:
        k, R = mean, delta + exactly((reading.written[0] - reading.written.mean(0))[:, None])
    direction = mean if C is None else torch.cholesky_solve(mean, cholesky(steadied(C.to(mean))))
    left, right = equality_factors(k, R, direction)
    figures = {
        "layer": config.layer,
        "residual_norm": float(R.norm()),
        "solved_norm": factored_norm(left, right),
        "written_norm": factored_norm(left, right),
        "key_agreement": float((k * mean).sum() / (k.norm() * mean.norm())),
    }
    patch = WeightPatch(config.layer, left.float(), right.float())
    ran = {"target": target.ran, "keys": "whole prompts"}
    return Written((patch,), {config.layer: k.float()}, {"layers": [figures], "ran": ran})
