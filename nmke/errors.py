"""Every error a user can cause, each with what happened and what to do about it."""


class NmkeError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: one sentence saying what happened, in plain words.
        remedy: one sentence saying what to do about it.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what} {remedy}".strip())


class ConfigError(NmkeError):
    """A setting is unknown or out of range."""


class FactError(NmkeError):
    """A fact, or a file of facts, cannot be used; ``field`` names the part at fault."""

    def __init__(self, what: str, remedy: str = "", field: str = "") -> None:
        super().__init__(what, remedy)
        self.field = field


class QuestionError(NmkeError):
    """A question, or a file of questions, cannot be used; ``field`` names the part at fault."""

    def __init__(self, what: str, remedy: str = "", field: str = "") -> None:
        super().__init__(what, remedy)
        self.field = field


class ResourceError(NmkeError):
    """A model, text or data set could not be fetched, verified or written."""


class ModelError(NmkeError):
    """A model cannot be read, does not fit, or fails the conformance gate."""


class EditError(NmkeError):
    """An edit could not be computed or was refused before it was applied."""


class FactRefused(EditError):
    """The method finds nothing to change for this very fact; other facts are not concerned."""


class SessionError(NmkeError):
    """An edit session cannot do what was asked: nothing to undo, or another model's bundle."""


class AblationError(NmkeError):
    """Neurons cannot be switched off as asked: too many, none, or those of another model."""


class DriftError(NmkeError):
    """There is no change of weights to look at: no edits, or none in that layer."""


class Cancelled(NmkeError):
    """The user cancelled; nothing was changed."""

    def __init__(self, what: str = "Cancelled; nothing was changed.", remedy: str = "") -> None:
        super().__init__(what, remedy)
