"""A class or public function name means one thing, so that whoever reads it knows which it is."""

import ast
from collections import defaultdict

from tests.workspace import ROOT

# Names that several kinds of models, stages or runners share because they do the same: what a contract asks of each. By
# the folder they are shared in; outside it they mean nothing else.
SHARED = {
    "stages/tasks/": {
        "DiscrepancyConfig", "EndpointModel", "HubDataset", "ImageFolder", "JsonLines", "JudgeSource", "ModelSource",
        "PrepareConfig", "RepairSettings", "TransformersModel", "about", "choose_items", "conflicts", "discrepancy",
        "known", "loading", "made", "model_hash", "move", "repair", "verify", "weighted",
    },
    "stages/": {"check_concepts", "headline_of", "metrics_of", "total_variation", "write"},
    "": {"main"},
    "flows/places/runners/": {"opened"},
}  # fmt: skip


def test_a_name_means_one_thing():
    homes = defaultdict(list)
    for path in [path for folder in ("stages", "flows") for path in sorted((ROOT / folder).rglob("*.py"))]:
        if path.parent.name == "commands":  # named as people type them
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                homes[node.name].append(path.relative_to(ROOT).as_posix())
    twice = {name: places for name, places in homes.items() if len(places) > 1}
    folder_of = {name: folder for folder, names in SHARED.items() for name in names}
    inside = {name: [p for p in places if p.startswith(folder_of.get(name, "?"))] for name, places in twice.items()}
    assert {name: places for name, places in twice.items() if inside[name] != places} == {}
    assert folder_of.keys() - twice.keys() == set(), "these are shared no more"
