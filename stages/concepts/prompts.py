"""Prompt concepts: slots in prompt templates, and the words and phrases that can fill them.

A template is a prompt with a `{slot}` for every concept: "a photo of a {colour} {animal} {setting}". The levels of a
concept are the phrases that can fill its slot; "" leaves it unsaid. A cell of the grid is therefore a choice of words,
and the neutral cell says as little as possible.

Filled prompts are tidied: leftovers of an unsaid slot (a double space, a dangling comma) are removed, and the
template's own "a" or "an" before a slot is adapted to the next word.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from string import Formatter
from typing import Any

from stages.concepts.space import COLUMNS, Concept, ConceptSpace
from stages.core.errors import UsageError, did_you_mean
from stages.core.files import local_file

UNSAID = ""
# Columns of the tables of items and pictures, in addition to those that every stage writes.
TAKEN = COLUMNS | {"id", "split", "label", "template", "seed", "text", "image", "file_name"}
SLOT = re.compile(r"[a-z_][a-z0-9_]*")

# Removed from a filled prompt, in this order: empty brackets, a comma before another mark, spaces before marks, double
# spaces, and marks at either end that only make sense between words.
UNTIDY = tuple(
    re.compile(pattern)
    for pattern in (r"\( *\)", r",(?= *[,.;:!?](?: |$))", r" +(?=[,.;:!?](?: |$))", r" (?= )", r"^[ ,;:.!?]+|[ ,;:]+$")
)
ARTICLE = re.compile(r"\b([Aa])n?(\s+)$")
VOWEL = re.compile(r"[aeiou]|hour|honest|honou?r|heir|8|1[18]\b", re.IGNORECASE)
CONSONANT = re.compile(r"uni(?![dmn])|us(?:[ae]|ual|b?\b)|uti|uk|ufo|eu|ewe|ones?\b|once\b", re.IGNORECASE)


def check_slots(levels: Mapping[str, Any]) -> list[str]:
    """List what is wrong with the `concepts:` of an audit of prompts, one line per error."""
    errors = []
    for name, phrases in levels.items():
        if not SLOT.fullmatch(name):
            errors.append(
                f"concepts.{name}: not a name for a slot, expected lower-case letters, digits and _, as in fur_colour"
            )
        elif name in TAKEN:
            errors.append(f"concepts.{name}: this is the name of a column of the tables, choose another")
        if not isinstance(phrases, Sequence) or isinstance(phrases, str):
            errors.append(f"concepts.{name}: expected a list of words or phrases, found {phrases!r}")
            continue
        errors += [f"concepts.{name}: {error}" for phrase in phrases if (error := _phrase_error(phrase))]
        if len(phrases) < 2:
            errors.append(f'concepts.{name}: needs at least 2 levels, found {list(phrases)}; "" leaves the slot unsaid')
        twice = sorted({str(phrase) for phrase in phrases if list(phrases).count(phrase) > 1})
        errors += [f"concepts.{name}: names the level {phrase!r} twice" for phrase in twice]
    return errors


def _phrase_error(phrase: Any) -> str | None:
    """Return what is wrong with one level, or None if it is valid."""
    unsaid = 'to leave the slot unsaid write ""'
    error = None
    if isinstance(phrase, bool):
        error = "is a yes or no to YAML, as on, off, yes, no, true and false are: put the word in quotes"
    elif isinstance(phrase, int | float):
        error = f'is a number: put it in quotes ("{phrase:g}"), or write it as a word'
    elif not isinstance(phrase, str):
        error = f"is not a word or phrase; {unsaid}"
    elif "{" in phrase or "}" in phrase:
        error = "has braces, which only templates may have"
    elif phrase != " ".join(phrase.split()):
        error = f"has stray spaces, expected {' '.join(phrase.split())!r}"
    elif phrase and not any(c.isalnum() for c in phrase):
        error = f"says nothing; {unsaid}"
    return f"level {phrase!r} {error}" if error else None


def prompt_space(levels: Mapping[str, Sequence[str]]) -> ConceptSpace:
    """Build the grid of words from `concepts:` that `check_slots` accepted.

    The neutral level is the one that says least: "", or else the one that only names its slot (`animal: [animal, cat]`)
    or the slot's last word (`other_animal: [animal, cat]`). A concept without any of these has no neutral level.
    """
    return ConceptSpace(
        tuple(
            Concept(name, tuple(phrases), ordered=False, neutral=_neutral(name, phrases))
            for name, phrases in levels.items()
        )
    )


def _neutral(name: str, phrases: Sequence[str]) -> str | None:
    spoken = name.replace("_", " ")
    return next((word for word in (UNSAID, name, spoken, spoken.split(" ")[-1]) if word in phrases), None)


def read_templates(source: Sequence[str] | str, inputs: Path, where: str = "prepare.templates") -> list[str]:
    """Return the given templates, or read a file: one per line, skipping empty lines and those that begin with #.

    Raises a UsageError when there is no such file, it is not UTF-8, or it contains no template.

    Args:
        source: the templates, or the name of a file under `inputs`.
        inputs: data/<audit>/inputs.
        where: the key in params.yaml, for messages.
    """
    if not isinstance(source, str):
        return [template.strip() for template in source]
    if "{" in source:
        raise UsageError(f"{where}: found one template, expected the name of a file or a list: [{source!r}]")
    path = local_file(inputs, source, where)
    if not path.is_file():
        raise UsageError(f"{where}: {path} is not a file, expected a text file with one template per line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: {path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    templates = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not templates:
        raise UsageError(
            f"{where}: {path} holds no template, expected one a line (those that begin with # are skipped)"
        )
    return templates


def check_templates(templates: Sequence[str], slots: Sequence[str], where: str) -> list[str]:
    """List what is wrong with templates, one line per error: each must contain every slot exactly once.

    Args:
        templates: from `read_templates`.
        slots: names of the concepts.
        where: the key in params.yaml, for messages.
    """
    if not templates:
        return [f"{where}: no templates, expected at least one with {_braced(slots)}"]
    errors, seen = [], dict[str, int]()
    for n, template in enumerate(templates, start=1):
        wrong = list(_template_errors(template, slots))
        if not wrong:
            first = seen.setdefault(fill(template, {slot: f"z_{slot}" for slot in slots}), n)
            wrong = [f"says the same as template {first}"] if first < n else []
        errors += [f"{where}: template {n}, {template!r}, {error}" for error in wrong]
    return errors


def _template_errors(template: str, slots: Sequence[str]) -> Iterator[str]:
    expected = f"expected each of {_braced(slots)} once"
    if "{{" in template or "}}" in template:
        yield f"has double braces; {expected}"
        return
    try:
        fields = [field for field in Formatter().parse(template) if field[1] is not None]
    except ValueError:
        yield f"has a brace too many or too few; {expected}"
        return
    names = [name or "" for _, name, _, _ in fields]
    for name, (_, _, form, conversion) in zip(names, fields, strict=True):
        if form or conversion:
            yield f"has a format or conversion in {{{name}}}, a slot is a name alone"
        elif name not in slots:
            yield f"has an unknown slot {{{name}}}{did_you_mean(name.strip(), slots)}; {expected}"
    yield from (f"has {{{slot}}} {names.count(slot)} times; {expected}" for slot in slots if names.count(slot) > 1)
    yield from (f"lacks {{{slot}}}; {expected}" for slot in slots if slot not in names)


def _braced(slots: Sequence[str]) -> str:
    return ", ".join(f"{{{slot}}}" for slot in slots)


def fill(template: str, words: Mapping[str, str]) -> str:
    """Fill a template that `check_templates` accepted, with a phrase for each slot ("" says nothing)."""
    return "".join(text for text, _ in pieces(template, words))


def pieces(template: str, words: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the filled prompt as pieces of (text, slot), slot "" for the template's own text; joined they are `fill`.

    Unsaid slots, and text that was tidied away, have no piece.
    """
    parts: list[tuple[str, str]] = []
    for text, slot, _, _ in Formatter().parse(template):
        parts.append((text, ""))
        if slot is not None:
            parts.append((words[slot], slot))
    parts = [(text if slot else _with_article(text, parts[n + 1 :]), slot) for n, (text, slot) in enumerate(parts)]
    marked = [(character, slot) for text, slot in parts for character in re.sub(r"\s", " ", text)]
    for untidy in UNTIDY:
        prompt = "".join(character for character, _ in marked)
        cut = {i for match in untidy.finditer(prompt) for i in range(*match.span())}
        marked = [mark for i, mark in enumerate(marked) if i not in cut]
    return [("".join(c for c, _ in run), slot) for slot, run in groupby(marked, key=itemgetter(1))]


def _with_article(text: str, behind: Sequence[tuple[str, str]]) -> str:
    """Adapt "a" or "an" at the end of the template's text to the word after it."""
    word = re.search(r"\w.*", unicodedata.normalize("NFD", "".join(text for text, _ in behind)))
    if not word:
        return text
    n = "n" if VOWEL.match(word[0]) and not CONSONANT.match(word[0]) else ""
    return ARTICLE.sub(rf"\g<1>{n}\g<2>", text)
