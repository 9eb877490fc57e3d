"""From a click on a chart to a layer and a neuron: pure, because no test can click a Plotly chart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pick:
    """The neuron a click means."""

    layer: int
    neuron: int


def picked(event: Any) -> Pick | None:
    """The first clicked point of a chart whose ``customdata`` opens with layer and neuron, else None."""
    selection = _get(event, "selection")
    points = _get(selection, "points") if selection is not None else None
    if not isinstance(points, Sequence):
        return None
    for point in points:
        data = _get(point, "customdata")
        # Plotly hands back arrays as dicts of their indices when they went through its binary form.
        if isinstance(data, Mapping):
            data = [data[key] for key in sorted(data, key=lambda key: int(key))]
        if isinstance(data, Sequence) and not isinstance(data, str) and len(data) >= 2:
            try:
                return Pick(int(data[0]), int(data[1]))
            except (TypeError, ValueError):
                continue
    return None


def clamp(pick: Pick, layers: Sequence[int], neurons: int) -> Pick:
    """``pick`` moved to a layer that was scored and a neuron that exists."""
    layer = pick.layer if pick.layer in layers else min(layers, key=lambda known: abs(known - pick.layer))
    return Pick(layer, max(0, min(pick.neuron, neurons - 1)))


def parse_layers(text: str, n_layers: int) -> tuple[int, ...]:
    """Layers from ``4-8``, ``4, 6, 10-12`` or ``all``.

    Raises:
        ValueError: one sentence saying what is wrong with the text.
    """
    text = text.strip().lower()
    if text in ("", "all"):
        return tuple(range(n_layers))
    layers: set[int] = set()
    for part in text.replace(";", ",").split(","):
        ends = [end.strip() for end in part.split("-")]
        if not all(end.isdigit() for end in ends) or len(ends) > 2:
            raise ValueError(
                f"{part.strip()!r} is not a layer or a range of layers; write for example 4-8 or 4, 6."
            )
        first, last = int(ends[0]), int(ends[-1])
        if first > last or last >= n_layers:
            raise ValueError(f"The model has layers 0 to {n_layers - 1}; {part.strip()!r} is not among them.")
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def layers_text(layers: Sequence[int]) -> str:
    """``(4, 5, 6, 10)`` as ``4-6, 10``."""
    parts: list[list[int]] = []
    for layer in sorted(set(layers)):
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _get(thing: Any, name: str) -> Any:
    if isinstance(thing, Mapping):
        return thing.get(name)
    return getattr(thing, name, None)
