"""How long work tells what it is doing and learns that it should stop."""

from abc import ABC, abstractmethod


class Progress(ABC):
    """Receives the progress of one piece of work.

    The engine calls :meth:`update` once per item, so a cancel takes effect within one item.
    """

    @abstractmethod
    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        """Report ``done`` of ``total`` items of ``stage``.

        Raises:
            Cancelled: when the user asked to stop.
        """


class Silent(Progress):
    """Ignores progress and never cancels: the default for notebooks and tests."""

    def update(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        return None
