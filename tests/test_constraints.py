"""constraints.txt has a tested version of every package, with hashes if all users get the same files."""

import re
import tomllib
from itertools import chain

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.workspace import ROOT

PINNED = {
    canonicalize_name(name): (version, hashes)
    for name, version, hashes in re.findall(
        r"^([\w.-]+)==(\S+)((?: \\\n\s+--hash=sha256:[0-9a-f]{64})*)$",
        (ROOT / "constraints.txt").read_text(),
        re.MULTILINE,
    )
}


def test_every_package_named_in_pyproject_has_a_version_that_its_range_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = chain(project["dependencies"], *project["optional-dependencies"].values())
    wanted = [r for r in map(Requirement, named) if r.name != project["name"]]
    assert [str(r) for r in wanted if PINNED.get(canonicalize_name(r.name), ("", ""))[0] not in r.specifier] == []


def test_only_torch_comes_without_hashes_because_each_machine_has_its_own_build():
    assert {name for name, (_, hashes) in PINNED.items() if not hashes} == {"torch", "torchvision"}
    assert len(PINNED) == (ROOT / "constraints.txt").read_text().count("==")
