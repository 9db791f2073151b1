"""A whole audit gives the same bytes on any x86-64 CPU with AVX2, whatever its kind and however many cores it has.

QEMU emulates other CPUs (Debian: qemu-user). It emulates neither AVX-512 nor the cores' caches of a real one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.core.environment import ALIKE, DEFAULTS
from tests.images import write_images
from tests.workspace import STAGES, Workspace, audit_params, make_workspace, repair_params

needs_avx2 = pytest.mark.skipif(not ALIKE, reason="this CPU has no AVX2, or is no x86-64")
needs_qemu = pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="no qemu-x86_64 (Debian: qemu-user)")

# Say when or where a stage ran.
_OF_THE_RUN = {"provenance.json", "metrics.json", "headline.json", "code.json"}


def stripes(path: Path, explorer: str = "auto") -> Workspace:
    """A workspace with a small audit of a small network, and its repair, that no stage of has run."""
    audit = audit_params(
        task="stages.tasks.classification:ImageClassification",
        prepare={
            "model": {"train": "small_cnn", "epochs": 2, "batch_size": 32},
            "data": {"parquet": "images.parquet"},
            "items": {"discover": 30, "repair": 60, "test": 40},
        },
        concepts={"rotation": [0, 15, 30], "darkening": [0, 0.4, 0.8], "noise": [0, 0.1, 0.2], "blur": [0, 1.0]},
        discover={"explorer": explorer, "baseline": "random", "budget": 200, "microscopic": {"items": 5, "budget": 50}},
    )
    restructure = {"method": "all-layers", "control": "as_used", "settings": {"epochs": 1}}
    repair = repair_params(restructure=restructure, gates={"target_failure_rate": {"change_max": 0.0}})
    workspace = make_workspace(path, {"stripes": audit}, {"stripes": repair})
    write_images(
        path / "data/stripes/inputs/images.parquet", pools={"train": 300, "discover": 30, "repair": 60, "test": 40}
    )
    return workspace


def run_on(workspace: Workspace, emulator: tuple[str, ...] = (), **env: str) -> dict[str, str]:
    """Run all stages on a CPU; return the hash of each file that they hand on."""
    for stage in ("code", *STAGES):
        command = [*emulator, sys.executable, "-m", f"stages.{stage}", "stripes"]
        # One core: processes that an emulated one starts would not be emulated.
        done = subprocess.run(
            command,
            cwd=workspace.path,
            env={**workspace.env, **DEFAULTS, "LOKY_MAX_CPU_COUNT": "1", **env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    home = workspace.path / "data/stripes"
    return {
        path.relative_to(home).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.name not in _OF_THE_RUN
    }
