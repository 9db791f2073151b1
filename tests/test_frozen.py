"""Results stay what they were: rewriting code must not change what an audit hands on.

If a change means to change results, `FREEZE=1 pytest tests/test_frozen.py -k small` writes tests/frozen.json.
"""

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from stages.params import DATA
from stages.records import audit_folder
from tests.finished import finished_audits, inside
from tests.workspace import ROOT, STAGES

FROZEN = Path(__file__).with_name("frozen.json")
HANDED_ON = (
    "prepare/items.parquet",
    "discover/probes.parquet",
    "summarize/landscape.parquet",
    "summarize/landscape.json",
    "report/verdict.json",
    "report/headline.json",
    "report/report.html",
    "collect_feedback/plan.json",
    "re_evaluate/probes.parquet",
    "re_evaluate/quality.parquet",
    "compare/comparison.json",
    "conclude/verdict.json",
    "conclude/headline.json",
    "conclude/report.html",
    "conclude/modes.csv",
)
ALIKE = ("mnist", "fashion", "adult", "imagenet", "questions")  # pictures and long texts differ with the CPU
DIGITS = 9  # of floats: libraries for other CPUs differ in the last bits


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


def digest(path: Path) -> str:
    """Hash what a file says, whatever version of a library wrote it."""
    if path.suffix == ".parquet":
        told = json.loads(pd.read_parquet(path).to_json(orient="split", double_precision=15))
    else:
        told = json.loads(path.read_text()) if path.suffix == ".json" else path.read_text()
        if path.suffix == ".html":  # its numbers are those of the records; versions and bytes of pictures are not ours
            told = re.sub(r'(?s)<section id="provenance".*?</section>|base64,[\w+/=]+|\d[\d.]*', "", told)
    return hashlib.sha256(json.dumps(rounded(told)).encode()).hexdigest()[:16]


def digests(data: Path) -> dict[str, str]:
    return {
        f"{audit.name}/{name}": digest(audit / name)
        for audit in sorted(data.iterdir())
        for name in HANDED_ON
        if (audit / name).exists()
    }


def test_two_small_audits_hand_on_what_they_always_did():
    found = digests(finished_audits().path / DATA)
    if os.environ.get("FREEZE"):
        FROZEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(FROZEN.read_text())


def test_a_stage_needs_only_what_the_graph_says_it_reads(tmp_path):
    """Another machine has nothing else."""
    workspace, whole = finished_audits().copy(tmp_path / "ws"), finished_audits().path / DATA / "tiny"
    home = workspace.path / DATA / "tiny"
    for kind in STAGES:
        for made in STAGES:
            shutil.rmtree(home / made, ignore_errors=True)
        with inside(workspace):
            for path in getattr(audit_folder("tiny"), kind).inputs:
                given = whole / path.relative_to(DATA / "tiny")
                if given.exists():
                    path.parent.mkdir(exist_ok=True)
                    shutil.copytree(given, path, dirs_exist_ok=True) if given.is_dir() else shutil.copy(given, path)
            importlib.import_module(f"stages.{kind}").main("tiny")
        names = [name for name in HANDED_ON if name.startswith(f"{kind}/")]
        assert [digest(home / name) for name in names] == [digest(whole / name) for name in names], kind


def test_dvc_lock_has_the_code_as_it_is():
    """So that `make audit` in a fresh clone leaves git's tree clean."""
    command = [sys.executable, "-m", "dvc", "status", "code@mnist"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "up to date" in found.stdout, f"run `faded audit mnist` and commit dvc.lock: {found.stdout}"


def locked(root: Path, audit: str) -> dict[str, str]:
    """MD5s of what an audit handed on, by dvc.lock."""
    stages = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    prefix = f"{DATA}/{audit}/"
    outs = [out for name, stage in stages.items() if name.endswith(f"@{audit}") for out in stage["outs"]]
    return {out["path"].removeprefix(prefix): out["md5"] for out in outs}


@pytest.mark.parametrize(
    "audit", [pytest.param(audit, marks=pytest.mark.nightly) for audit in (*ALIKE, "images", "news")]
)
def test_a_default_audit_hands_on_what_it_always_did(audit, tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    command = [sys.executable, "-m", "flows.cli", "audit", audit]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    before, after = locked(ROOT, audit), locked(clone, audit)
    changed = [name for name in HANDED_ON if before.get(name) != after.get(name)]
    assert set(HANDED_ON) & set(after) and not changed
    if audit in ALIKE:
        told = subprocess.run(["git", "status", "--short"], cwd=clone, capture_output=True, text=True, check=True)
        assert told.stdout == ""
