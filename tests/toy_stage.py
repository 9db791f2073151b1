"""A stage that replaces a real one: it writes every output dvc.yaml declares, from a digest of its inputs.

Further behaviour comes from toy.json in the workspace, which is not a dependency: {"discover@tiny": {"exit": 2,
"sleep": 1.0, "until": "a file is there", "kill_first": 1, "passed": false}}. Every execution is recorded in
executed.txt, those that finish also in spans.jsonl, with the times and the GPUs they were given.
"""

import atexit
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml

from stages.core.environment import die_with_parent

KIND, AUDIT = Path(__file__).stem, sys.argv[1]
RATE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100}
MODES = [
    {"id": f"M{i}", "region": {"tilt": [i]}, "text": f"tilt = {i}", "rate": 0.5, "low": 0.4, "high": 0.6}
    | {"probes": 100, "failures": 50, "estimate": 0.5, "lift": 2.0, "share": 0.25, "invalid": None}
    | {"minimal": {"reached": 0, "of": 0, "median_radius": None}}
    for i in (1, 2)
]
SUSPECTED = {"id": "S1", "region": {"tilt": [3]}, "text": "tilt = 3", "rate": None, "low": None, "high": None}
SUSPECTED |= {"probes": 0, "failures": 0, "estimate": 0.4, "share": 0.25}
LANDSCAPE = {
    "audit": AUDIT,
    "concepts": [{"name": "tilt", "levels": [0, 1, 2, 3], "unit": "", "ordered": True, "neutral": 0}],
    "threshold": 0.0,
    "overall": RATE,
    "overall_estimated": RATE,
    "effects": [],
    "modes": MODES,
    "suspected": [SUSPECTED],
    "invalid": {"count": 0, "probes": 100, **RATE, "levels": []},
    "modes_found_again": {"named": 0, "again": 0, "in_halves": {}},
    "modes_skipped": [],
    "estimator": {"name": "toy"},
    "robustness": None,
    "search": {},
    "exact": False,
    "sampled": False,
    "items": 20,
}


def entries(stage: dict, group: str) -> list[str]:
    names = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in stage.get(group, [])]
    return [name.replace("${key}", AUDIT) for name in names]


def content(path: Path) -> bytes:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return b"".join(p.read_bytes() for p in files if "__pycache__" not in p.parts)


def seal(folder: Path, report: dict, deps: list[Path]) -> None:
    """Write inputs and outputs to provenance.json like `stages.provenance.write_provenance`, but without torch."""
    home = folder.parent
    inputs = [dep for dep in deps if home in dep.parents and dep.name not in ("inputs", "decisions", "shards")]
    read = {dep.relative_to(home).as_posix(): sha256_of(dep) for dep in inputs}
    outputs = sorted(path for path in folder.glob("*") if path.name != "provenance.json")
    wrote = {path.name: sha256_of(path) for path in outputs}
    (folder / "provenance.json").write_text(json.dumps({**report, "read": read, "wrote": wrote}))


def sha256_of(path: Path) -> str:
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = sorted(p for p in path.rglob("*") if p.is_file())
    lines = "".join(f"{sha256_of(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def record_span(begin: float) -> None:
    span = {"stage": f"{KIND}@{AUDIT}", "begin": begin, "end": time.time()}
    with Path("spans.jsonl").open("a") as spans:
        spans.write(json.dumps(span | {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}) + "\n")


def use_the_task() -> None:
    from stages.tasks.load import task_class

    task_class(AUDIT, None)


def main() -> None:
    die_with_parent()
    if "never" in sys.argv:  # makes it depend on the code of the task, as a real stage does
        use_the_task()
    atexit.register(record_span, time.time())
    with Path("executed.txt").open("a") as record:
        record.write(f"{KIND}@{AUDIT}\n")
    told = json.loads(Path("toy.json").read_text()).get(f"{KIND}@{AUDIT}", {}) if Path("toy.json").exists() else {}
    print(f"toy {KIND} of {AUDIT} at work", flush=True)
    time.sleep(told.get("sleep", 0))
    while "until" in told and not Path(told["until"]).exists():
        time.sleep(0.05)
    attempts = Path(f".faded/attempts-{KIND}-{AUDIT}")
    attempts.parent.mkdir(exist_ok=True)
    tried = int(attempts.read_text()) if attempts.exists() else 0
    attempts.write_text(str(tried + 1))
    if tried < told.get("kill_first", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if "exit" in told:
        print(f"error: toy {KIND} was told to exit with {told['exit']}", file=sys.stderr)
        raise SystemExit(told["exit"])

    stage = yaml.safe_load(Path("dvc.yaml").read_text())["stages"][KIND]["do"]
    code = json.loads(Path("data", AUDIT, "code.json").read_text())[KIND]
    digest = hashlib.sha256(code.encode() + b"".join(content(Path(dep)) for dep in entries(stage, "deps"))).hexdigest()
    report = {"schema": 1, "audit": AUDIT, "digest": digest}
    verdict = {"audit": AUDIT, "passed": told.get("passed", True), "gates": told.get("gates", [])}
    if KIND == "conclude":
        verdict |= {"decided_by": "policy", "reviewer": None, "reason": digest, "statement": "said by a toy"}
    files = {"metrics.json": {"toy": 1}, "verdict.json": verdict, "landscape.json": {**LANDSCAPE, "notes": [digest]}}
    for name in [entry for group in ("outs", "metrics", "plots") for entry in entries(stage, group)]:
        path, own = Path(name), report
        if not path.suffix:
            path, own = path / "config.json", {**report, "folder": path.name}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(files.get(path.name, own)))
    seal(Path("data", AUDIT, KIND), report, [Path(dep) for dep in entries(stage, "deps")])


if __name__ == "__main__":
    main()
