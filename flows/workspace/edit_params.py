"""Changes to params.yaml by commands: levels, shares, compute, ratings and keys of an audit, and nothing else.

Each raises a UsageError if the file's layout does not allow it without changing other lines.

Only the edited lines of a YAML file change, and comments are kept: ruamel.yaml writes the lines that change; all others
are copied from the original text.
"""

import difflib
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.markup import escape
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, SingleQuotedScalarString

from stages.concepts import Level
from stages.core.errors import UsageError
from stages.core.files import replace_file
from stages.params.usage import MeasuredConfig


class LayoutError(ValueError):
    """A text's layout does not allow a change without changing other lines."""


def edited(
    text: str, change: Callable[[Any], object], written: Callable[[str], str] = str, *, shared: bool = False
) -> str:
    """The text of a YAML file after a change.

    Raises a LayoutError if this cannot be done without changing other lines.

    Args:
        change: changes the content, a mapping, in place: the edited document, and a plain copy to compare it with.
        written: applied to each line that is rewritten.
        shared: whether content that others share by an alias may change with it.
    """
    try:
        expected = yaml.safe_load(text) or {}
        change(expected := expected if shared else unshared(expected))
        after = _edited(text, change, written)
        if yaml.safe_load(after) == expected:
            return after
    except (YAMLError, yaml.YAMLError, KeyError, TypeError) as error:
        raise LayoutError(str(error)) from None
    raise LayoutError("something else would change")


def edit_file(path: Path, change: Callable[[str], str], console: Console | None = None) -> None:
    """Change the text of a file, and print the changed lines."""
    before = path.read_bytes().decode("utf-8")  # keeps line ends
    after = change(before)
    if console is not None:
        lines = before.splitlines(), after.splitlines()
        for line in difflib.unified_diff(*lines, str(path), str(path), n=1, lineterm=""):
            colour = {"+": "green", "-": "red"}.get(line[0], "dim")
            console.print(f"[{colour}]{escape(line)}[/]", soft_wrap=True)
    replace_file(path, after)


def in_one_line(values: dict[str, Any] | list[Any]) -> Any:
    """A mapping or a list that is written on one line."""
    flow = CommentedMap(values) if isinstance(values, dict) else CommentedSeq(values)
    flow.fa.set_flow_style()
    return flow


def in_quotes(value: str) -> str:
    """Text, quoted where YAML 1.1, which Prefect, DVC and Faded read, needs that within brackets."""
    if "\n" in value:
        return DoubleQuotedScalarString(value)
    quote = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True)[1]
    return {"'": SingleQuotedScalarString, '"': DoubleQuotedScalarString}.get(quote, str)(value)


def round_trip() -> YAML:
    """Ruamel's loader and dumper, set up to keep comments, quotes and order."""
    tool = YAML()
    tool.Representer = _Representer
    tool.preserve_quotes = True
    tool.width = 10**6
    tool.indent(mapping=2, sequence=4, offset=2)
    return tool


def dumped(document: Any) -> str:
    """The text of a document of `round_trip`."""
    text = io.StringIO()
    round_trip().dump(document, text)
    return text.getvalue()


class _Representer(RoundTripRepresenter):
    """A separate class, as ruamel registers representers by class, and the process's other YAML must not change."""

    def represent_float(self, data: float) -> Any:
        """Write floats without an exponent, which YAML 1.1 reads as text, and whole ones as people do, 10 for 10.0."""
        kind = "int" if data.is_integer() else "float"
        return self.represent_scalar(f"tag:yaml.org,2002:{kind}", np.format_float_positional(data, trim="-"))


_Representer.add_representer(float, _Representer.represent_float)


def unshared(value: Any) -> Any:
    """A copy as plain data, in which content shared by an alias is duplicated."""
    if isinstance(value, Mapping):
        return {key: unshared(inner) for key, inner in value.items()}
    return [unshared(inner) for inner in value] if isinstance(value, list | tuple) else value


