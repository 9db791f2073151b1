"""params.yaml may contain anything: it is valid, or refused with one message of at most 2 KB, and nothing else happens.

FADED_HYPOTHESIS=nightly draws 10,000 cases for each property.
"""

import copy
import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, note, settings
from hypothesis import strategies as st

from stages.check import check_audits
from stages.concepts import Concept, ConceptSpace
from stages.core.errors import UsageError
from stages.explorers.contract import make_explorer
from stages.params import Params, load_params, parse_yaml
from stages.tasks.load import task_class
from tests.cases import scaled
from tests.test_params import AUDIT, REPAIR, write

VALID: dict[str, Any] = {
    "audits": {"x": {**AUDIT, "concepts": {"a": [0, 1, 2], "b": ["red", "blue"]}}, "y": AUDIT},
    "repairs": {"x": REPAIR},
    "runner": "threads",
}
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGES = "a0: &a0 {k0: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}, *a{n - 1}], k{n}: 1}}\n" for n in range(1, 40)
)
HOSTILE = {
    "empty": b"",
    "binary": bytes(range(256)),
    "Latin-1": "audits: {ö: 1}".encode("latin-1"),
    "a number that is none": b"audits: !!float oops",
    "a date that is none": b"audits: 2026-13-45",
    "deeper nesting": b"{a: " * 100_000,
    "deep nesting by aliases": b"a0: &a0 {}\n" + b"".join(b"a%d: &a%d [*a%d]\n" % (n, n, n - 1) for n in range(1, 999)),
    "an alias bomb in a field": BOMB.encode() + b"audits: {x: {seed: *a39}}",
    "merges that explode": MERGES.encode(),
    "a value within itself": b"audits: &a {x: *a}",
    "an alias of nothing": b"audits: *" + b"a" * 100_000,
    "a tag of Python": b"audits: !!python/object/apply:os.system [touch hacked]",
    "a key twice": b"audits: {}\naudits: {}",
    "a key that is a list": b"? [a, b]\n: 1",
    "no number": b"audits: {x: {seed: .nan}}",
    "very many digits": b"audits: {x: {seed: " + b"9" * 100_000 + b"}}",
    "65 bits": b"audits: {x: {seed: 36893488147419103232}}",
    "a control character": b'audits: {"x\\e[31m": 1}',
    "half a character": b'audits: {"\\ud800": 1}',
    "a long key": b"audits: {}\n" + b"k" * 1000 + b": 1",
    "many wrong keys": b"".join(b"k%d: 1\n" % n for n in range(10_000)),
    "too much": b"#" * 3_000_000,
    "a space before a concept": yaml.safe_dump({"audits": {"x": {**AUDIT, "concepts": {" a": [0, 1]}}}}).encode(),
}


def refusal(path: Path) -> str | None:
    """The message if it is refused, None if it is valid; any other outcome fails the test."""
    try:
        load_params(path)
    except UsageError as error:
        told = str(error)
        assert len(told.encode()) <= 2048, told
        assert all(c.isprintable() or c == "\n" for c in told), told
        return told
    return None


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_whatever_the_bytes_are_one_short_message_says_so(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(data)
    assert refusal(path) is not None


def test_what_is_no_file_or_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.mkdir()
    assert "is not a file" in str(refusal(path))
    path.rmdir()
    os.mkfifo(path)  # nobody writes to it
    assert "is not a file" in str(refusal(path))
    path.unlink()
    path.touch(mode=0o000)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert "permission denied" in str(refusal(path))


@settings(max_examples=scaled(50))
@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.yaml"
    path.write_bytes(data)
    assert refusal(path) is not None


EXTREME = st.sampled_from(
    [True, False, None, 0, -1, 1, 2**31, 2**63 - 1, 10**12, 5e-324, 1e308, -0.0, 0.5, 3.0, "", "3", "1e-3", "--all"]
)
SCALARS = EXTREME | st.text(max_size=80) | st.integers(-(2**70), 2**70) | st.floats()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9) | SCALARS, inner, max_size=4),
)


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, one in inner for path in ((*above, key), *places(one, (*above, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A valid structure with up to three changes: a value dropped, replaced, nested, moved or added; a key renamed."""
    data = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        if not (known := places(data)):
            break
        *above, key = draw(st.sampled_from(known))
        holder: Any = data
        for step in above:
            holder = holder[step]
        match draw(st.sampled_from(["tweak", "drop", "replace", "nest", "copy", "add", "rename"])):
            case "tweak" if isinstance(holder[key], int | float):
                holder[key] = draw(st.integers(0, 10**9) | st.floats(-1, 1) | st.sampled_from([0, 1, 2**32]))
            case "tweak" if isinstance(holder[key], str):
                holder[key] = draw(st.text("abcxyz019_-. ", max_size=70))
            case "drop":
                del holder[key]
            case "replace":
                holder[key] = draw(VALUES)
            case "nest":
                holder[key] = draw(st.sampled_from([[holder[key]], {str(key): holder[key]}]))
            case "copy":
                other: Any = data
                for step in draw(st.sampled_from(known)):
                    other = dict(enumerate(other))[step] if isinstance(other, list) else other[step]
                holder[key] = copy.deepcopy(other)
            case "add" if isinstance(holder, dict):
                holder[draw(st.text(max_size=80))] = draw(VALUES)
            case "rename" if isinstance(holder, dict):
                holder[draw(st.text(max_size=80) | st.sampled_from(["--all", "con", "..", "a/b"]))] = holder.pop(key)
    return data


def is_sound(params: Params) -> None:
    """Check what stages assume about valid parameters."""
    for name, audit in params.audits.items():
        assert Path(name).name == name and not name.startswith(("-", ".")) and len(name) <= 64
        for levels in audit.concepts.values():
            assert all(isinstance(level, str) or math.isfinite(level) for level in levels)
        space = ConceptSpace(tuple(Concept(name, tuple(levels)) for name, levels in audit.concepts.items()))
        assert space.n_cells >= 2
        assert type(audit.seed) is int and 1 <= audit.discover.budget <= 10**8 and 1 <= audit.compute.threads <= 1024
    for repair in params.repairs.values():
        for measure, gate in repair.gates.model_dump(exclude_none=True, exclude={"clean_quality"}).items():
            for key, bound in gate.items():
                low, high = (0, 1) if key in ("max", "min") else (-1, 1)
                assert low <= bound < high if key.endswith("max") else low < bound <= high, (measure, gate)


@settings(max_examples=scaled(60))
@given(mutated())
def test_mutated_structures_are_refused_or_sound(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    note(path.read_text(errors="replace"))
    if refusal(path) is not None:
        return
    params = load_params(path)
    is_sound(params)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[1])
        for name, audit in params.audits.items():
            try:
                check_audits(params, [name], gpus=lambda: 0)
            except UsageError as error:
                assert len(str(error).encode()) <= 2048
            else:
                make_explorer(audit.discover.explorer, audit.discover.settings)
                task_class(name, audit)


def test_aliases_and_merges_of_a_sensible_size_are_read() -> None:
    text = b"a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 2}\nc: *a\n"
    assert parse_yaml(text, "it") == yaml.safe_load(text)


def test_the_structure_that_is_mutated_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    check_audits(load_params(write(tmp_path, VALID)), ["x", "y"], gpus=lambda: 0)
