"""What presets are called; apart from :mod:`nmke.presets`, so that plans are read without loading torch."""

#: The preset that is taken where none is named.
STANDARD = "standard"


def labelled(method: str, preset: str) -> str:
    """What a run calls a method with that preset, where nobody said otherwise."""
    return method if preset == STANDARD else f"{method} {preset}"
