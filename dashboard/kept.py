"""What one browser session has made already and need not make again.

Every rerun of a page walks through all of it; what did not change is taken from here. A thing is kept under the name
of what it is and a key of everything it depends on, by content, so that it can never be shown for other numbers.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import plotly.graph_objects as go

T = TypeVar("T")

#: How many things of one name are kept; enough to move a slider to and fro.
MOST = 6


class Kept:
    """The last few things of each name, the longest unused dropped first. Lives in one visitor's ``AppState``."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._made: dict[str, OrderedDict[Hashable, Any]] = {}

    def get(self, name: str, key: Hashable, make: Callable[[], T]) -> T:
        """The thing of that name and key, made only when it is not kept; never change what comes back."""
        made = self._made.setdefault(name, OrderedDict())
        if key not in made:
            made[key] = make()
        made.move_to_end(key)
        while len(made) > self._most:
            made.popitem(last=False)
        found: T = made[key]
        return found

    def figure(self, name: str, key: Hashable, draw: "Callable[[], go.Figure]") -> dict[str, Any]:
        """The figure of that name and key as plain data; ``charts.drawn`` makes a figure of it.

        A Plotly figure's parts refer to each other in circles, so that only the garbage collector could free it, and
        what outlives a run is set aside from that (see :mod:`dashboard.garbage`). Plain data goes when it is dropped.
        """

        def make() -> dict[str, Any]:
            spec: dict[str, Any] = draw().to_dict()
            return spec

        return self.get(name, key, make)

    def newest(self, name: str) -> Any:
        """The thing of that name that was asked for last; None when there is none."""
        made = self._made.get(name)
        return next(reversed(made.values())) if made else None

    def clear(self) -> None:
        """Forget everything: the model it was made from is gone."""
        self._made.clear()
