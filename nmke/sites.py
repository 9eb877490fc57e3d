"""Places in the model whose values can be read and replaced."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

#: A place in the model: a kind of value and the layer it belongs to.
Site = tuple[str, int]
#: Receives the value at a site and returns what takes its place.
SiteHook = Callable[[Tensor], Tensor]

POST = "post"  #: neuron activations, the down projection's input [prompt, position, d_mlp]
RESID_MID = "resid_mid"  #: the residual stream just before the MLP adds its output
RESID_POST = "resid_post"  #: the residual stream after the layer
MLP_OUT = "mlp_out"  #: what the MLP adds to the residual stream
FINAL: Site = ("final", -1)  #: the output of the final norm, what the unembedding reads

_HOOKS: Mapping[str, str] = {
    POST: "blocks.{}.mlp.hook_post",
    RESID_MID: "blocks.{}.hook_resid_mid",
    RESID_POST: "blocks.{}.hook_resid_post",
    MLP_OUT: "blocks.{}.hook_mlp_out",
    FINAL[0]: "ln_final.hook_out",
}


def hook_name(site: Site) -> str:
    """What TransformerLens calls the site."""
    kind, layer = site
    return _HOOKS[kind].format(layer)


def sites_to_hook(sites: Sequence[Site], has_resid_mid: bool) -> list[Site]:
    """The sites that tell the values at ``sites``, none of them twice.

    Args:
        has_resid_mid: False where attention and MLP run side by side; that residual is then what the layer gives
            without the MLP's share.
    """
    wanted: dict[Site, None] = {}
    for kind, layer in sites:
        if kind == RESID_MID and not has_resid_mid:
            wanted[(RESID_POST, layer)] = wanted[(MLP_OUT, layer)] = None
        else:
            wanted[(kind, layer)] = None
    return list(wanted)


def value_at(kept: Mapping[Site, Tensor], site: Site, has_resid_mid: bool) -> Tensor:
    """The site's value, from those at :func:`sites_to_hook`."""
    kind, layer = site
    if kind == RESID_MID and not has_resid_mid:
        return kept[(RESID_POST, layer)] - kept[(MLP_OUT, layer)]
    return kept[site]


def keeping(kept: dict[Site, Tensor], site: Site) -> Callable[..., None]:
    """A hook that puts the site's value into ``kept``."""

    def keep(value: Tensor, hook: Any) -> None:
        kept[site] = value

    return keep


def replacing(function: SiteHook) -> Callable[..., Tensor]:
    """A hook that puts ``function`` of the site's value in its place."""

    def replace(value: Tensor, hook: Any) -> Tensor:
        return function(value)

    return replace
