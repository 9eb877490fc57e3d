"""The beginning of a run: everything that could be refused is refused before anything is computed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nmke.errors import ConfigError, EditError, FactError, NmkeError, SessionError
from nmke.facts import Fact
from nmke.lifelong.abilities import check_abilities
from nmke.lifelong.files import (
    FACTS,
    LOCK,
    ORDERS,
    SPEC,
    read_json,
)
from nmke.lifelong.spec import Entrant, LifelongConfig, Spec, differences, repeats
from nmke.loading import LoadedModel
from nmke.methods import get_method
from nmke.readers import facts_to_jsonl
from nmke.storage import PARTIAL, writing
from nmke.store import write_json, write_text
from nmke.tokens import encode, encode_continuation, find_subject_last, require_fits
from nmke.versions import library_versions

FORMAT = 1
#: More tokens than a tokenizer puts around a text.
SPECIAL = 8
#: What makes two models different ones; names do not change a figure's meaning.
_TELLING = ("weight_hash", "dtype", "device")
_NEW = "Start it again in a new folder."


def start(
    folder: Path,
    model: LoadedModel,
    facts: Sequence[Fact],
    entrants: Sequence[Entrant],
    config: LifelongConfig,
    data: str | Mapping[str, Any],
) -> Spec:
    """Check everything and write the run's folder; a folder with the same run is left as it is, to be resumed.

    The first ``config.edits`` facts are used, whatever the seed.

    Args:
        data: where the facts came from: a name, or what :func:`read_data` says about them.

    Raises:
        FactError: fewer facts than edits, or one that does not fit the model's context.
        EditError: a method that is not known or cannot write so many facts at once.
        ConfigError: no entrants, or two with one label; HumanEval without the yes to run code.
        ModelError: the model failed its gate or lacks a layer.
        SessionError: the folder holds another run, a damaged one, or something else.
        ResourceError: the folder cannot be written, or abilities cannot be judged here.
    """
    _check_entrants(entrants, config)
    model.require_conformance()
    for entrant in entrants:
        _check_layers(model, entrant)
    if len(facts) < config.edits:
        raise FactError(
            f"{config.edits} edits are wanted, but there are only {len(facts)} facts.",
            f"Ask for at most {len(facts)} edits, or give more facts.",
        )
    used = tuple(facts[: config.edits])
    _check_facts(model, used, config.generate_tokens)
    check_abilities(config)
    spec = Spec(
        config=config,
        entrants=tuple(entrants),
        model=identity_of(model),
        data=_identity_of_data(data, facts, used),
        versions=library_versions(),
        facts=used,
    )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if (folder / SPEC).exists():
        return _same_or_refused(folder, spec)
    strange = [path.name for path in folder.iterdir() if not _is_ours(path.name)]
    if strange:
        raise SessionError(
            f"The folder {folder.name} holds something that is no lifelong run ({strange[0]}).",
            "Choose a new folder.",
        )
    _write(folder, spec)
    return spec


def read_spec(folder: Path) -> Spec:
    """The spec of a run's folder.

    Raises:
        ResourceError: there is none.
        SessionError: the folder is damaged.
    """
    record = read_json(folder / SPEC)
    try:
        if record["format"] != FORMAT:
            raise SessionError(
                f"The run has format {record['format']}; this program reads format {FORMAT}.",
                "Open it with the version that wrote it.",
            )
        text = (folder / FACTS).read_bytes()
        orders = (folder / ORDERS).read_bytes()
        whole = {FACTS: hashlib.sha256(text).hexdigest(), ORDERS: hashlib.sha256(orders).hexdigest()}
        for name, checksum in whole.items():
            if checksum != record["files"][name]:
                raise SessionError(f"{name} of the run {folder.name} was changed.", _NEW)
        facts = [json.loads(line) for line in text.decode().split("\n") if line]
        return Spec.from_dict({**record, "facts": facts})
    except OSError as error:
        raise SessionError(
            f"The run {folder.name} is not whole: {Path(error.filename or '').name} cannot be read "
            f"({error.strerror}).",
            _NEW,
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise SessionError(f"The run {folder.name} is damaged ({type(problem).__name__}).", _NEW) from problem


def identity_of(model: LoadedModel) -> dict[str, Any]:
    """Which model it is, to the bit."""
    return {
        "name": model.name,
        "kind": model.resolved.kind,
        "revision": model.resolved.revision,
        "weight_hash": model.weight_hash,
        "device": model.device.split(":")[0],
        "dtype": model.dtype,
        "n_layers": model.n_layers,
        "d_mlp": model.d_mlp,
        "d_model": model.d_model,
        "parameters": model.n_parameters,
    }


def require_same_model(spec: Spec, model: LoadedModel) -> None:
    """Refuse to go on with another model than the run began with.

    Raises:
        SessionError: naming what differs.
    """
    found = differences(_telling(spec.model), _telling(identity_of(model)))
    if found:
        raise SessionError(
            f"The run was begun with another model: {'; '.join(found)}.",
            f"Load {spec.model['name']} as it was ({spec.model['dtype']} on {spec.model['device']}).",
        )


def _check_entrants(entrants: Sequence[Entrant], config: LifelongConfig) -> None:
    if not entrants:
        raise ConfigError("No method is named.", "Choose at least one.")
    labels: set[str] = set()
    for entrant in entrants:
        if entrant.label.lower() in labels:
            raise ConfigError(
                f"Two entrants have the label {entrant.label!r}.",
                "Give each its own label; capitals do not count.",
            )
        labels.add(entrant.label.lower())
        method = get_method(entrant.method)
        if not isinstance(entrant.config, method.config_class):
            raise ConfigError(
                f"{entrant.label} has settings of another method ({type(entrant.config).__name__}).",
                f"Give it {method.config_class.__name__}.",
            )
        if method.facts_at_once is not None and config.batch > method.facts_at_once:
            most = "one fact" if method.facts_at_once == 1 else f"at most {method.facts_at_once} facts"
            raise EditError(
                f"{method.title} writes {most} an edit; the batch is {config.batch}.",
                f"Set the batch to {method.facts_at_once}, or leave {entrant.label} out.",
            )


def _check_layers(model: LoadedModel, entrant: Entrant) -> None:
    """Refuse layers the model lacks, where the method's settings name any."""
    layers, layer = getattr(entrant.config, "layers", ()), getattr(entrant.config, "layer", None)
    named = [*(layers if isinstance(layers, tuple) else ()), *([layer] if isinstance(layer, int) else [])]
    if named:
        model.check_layers(named)


