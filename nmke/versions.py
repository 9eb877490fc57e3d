"""What a figure depends on besides its inputs: versions of Python and of the libraries."""

import platform
from importlib.metadata import PackageNotFoundError, version

_LIBRARIES = ("nmke", "torch", "transformers", "scikit-learn", "transformer-lens", "gguf", "numpy")


def library_versions() -> dict[str, str]:
    """Versions by name; a library that is not installed as a package is named as such."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found
