"""Write facts and tell what changed: the whole of an edit in one call, for notebooks."""

from collections.abc import Sequence

from nmke.config import Config
from nmke.facts import Fact
from nmke.methods import get_method
from nmke.metrics import FactReport, compare, measure_facts
from nmke.presets import preset_for
from nmke.progress import Progress, Silent
from nmke.session import EditSession


def edit_facts(
    session: EditSession,
    facts: Sequence[Fact],
    method: str = "nmke",
    config: Config | None = None,
    generate_tokens: int = 12,
    progress: Progress | None = None,
) -> list[FactReport]:
    """Plan and apply one edit of all ``facts``, and report each before and after.

    Args:
        config: the method's settings; by default the preset for this model.
        generate_tokens: length of the greedy continuations; 0 writes none.

    Raises:
        EditError: the edit cannot be computed or is refused; the session is left as it was.
        Cancelled: from ``progress``; the session is left as it was.
    """
    progress = progress or Silent()
    config = config or preset_for(session.model, method).config
    with session.active():
        before = measure_facts(session.model, facts, generate_tokens)
    session.apply(get_method(method).plan(session, facts, config, progress))
    with session.active():
        after = measure_facts(session.model, facts, generate_tokens)
    return [compare(*three) for three in zip(facts, before, after, strict=True)]