def _check_facts(model: LoadedModel, facts: Sequence[Fact], free: int) -> None:
    """Refuse what could not be measured: every prompt must fit the context with what comes after it.

    Args:
        free: tokens of free text.
    """
    tokenizer, most = model.tokenizer, model.context_length
    for number, fact in enumerate(facts, 1):
        try:
            require_fits(tokenizer, fact, most)
            find_subject_last(tokenizer, fact)
        except FactError as error:
            raise FactError(f"Fact {number}: {error.what}", error.remedy, error.field) from None
        asked = [
            (text, target)
            for text in (fact.prompt, *fact.paraphrases)
            for target in (fact.target_new, fact.target_true)
        ]
        asked += [
            (one.prompt, target) for one in fact.neighborhood for target in (one.answer, fact.target_new)
        ]
        asked += [(one.prompt, one.answer) for one in fact.portability]
        for prompt, target in asked:
            # A token is at least a byte, so short texts fit without being tokenized.
            if len(prompt.encode()) + max(len(target.encode()), free) + SPECIAL <= most:
                continue
            forced = encode_continuation(tokenizer, prompt, target) if target else []
            if len(encode(tokenizer, prompt)) + max(len(forced), free) > most:
                raise FactError(
                    f"Fact {number}: the prompt {prompt[:40]!r}... does not fit the model's {most} tokens with its "
                    "target" + (f" or {free} tokens of free text." if free else "."),
                    "Shorten it, or leave the fact out" + (", or ask for less free text." if free else "."),
                )


def _identity_of_data(
    data: str | Mapping[str, Any], facts: Sequence[Fact], used: Sequence[Fact]
) -> dict[str, Any]:
    told = {"source": data, "name": data} if isinstance(data, str) else dict(data)
    return {
        **told,
        "sha256": told.get("sha256") or hashlib.sha256(facts_to_jsonl(facts).encode()).hexdigest(),
        "count": len(facts),
        "used": len(used),
        **repeats(used),
    }


def _write(folder: Path, spec: Spec) -> None:
    """The spec comes last: a folder that has it is whole."""
    texts = {
        FACTS: facts_to_jsonl(spec.facts),
        ORDERS: json.dumps(spec.orders()) + "\n",
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    files = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    write_json(folder / SPEC, {"format": FORMAT, **spec.to_dict(facts=False), "files": files})


def _same_or_refused(folder: Path, spec: Spec) -> Spec:
    try:
        old = read_spec(folder)
    except NmkeError as error:
        raise SessionError(error.what, f"Choose a new folder, or remove {folder.name}.") from error
    found = []
    found += differences(_telling(old.model), _telling(spec.model), "model.")
    found += differences(old.config.model_dump(), spec.config.model_dump())
    found += differences(_by_label(old), _by_label(spec))
    found += _other_facts(old.facts, _as_asked(folder, spec.facts))
    if found:
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        raise SessionError(
            f"The folder {folder.name} holds another run: {'; '.join(found[:4])}{more}.",
            "Give a new folder, or repeat the settings of that run to go on with it.",
        )
    return old


def _by_label(spec: Spec) -> dict[str, Any]:
    found: dict[str, Any] = {"entrants": ", ".join(entrant.label for entrant in spec.entrants)}
    return {**found, **{entrant.label: entrant.to_dict() for entrant in spec.entrants}}


def _as_asked(folder: Path, facts: Sequence[Fact]) -> Sequence[Fact]:
    """The facts as far as the folder's run can hold them.

    A run begun before facts had portability questions lacks the field in its file. It goes on as it was begun.
    """
    if '"portability":' in (folder / FACTS).read_text(encoding="utf-8"):
        return facts
    return [replace(fact, portability=()) for fact in facts]


def _other_facts(old: Sequence[Fact], new: Sequence[Fact]) -> list[str]:
    """In what the first fact that is another one differs.

    The facts that are written make the figures. The file they are from does not: it may be called otherwise, be laid
    out otherwise, or hold more.
    """
    for number, (one, other) in enumerate(zip(old, new, strict=False), 1):
        if one != other:
            return differences(one.to_dict(), other.to_dict(), f"fact {number}.")
    return []


def _telling(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values.get(name) for name in _TELLING}


def _is_ours(name: str) -> bool:
    """What a start that was killed may leave behind; a new one writes over it."""
    return name in (FACTS, ORDERS, LOCK) or name.startswith(PARTIAL)
