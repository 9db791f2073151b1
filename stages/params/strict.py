"""Strict reading of what people write: YAML as plain data of bounded size, and models in which unknown keys are errors.

Errors state the place, what was found and what was expected. Aliases are shared, not copied, so a file of a few lines
can stand for billions of values: its size with aliases expanded is computed before anything is built.
"""

import contextlib
import math
import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from stages.core.errors import InfrastructureError, UsageError, did_you_mean, escape_controls, one_line

MAX_BYTES = 2 * 2**20  # a search of 10,000 shares takes half a megabyte
MAX_VALUES = 200_000  # with aliases expanded
MAX_DEPTH = 50  # Python recurses into the data
_MAX_DIGITS = 100
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, if available
_YAML = "tag:yaml.org,2002:"
_PLAIN = frozenset(_YAML + name for name in ("str", "int", "float", "bool", "null"))
_MERGE = f"{_YAML}merge"
_NO_TEXT = ("Cc", "Cs")  # control characters, and surrogates, which UTF-8 cannot encode


def read_bytes(path: Path) -> bytes:
    """Read the content of a file, at most one byte more than `parse_yaml` accepts.

    Raises a FileNotFoundError if it does not exist; a UsageError if it is not a file, or reading it is not permitted;
    an InfrastructureError if the disk fails.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except PermissionError:
        raise UsageError(f"{path} cannot be read: permission denied") from None
    except OSError as error:
        raise InfrastructureError(f"{path} cannot be read: {error.strerror}") from None


def parse_yaml(data: bytes, name: str) -> Any:
    """Parse YAML that consists of mappings, lists, text, finite numbers, booleans and null.

    Raises a UsageError of one line, if it is or contains anything else.

    Args:
        data: the content of a file.
        name: the file's name, for messages.
    """
    if len(data) > MAX_BYTES:
        raise UsageError(f"{name} is larger than {MAX_BYTES // 2**20} MB")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1} is 0x{data[error.start]:02X}"
        raise UsageError(f"{name} is not UTF-8 text: {found}; save it as UTF-8") from None
    if text.startswith("\ufeff"):
        raise UsageError(f"{name} begins with a byte order mark; save it as UTF-8 without one")
    try:
        _check_depth(text, name)
        root = yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise UsageError(f"{name} is not valid YAML: {one_line(error)}") from None
    return None if root is None else _Document(name).built(root)


def _check_depth(text: str, name: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise UsageError(f"{name}, line {event.start_mark.line + 1}: nested more than {MAX_DEPTH} levels deep")


class _Document:
    """Checks the nodes of one document, each once, and builds the data."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._constructor = yaml.constructor.SafeConstructor()
        self._extents: dict[yaml.Node, tuple[int, int] | None] = {}  # None while a node's children are visited

    def built(self, root: yaml.Node) -> Any:
        self._extent(root)
        try:
            return self._constructor.construct_document(root)
        except yaml.YAMLError as error:  # a merge with something other than a mapping
            raise UsageError(f"{self._name} is not valid YAML: {one_line(error)}") from None

    def _error(self, node: yaml.Node, what: str) -> UsageError:
        return UsageError(f"{self._name}, line {node.start_mark.line + 1}: {what}")

    def _extent(self, node: yaml.Node) -> tuple[int, int]:
        """Return the number of values of a node with aliases expanded, and their depth."""
        if node in self._extents:
            known = self._extents[node]
            if known is None:
                raise self._error(node, "a value contains itself by an alias")
            return known
        self._extents[node] = None
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node)
            extent = 1, 0
        else:
            mapping = isinstance(node, yaml.MappingNode)
            if node.tag != _YAML + ("map" if mapping else "seq"):
                raise self._error(node, f"unexpected tag {node.tag[:60]!r}, expected plain YAML")
            if mapping:
                self._check_keys(node)
            inner = [self._extent(value) for value in ([v for _, v in node.value] if mapping else node.value)]
            extent = 1 + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)
        if extent[0] > MAX_VALUES:
            raise self._error(node, f"more than {MAX_VALUES:,} values, aliases written out")
        if extent[1] > MAX_DEPTH:
            raise self._error(node, f"nested more than {MAX_DEPTH} levels deep, aliases written out")
        self._extents[node] = extent
        return extent

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, "a key is a list or a mapping, expected text")
            if key.tag == _MERGE:
                continue
            if key.tag not in (f"{_YAML}str", f"{_YAML}int", f"{_YAML}float"):  # levels are keys of `usage:`
                raise self._error(key, f"YAML does not read the key {key.value[:60]!r} as text: put it in quotes")
            value = self._check_scalar(key)
            if value in seen:
                raise self._error(key, f"the key {key.value[:60]!r} stands there twice")
            seen.add(value)

    def _check_scalar(self, node: yaml.ScalarNode) -> Any:
        shown = repr(node.value[:60])
        if node.tag == f"{_YAML}timestamp":
            raise self._error(node, f"YAML reads {shown} as a date: put it in quotes")
        if node.tag not in _PLAIN:
            raise self._error(node, f"unexpected tag {node.tag[:60]!r} of {shown}, expected plain YAML")
        if node.tag == f"{_YAML}str":
            odd = next((c for c in node.value if c not in "\n\t" and unicodedata.category(c) in _NO_TEXT), None)
            if odd is not None:
                raise self._error(node, f"text holds the character U+{ord(odd):04X}")
            return node.value
        kind = node.tag.removeprefix(_YAML)
        try:
            if len(node.value) > _MAX_DIGITS:
                raise ValueError
            value = self._constructor.construct_object(node)
        except Exception:  # PyYAML passes on whatever its conversions raise
            raise self._error(node, f"{shown} is not a valid {kind}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self._error(node, f"{shown} is not a finite number")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise self._error(node, f"{shown} is beyond the whole numbers of 64 bits")
        return value


_MOST = 2000  # characters of a message: one screen
_MOST_OF_ONE = 400  # of one error
_short = reprlib.Repr()
_short.maxlevel, _short.maxdict, _short.maxlist, _short.maxtuple = 2, 4, 8, 8
_short.maxstring = _short.maxlong = _short.maxother = 80


B = TypeVar("B", bound=BaseModel)
# Keys of older versions, as paths from the top of params.yaml, and what became of each.
OLD_KEYS = {"shards": "is now audits.NAME.discover.shards alone"}
# The same for paths from an entry of `audits:` or `repairs:`.
OLD_KEYS_OF_AUDIT = {
    "code": "is not needed any more, the module is found through task: remove this line",
    "discover.control": "is now discover.baseline",
    "prepare.pictures": "is now prepare.data",
    "prepare.data.dataset": "is now prepare.data.datasets",
    "prepare.generation.dtype": "is now compute.dtype",
    "prepare.model.dtype": "is now compute.dtype",
}
OLD_KEYS_OF_REPAIR = {
    "restructure.aim": "is always modes now: remove this line",
    "restructure.settings.folder.dataset": "is now restructure.settings.folder.datasets",
}


class Strict(BaseModel):
    """Base of all configuration models: an unknown key is an error, not a silent default, and nothing is converted.

    Yes is not 1, and neither "3" nor 3.0 is a whole number, but a whole number is a number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


def validation_lines(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return one line per pydantic error: place, problem, value found, and a suggestion for a mistyped key."""
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part)[:80] for part in item["loc"])
        where = f"{prefix}.{where}".strip(".")
        if item["type"] == "extra_forbidden":
            known = _keys_at(model, item["loc"][:-1])
            hint = did_you_mean(str(item["loc"][-1])[:80], known)
            lines.append(f"{where}: unknown key{hint}; expected one of {', '.join(sorted(known))}")
        elif item["type"] == "missing":
            lines.append(f"{where}: missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            found = "" if item["type"] == "value_error" else f", found {short_value(item['input'])}"
            lines.append(f"{where}: {message}{found}" if where else message + found)
    return lines


def _keys_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    here: Any = model
    for part in loc:
        field = here.model_fields.get(str(part)) if _is_model(here) else None
        here = here if field is None else field.annotation
        for argument in getattr(here, "__args__", ()):  # dict[str, Model] and Model | None
            here = argument if _is_model(argument) else here
    return [field.alias or name for name, field in here.model_fields.items()] if _is_model(here) else []


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def checked(model: type[B], data: Mapping[str, Any], where: str) -> B:
    """Validate a block.

    Raises a UsageError with one line per error.

    Args:
        where: its key in params.yaml, or its file, for messages.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise UsageError("\n".join(validation_lines(error, model, where))) from None


def short_value(value: Any) -> str:
    """Format a value for messages, always short."""
    text = _short.repr(value)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            text += f", which YAML reads as text: write {float(value):g} without quotes"
    return text


def errors_in(name: str, lines: Sequence[str]) -> UsageError:
    """Combine all errors of a file into one error of at most a screen."""
    told, size = [], 0
    for line in lines:
        shown = escape_controls(line[: _MOST_OF_ONE + 1])
        told.append(f"  {shown[:_MOST_OF_ONE] + ' ...' if len(shown) > _MOST_OF_ONE else shown}")
        size += len(told[-1].encode())
        if size > _MOST - _MOST_OF_ONE and len(told) < len(lines):
            told.append(f"  and {len(lines) - len(told)} more")
            break
    return UsageError(f"{len(lines)} error(s) in {name}:\n" + "\n".join(told))


def refuse_old_keys(block: Any, old_keys: Mapping[str, str]) -> Any:
    """Return the block if it has none of the keys of older versions.

    Raises a ValueError with the old keys, and what became of them.
    """
    found = [f"{key} {advice}" for key, advice in old_keys.items() if _has_key(block, key.split("."))]
    if found:
        raise ValueError("; ".join(found))
    return block


def _has_key(block: Any, path: list[str]) -> bool:
    for key in path:
        if not isinstance(block, Mapping) or key not in block:
            return False
        block = block[key]
    return True
