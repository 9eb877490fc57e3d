"""What every editing method is: a name, settings, and a plan that changes nothing."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from nmke.config import Config
from nmke.edit import Edit
from nmke.errors import ConfigError, EditError
from nmke.facts import Fact
from nmke.modules import ModulePatch
from nmke.progress import Progress
from nmke.session import EditSession

Kind = TypeVar("Kind", bound=ModulePatch)


class Method(ABC):
    """One published way to write facts into a model.

    A method is one file: this class with :meth:`_plan`, its config, and a line in the registry.

    Attributes:
        name: the registry name.
        title: the name in the literature.
        about: one sentence for people, with the source.
        config_class: its settings.
        facts_at_once: how many facts one edit may write; None is any number.
        in_front: its edits are text in front, so it plans on top of other such edits; methods that change the model
            cannot, because what they read would not be what they write.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    about: ClassVar[str]
    config_class: ClassVar[type[Config]]
    facts_at_once: ClassVar[int | None] = None
    in_front: ClassVar[bool] = False

    def plan(self, session: EditSession, facts: Sequence[Fact], config: Config, progress: Progress) -> Edit:
        """Compute an edit on top of the session's edits; the model and the session are left as they were.

        Raises:
            EditError: there are no facts, too many at once for the method, or the edit cannot be computed.
            ConfigError: settings of another method.
            FactError: a fact does not fit the model's context.
            ModelError: the architecture failed the gate, or lacks a layer.
            Cancelled: from ``progress``.
        """
        if not isinstance(config, self.config_class):
            wanted = self.config_class.__name__
            raise ConfigError(
                f"{self.title} cannot use {type(config).__name__}.", f"Give it its own settings, {wanted}."
            )
        if not facts:
            raise EditError("There are no facts to write.", "Choose at least one fact.")
        if self.facts_at_once is not None and len(facts) > self.facts_at_once:
            raise EditError(
                f"{self.title} writes {_facts(self.facts_at_once)} an edit; {len(facts)} were given.",
                "Write them one after the other, or choose a method that takes batches.",
            )
        if session.prompt is not None and not self.in_front:
            raise EditError(
                f"A {session.prompt.kind} stands in front of everything this session's model reads; {self.title} would "
                "compute its change from that instead of from the facts alone.",
                "Undo those edits first.",
            )
        session.model.require_conformance()
        return self._plan(session, facts, config, progress)

    @abstractmethod
    def _plan(self, session: EditSession, facts: Sequence[Fact], config: Any, progress: Progress) -> Edit:
        """:meth:`plan`, its arguments checked; ``config`` is of :attr:`config_class`."""

    def guess(self, n_layers: int) -> Mapping[str, Any]:
        """Settings that depend on a model's depth, for models the method was not measured on."""
        return {}


def module_at(session: EditSession, layer: int, kind: type[Kind]) -> Kind | None:
    """What the session has beside a layer's down projection, if it is of that kind.

    Raises:
        EditError: another method's module stands there.
    """
    there = session.modules.get(layer)
    if there is not None and not isinstance(there, kind):
        raise EditError(
            f"Layer {layer} already has a {there.kind} beside its down projection.",
            "Choose another layer, or undo those edits first.",
        )
    return there


def _facts(count: int) -> str:
    return "one fact" if count == 1 else f"at most {count} facts"
