"""Fixtures that all tests share. Shapes in the engine's annotations are checked while tests run."""

import os
from collections.abc import Iterator
from pathlib import Path

# Several processes on few cores: threads that spin long while they wait slow each other down a hundredfold.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import pytest
from jaxtyping import install_import_hook

ENGINE = Path(__file__).resolve().parents[1] / "nmke"
TENSOR_MODULES = sorted(
    ".".join(("nmke", *file.relative_to(ENGINE).with_suffix("").parts)).removesuffix(".__init__")
    for file in ENGINE.rglob("*.py")
    if "from jaxtyping import" in file.read_text(encoding="utf-8")
)
"""The engine's modules that say what shapes they take."""
install_import_hook(TENSOR_MODULES, "beartype.beartype")

from nmke.loading import LoadedModel, load_model  # noqa: E402
from tests.tiny import make_tiny  # noqa: E402

ARCHITECTURES = ("llama", "gpt2")
"""The two orientations of the down projection: [d_model, d_mlp] and [d_mlp, d_model]."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference numbers beside the project, where there is one."""
    folder = Path(os.environ.get("NMKE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("the shared evaluation data is not beside the project (NMKE_SHARED names another place)")
    return folder


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Reference numbers of the published method."""
    folder = shared / "golden"
    if not (folder / "manifest.json").is_file():
        pytest.skip("the reference numbers are not beside the project")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the tiny models, each made when first asked for."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="session")
def llama(tiny_folder: Path) -> LoadedModel:
    return load_model(str(make_tiny("llama", tiny_folder / "llama")), device="cpu")


@pytest.fixture(scope="session")
def gpt2(tiny_folder: Path) -> LoadedModel:
    return load_model(str(make_tiny("gpt2", tiny_folder / "gpt2")), device="cpu")


@pytest.fixture(params=ARCHITECTURES)
def tiny(request: pytest.FixtureRequest) -> LoadedModel:
    """Each of the two tiny models in turn."""
    model: LoadedModel = request.getfixturevalue(request.param)
    return model


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    """The real small model, fetched once into the user's cache."""
    from nmke.errors import ResourceError

    try:
        return load_model("smollm2-135m", device="cpu")
    except ResourceError as problem:
        pytest.skip(f"the real small model cannot be fetched here: {problem}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder for one test."""
    monkeypatch.setenv("NMKE_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
