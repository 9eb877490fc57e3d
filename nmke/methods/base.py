"""What every editing method is: a name, settings, and a plan that changes nothing."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from nmke.config import Config
from nmke.edit import Edit
from nmke.facts import Fact
from nmke.progress import Progress
from nmke.session import EditSession


class Method(ABC):
    """One published way to write facts into a model.

    Attributes:
        name: the registry name.
        title: the name in the literature.
        about: one sentence for people, with the source.
        config_class: its settings.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    about: ClassVar[str]
    config_class: ClassVar[type[Config]]

    @abstractmethod
    def plan(self, session: EditSession, facts: Sequence[Fact], config: Config, progress: Progress) -> Edit:
        """Compute an edit on top of the session's edits; the model and the session are left as they were.

        Raises:
            EditError: the edit cannot be computed.
            Cancelled: from ``progress``.
        """
