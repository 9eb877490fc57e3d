"""The editing methods, by name. A new one is one file with its config and one line here."""

from collections.abc import Mapping
from types import MappingProxyType

from nmke.errors import EditError
from nmke.methods.alphaedit import AlphaEdit
from nmke.methods.base import Method
from nmke.methods.emmet import EMMET
from nmke.methods.ft import FTL, FTM
from nmke.methods.grace import GRACE
from nmke.methods.ike import IKE
from nmke.methods.kn import KN
from nmke.methods.melo import MELO
from nmke.methods.memit import MEMIT
from nmke.methods.mend import MEND
from nmke.methods.nmke import NMKE
from nmke.methods.nse import NSE
from nmke.methods.rome import ROME
from nmke.methods.serac import SERAC
from nmke.methods.ultraedit import UltraEdit
from nmke.methods.wise import WISE

__all__ = ["Method", "get_method", "methods"]

_ALL: tuple[type[Method], ...] = (
    NMKE,
    AlphaEdit,
    MEMIT,
    ROME,
    EMMET,
    FTL,
    FTM,
    KN,
    WISE,
    UltraEdit,
    NSE,
    GRACE,
    MELO,
    MEND,
    IKE,
    SERAC,
)


def methods() -> Mapping[str, Method]:
    """Every registered method by its name.

    Raises:
        ValueError: when two methods carry one name (a mistake in this file).
    """
    found: dict[str, Method] = {}
    for method in _ALL:
        if method.name in found:
            raise ValueError(f"two methods are named {method.name!r}")
        found[method.name] = method()
    return MappingProxyType(found)


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        EditError: listing the names that exist.
    """
    known = methods()
    if name not in known:
        raise EditError(f"There is no method {name!r}.", f"Methods: {', '.join(known)}.")
    return known[name]
