"""Read YAML written by people: from any bytes, it returns plain data of bounded size or raises an error.

Aliases are shared, not copied, so a file of a few lines can stand for billions of values: its size with aliases
expanded is computed before anything is built.
"""

from __future__ import annotations

import math
import unicodedata
from pathlib import Path
from typing import Any

import yaml

from stages.core.errors import InfrastructureError, UsageError

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

    Raises:
        FileNotFoundError: if it does not exist.
        UsageError: if it is not a file, or reading it is not permitted.
        InfrastructureError: if the disk fails.
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

    Args:
        data: the content of a file.
        name: the file's name, for messages.

    Raises:
        UsageError: of one line, if it is or contains anything else.
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
        raise UsageError(f"{name} is not valid YAML: {' '.join(str(error).split())[:300]}") from None
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
            raise UsageError(f"{self._name} is not valid YAML: {' '.join(str(error).split())[:300]}") from None

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
