"""Check of a written repair: a fresh process reads it as any user would, and compares it with the model in memory.

Otherwise `re_evaluate` would judge a wrongly written model as if it were the repair. A task has a module whose `main`
reads a folder, queries the model as `compare_in_fresh_process` was told, and calls `compare`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from stages.core.errors import BugError, run_as_command

# Another process may compute other last bits (threads, kernels), which is far less than what the repair changed.
TOLERANCE = 0.02


def compare_in_fresh_process(
    module: str, folder: Path, base: Path, known: Mapping[str, Tensor], question: Mapping[str, Any]
) -> None:
    """Run a task's module, which compares the answers of the repair in a folder with known ones.

    Args:
        module: run as `python -m module FOLDER BASE TENSORS ASKED`, see `command_line`.
        folder: the repair.
        base: the model folder it was made for.
        known: answers of the models in memory before and after the repair.
        question: the query, as plain data.

    Raises:
        BugError: if the module fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tensors, asked = Path(scratch) / "known.safetensors", Path(scratch) / "asked.json"
        save_file(dict(known), tensors)
        asked.write_text(json.dumps(question, ensure_ascii=False), encoding="utf-8")
        safe = ["-P"] if sys.flags.safe_path else []  # as this stage was started
        command = [sys.executable, *safe, "-m", module, folder, base, tensors, asked]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        told = done.stderr.rpartition("error: ")[2].strip()  # libraries print warnings before it
        raise BugError(f"the repaired model could not be read back from {folder}: {told}")


def compare_answers(what: str, found: Tensor, known: Mapping[str, Tensor]) -> None:
    """Compare answers read back with those `before` and `after` the repair.

    Raises:
        BugError: if they differ from `after` by more than a small part of what the repair changed.
    """
    before, after = known["before"].float(), known["after"].float()
    changed, off = float((after - before).norm()), float((found.float() - after).norm())
    if not off <= TOLERANCE * changed:
        raise BugError(
            f"its {what} differ by {off:.3g} from those in memory, where the repair changed them by {changed:.3g}"
        )


def command_line(doc: str | None, main: Callable[[Path, Path, Path, Path], None]) -> None:
    """Run a module's `main` with the four paths of its command."""
    parser = argparse.ArgumentParser(description=doc)
    for name in ("folder", "base", "tensors", "asked"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    run_as_command(lambda: main(arguments.folder, arguments.base, arguments.tensors, arguments.asked))
