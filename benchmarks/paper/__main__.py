"""The paper's experiments as audits, and figures like the paper's from their results.

    .venv/bin/python -m benchmarks.paper [AUDIT ...]                  # hours on a GPU; downloads models and data first
    .venv/bin/python -m benchmarks.paper --stand-in [AUDIT ...]       # minutes on a CPU, without a network

Works in a separate workspace that git ignores, benchmarks/paper/audits or benchmarks/paper/stand-ins, with the commands
that users would run there: `faded prefetch` and `faded audit`. Results are kept, and a second call runs only what is
stale. Writes paper.html and paper.md there, with all audits that have results.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import yaml

from benchmarks.paper.figures import read_results, table_of, write_page
from flows.workspace.new import write_workspace
from stages.core.errors import Exit, InfrastructureError, UsageError, did_you_mean, run_as_command
from stages.core.git import git

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PARAMS, STAND_IN = HERE / "params.yaml", HERE / "stand-in.yaml"
# Audits of this repository whose inputs the stand-ins use; other stand-ins need no inputs.
LENT = {"alexnet": "mnist", "resnet50": "mnist", "stable-diffusion": "images"}
TEMPLATES = ROOT / "docs" / "paper-templates.txt"


def put_workspace(folder: Path, params: str) -> dict[str, Any]:
    """Create or update a workspace with these audits; return them by name, as in params.yaml.

    Args:
        folder: it gets its own git repository, because that of Faded ignores it.
        params: the text of its params.yaml.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ".git").exists() and git("init", "--quiet", folder=folder) is None:
        raise InfrastructureError(f"git cannot make a repository of {folder}")
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    write_workspace(folder)
    audits: dict[str, Any] = yaml.safe_load(params)["audits"]
    return audits


def put_inputs(inputs: Path, audit: Mapping[str, Any], lent: str | None) -> None:
    """Copy or download the input files of an audit.

    Args:
        inputs: its folder of inputs.
        audit: as in params.yaml.
        lent: the audit of this repository whose inputs it uses, if any.

    Raises:
        InfrastructureError: if weights of torchvision cannot be downloaded.
    """
    inputs.mkdir(parents=True, exist_ok=True)
    if lent is not None:
        shutil.copytree(ROOT / "data" / lent / "inputs", inputs, dirs_exist_ok=True)
        return
    if (audit["prepare"].get("templates")) == TEMPLATES.name:
        shutil.copy(TEMPLATES, inputs)
    model = audit["prepare"]["model"]
    if "torchvision" in model and not (inputs / model["weights"]).exists():
        _download(model["torchvision"], inputs / model["weights"])


def _download(name: str, path: Path) -> None:
    """Download weights that torchvision publishes; the end of their name is the beginning of their SHA-256."""
    from torch.hub import download_url_to_file
    from torchvision.models import get_model_weights

    [url] = [weights.url for weights in get_model_weights(name) if Path(weights.url).name == path.name]
    print(f"downloading {path.name}")
    try:
        download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except (URLError, RuntimeError) as error:  # RuntimeError: the hash differs
        raise InfrastructureError(f"{path.name} cannot be downloaded: {error}") from None


def faded(folder: Path, *words: str) -> int:
    """Run a command of Faded in a workspace; return its exit code."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([sys.executable, "-m", "flows.cli", *words], cwd=folder, env=env, check=False).returncode


def run(names: Sequence[str], folder: Path, *, stand_in: bool) -> int:
    """Run audits and write their figures.

    Args:
        names: names of audits; all if empty.
        folder: the workspace.
        stand_in: whether models and data are stand-ins from packages and from this repository.

    Returns:
        The highest exit code of an audit, not counting failed gates.

    Raises:
        UsageError: if there is no audit of such a name.
        InfrastructureError: if something cannot be downloaded.
    """
    audits = put_workspace(folder, (STAND_IN if stand_in else PARAMS).read_text(encoding="utf-8"))
    if unknown := [name for name in names if name not in audits]:
        raise UsageError(f"no audit {unknown[0]!r}, found: {', '.join(audits)}{did_you_mean(unknown[0], audits)}")
    chosen = list(names) or list(audits)
    for name in chosen:
        put_inputs(folder / "data" / name / "inputs", audits[name], LENT.get(name) if stand_in else None)
    if not stand_in and (code := faded(folder, "prefetch", *chosen)):
        return code
    codes = [faded(folder, "audit", name) for name in chosen]
    if results := read_results(folder, audits):
        write_page(folder / "paper.html", results, stand_in=stand_in)
        (folder / "paper.md").write_text(table_of(results) + "\n", encoding="utf-8")
        print(f"{table_of(results)}\n\nfigures: {folder / 'paper.html'}")
    return max(0 if code == Exit.GATE_FAILED else code for code in codes)


def main() -> None:
    """Run the named audits, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("audits", nargs="*", metavar="AUDIT", help="names in params.yaml; all by default")
    parser.add_argument("--stand-in", action="store_true", help="models and data that need no network, small budgets")
    given = parser.parse_args()
    folder = HERE / ("stand-ins" if given.stand_in else "audits")

    def work() -> None:
        if code := run(given.audits, folder, stand_in=given.stand_in):
            raise SystemExit(code)

    run_as_command(work)


if __name__ == "__main__":
    main()