def _edited(text: str, change: Callable[[Any], object], written: Callable[[str], str]) -> str:
    lines = text.split("\n")
    # ruamel moves comment and blank lines around with the content before them, so it only gets the other lines.
    content = [n for n, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    bare = [lines[n].rstrip("\r") for n in content]
    document = round_trip().load("\n".join(bare) + "\n") or CommentedMap()
    _keep_anchors(document)
    before = dumped(document).splitlines() if bare else []
    change(document)
    after = dumped(document).splitlines()

    starts = _starts(bare, before)
    ends = "\r" if "\r\n" in text else ""
    made: list[str] = []
    done = 0  # number of lines processed
    for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        first, stop = starts(i1), starts(i2)
        at = content[first] if first < stop else (content[first - 1] + 1 if first else len(lines) - 1)
        made += lines[done:at]
        shift = _indent(bare[first - 1]) - _indent(before[i1 - 1]) if i1 else 0
        for line, old in zip_longest(after[j1:j2], bare[first:stop][: j2 - j1], fillvalue=""):
            made.append(" " * max(0, _indent(line) + shift) + _commented(written(line.lstrip()), old) + ends)
        done = content[stop - 1] + 1 if first < stop else at
        made += [lines[n] for n in sorted(set(range(at, done)) - set(content))]  # comments stay
    return "\n".join(made + (lines[done:] or [""]))  # a rewritten last line gets a line end


def _commented(line: str, old: str) -> str:
    """A line with its comment at the same distance as in the old line, if that has the same comment."""
    for space in re.finditer(r"\s+(?=#)", old):
        if line.endswith(comment := old[space.end() :]):
            return line.removesuffix(comment).rstrip() + space.group() + comment
    return line


def _keep_anchors(value: Any) -> None:
    """Make ruamel keep anchors that no alias refers to."""
    if isinstance(value, CommentedMap | CommentedSeq):
        if value.yaml_anchor() is not None:
            value.anchor.always_dump = True
        for inner in value.values() if isinstance(value, CommentedMap) else value:
            _keep_anchors(inner)


def _starts(lines: Sequence[str], written: Sequence[str]) -> Callable[[int], int]:
    """Map the n-th line that ruamel writes to the line of the text where it begins; only white space may differ."""
    where = {length: n for n, length in reversed(list(enumerate(_lengths(lines))))}
    lengths = _lengths(written)
    if "".join("".join(lines).split()) != "".join("".join(written).split()):
        raise LayoutError("ruamel.yaml would write other values in another way")

    @cache
    def start(n: int) -> int:
        if lengths[n] not in where:
            raise LayoutError("a line holds several of ruamel.yaml's")
        return where[lengths[n]]

    return start


def _lengths(lines: Iterable[str]) -> list[int]:
    """Number of characters other than white space before each line, and before the end."""
    return list(accumulate((len("".join(line.split())) for line in lines), initial=0))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def with_proposed(
    text: str,
    audit: str,
    concepts: Mapping[str, Sequence[Level]],
    prepare: Mapping[str, Any],
    proposed: Mapping[str, str],
) -> str:
    """The text of params.yaml with an audit's proposed concepts, by whom, and what they need under `prepare:`.

    Concepts have all their levels, with the new ones behind; lists and mappings of texts are new or longer.
    """

    def change(params: Any) -> None:
        block = params["audits"][audit]
        if isinstance(block["concepts"], str):
            raise LayoutError(f"concepts: {block['concepts']} is the name of a grid")
        for name, levels in concepts.items():
            there = block["concepts"].setdefault(in_quotes(name), in_one_line([]))
            there.extend(map(as_level, levels[len(there) :]))
        for key, new in prepare.items():
            if isinstance(new, Mapping):
                block["prepare"].setdefault(key, {}).update(
                    {in_quotes(name): in_quotes(one) for name, one in new.items()}
                )
            else:
                block["prepare"][key] = [in_quotes(one) for one in new]
        block.setdefault("proposed", in_one_line({})).update(
            {in_quotes(name): in_quotes(told) for name, told in proposed.items()}
        )

    wanted = f"there:\n  concepts: {dict(concepts)}\n  prepare: {dict(prepare)}\n  proposed: {dict(proposed)}"
    return _changed(text, change, f"audits.{audit}", wanted)


def with_usage(text: str, audit: str, levels: Mapping[str, Mapping[Level, float]], measured: MeasuredConfig) -> str:
    """The text of params.yaml with measured shares of levels under `usage:` of an audit.

    Levels of other concepts and named combinations stay. The number of changes goes, as it now follows from the shares.
    """

    def change(params: Any) -> None:
        block = params["audits"][audit]
        if not isinstance(block.get("usage"), Mapping):
            block["usage"] = {}
        usage = block["usage"]
        usage.pop("changes", None)
        there = usage.setdefault("levels", {})
        for name, shares in levels.items():
            row: dict[Any, float] = {as_level(level): share for level, share in shares.items()}
            there[in_quotes(name)] = in_one_line(row)
        usage["measured"] = in_one_line(
            {
                "inputs": measured.inputs,
                "source": in_quotes(measured.source),
                "worth": {in_quotes(name): as_level(n) for name, n in measured.worth.items()},
            }
        )

    wanted = "\n".join(f"    {name}: {_one_line(shares)}" for name, shares in levels.items())
    return _changed(text, change, f"audits.{audit}.usage", f"there:\n  levels:\n{wanted}")


def with_shards(text: str, audit: str, shards: int, gpus: int | None) -> str:
    """The text of params.yaml with other `discover.shards`, 1 for none, and `compute.gpus`, None to leave them."""

    def change(params: Any) -> None:
        block = params["audits"][audit]
        if shards > 1:
            block["discover"]["shards"] = shards
        else:
            block["discover"].pop("shards", None)
        if gpus is not None:
            block.setdefault("compute", {})["gpus"] = gpus

    asked = "" if gpus is None else f", and audits.{audit}.compute.gpus: {gpus}"
    return _changed(text, change, f"the shares of {audit}", f"audits.{audit}.discover.shards: {shards}{asked} there")


def with_compute(text: str, audit: str, changes: Mapping[str, str | int]) -> str:
    """The text of params.yaml with new values in the `compute:` of an audit; missing keys are added."""
    wanted = ", ".join(f"{name}: {value}" for name, value in changes.items())
    return _changed(
        text,
        lambda params: params["audits"][audit].setdefault("compute", {}).update(changes),
        f"audits.{audit}.compute",
        f"there: {wanted}",
    )


def with_keys(text: str, keys: Mapping[str, Mapping[str, str]]) -> str:
    """The text of params.yaml with other public keys, for each audit all, by reviewer; names only come and go."""

    def change(params: Any) -> None:
        for audit, listed in keys.items():
            feedback = params["repairs"][audit]["feedback"]
            if not listed:
                feedback.pop("keys", None)
                continue
            there = feedback.setdefault("keys", {})
            for name in [name for name in there if name not in listed]:
                del there[name]
            there.update({in_quotes(name): line for name, line in listed.items() if name not in there})

    wanted = "\n".join(f"  repairs.{audit}.feedback.keys: {_one_line(listed)}" for audit, listed in keys.items())
    return _changed(text, change, "the keys", f"there:\n{wanted}")


def with_file(text: str, audit: str, place: tuple[str, str], entry: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The text of params.yaml with a file of people's opinions, and other audits that share it through an alias.

    The place is `discrepancy.ratings` or `summarize.spot_check`; the entry has the file, its hash, and more.
    """
    name, key = place

    def change(params: Any) -> None:
        block = params["audits"][audit]
        own = dict(block.non_merged_items()) if isinstance(block, CommentedMap) else block
        own[name][key] = in_one_line(dict(entry))

    after = _changed(text, change, f"audits.{audit}.{name}", f"there:\n  {key}: {_one_line(entry)}", shared=True)
    old, new = (yaml.safe_load(one)["audits"] for one in (text, after))
    return after, [name for name in old if name != audit and new[name] != old[name]]


def _changed(text: str, change: Callable[[Any], object], what: str, wanted: str, *, shared: bool = False) -> str:
    try:
        return edited(text, change, shared=shared)
    except LayoutError:
        others = "" if shared else ", or other audits that share it"
        raise UsageError(
            f"{what} cannot be changed without altering the layout of params.yaml{others}; write {wanted}"
        ) from None


def as_level(level: Level) -> Level:
    """A level as people would write it."""
    if isinstance(level, str):
        return in_quotes(level)
    return int(level) if level == int(level) else level


def _one_line(entry: Mapping[Any, Any]) -> str:
    return "{" + ", ".join(f"{as_level(key)}: {value}" for key, value in entry.items()) + "}"
