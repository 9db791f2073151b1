"""`faded ratings --spot-check`: randomly drawn probes for people to judge, and the failure rate that they correct."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from flows.terminal import new_table, print_plain
from flows.workspace.edit_params import with_file
from flows.workspace.yaml_edit import edit_file
from stages.core.errors import UsageError
from stages.core.files import replace_file
from stages.core.intervals import wilson
from stages.landscape.rates import rate_in_use
from stages.landscape.spot_check import behind_apostrophe, correct, draw_uses, parse_spot_check
from stages.params import Params
from stages.records import audit_folder
from stages.records.folder import Discover
from stages.tasks.contract import Exhibit

PARAMS = Path("params.yaml")


def draw_spot_check(name: str, path: Path, draws: int, seed: int, console: Console) -> None:
    """Write a table of randomly drawn probes for people to judge, with pictures in a folder beside it.

    It does not say what the automatic measure found, so that this does not sway them.

    Raises:
        UsageError: if there are no probes.
    """
    from stages.audit_run import AuditRun

    found = _search(name)
    task = AuditRun(name, "summarize").judged_task()
    space, control = task.concepts, found.probes[found.probes["role"] == "control"]
    drawn = draw_uses(space, control, draws, seed)
    cells = drawn[space.names].to_numpy(dtype=np.int64)
    shown = task.exhibit(drawn["item"].tolist(), cells)
    expected = task.items.table.set_index("id")["label"].reindex(drawn["item"])
    pictures = [_pictures(path, k, exhibit) for k, exhibit in enumerate(shown, 1)]
    table = pd.DataFrame(
        {
            "draws": drawn["draws"].to_numpy(),
            "item": drawn["item"].to_numpy(),
            "cell": [" ".join(map(str, cell)) for cell in cells.tolist()],
            "where": [space.describe(cell) for cell in cells],
            "input": [exhibit.text or "" for exhibit in shown],
            "picture": pictures,
            "expected": expected.astype(str).to_numpy(),
            "answer": drawn["output"].to_numpy(),
            "fails": "",
        }
    )
    texts = ["item", "where", "input", "expected", "answer"]
    table[texts] = table[texts].astype(str).map(behind_apostrophe)
    replace_file(path, table.to_csv(index=False))
    print_plain(
        console,
        f"{len(table)} probes ({draws} draws, as they occur in use) written to {path}: write yes or no into the column"
        f" `fails` of each, then run the same command again",
    )


def _pictures(path: Path, number: int, exhibit: Exhibit) -> str:
    """Write the pictures of a probe, its input or what the model drew; return the name of what is to be judged."""
    name = ""
    for kind, data in (("input", exhibit.image), ("answer", exhibit.drawn)):
        if data is not None:
            file = path.with_suffix("") / f"{number:03d}-{kind}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, data)
            name = file.as_posix()
    return name


def show_spot_check(params: Params, name: str, path: Path, console: Console, *, write: bool) -> None:
    """Print the failure rate by the measure, by people alone and corrected; with `write`, put it in force.

    Raises:
        UsageError: if a verdict is missing or on another answer, or params.yaml's layout does not allow this.
    """
    found = _search(name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from None
    judged = parse_spot_check(data, path)
    folder = audit_folder(name).summarize
    if not folder.has("landscape"):
        raise UsageError(f"audit {name!r} has no landscape to correct yet: run `faded audit {name}`")
    space = folder.landscape.space
    control = found.probes[found.probes["role"] == "control"]
    corrected = correct(space, control, judged, params.audit(name).seed)
    alone = wilson(int(judged["draws"] @ judged["fails"]), corrected.overall.n)
    table = new_table("failure rate in use", "", "95% interval", right=("", "95% interval"))
    rates = [
        ("by the automatic measure", rate_in_use(space, control["failed"].to_numpy(dtype=bool), control).rate),
        ("by people's verdicts alone", alone),
        ("corrected by both", corrected.overall.rate),
    ]
    for what, rate in rates:
        table.add_row(what, f"{rate.value:.1%}", f"{rate.low:.1%} to {rate.high:.1%}")
    console.print(table)
    wrong = f"{corrected.only_automatic} only the measure, {corrected.only_people} only people found a failure in"
    console.print(f"of {corrected.overall.n} draws: {wrong}")
    if write:
        entry = {"file": path.as_posix(), "sha256": hashlib.sha256(data).hexdigest()}
        after, _ = with_file(PARAMS.read_bytes().decode("utf-8"), name, ("summarize", "spot_check"), entry)
        edit_file(PARAMS, lambda _: after, console)
        console.print(f"named in {PARAMS}: commit {path}, and run `faded audit {name}`")


def _search(name: str) -> Discover:
    found = audit_folder(name).discover
    if not found.has("probes"):
        raise UsageError(f"audit {name!r} has no probes to draw from yet: run `faded audit {name}`")
    return found
