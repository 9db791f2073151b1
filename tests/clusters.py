"""Machines for tests: clones of a workspace, and clusters whose workers are these clones."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psutil
from dvc.cli import main as dvc_main

from flows.graph.lock import read_lock
from tests.servers import free_port, until
from tests.workspace import Workspace

_DASK = ("--no-dashboard", "--host", "127.0.0.1")
DASK_HEAD = ("distributed.cli.dask_scheduler", "--port", "{port}", *_DASK)
DASK_WORKER = (
    *("distributed.cli.dask_worker", "{address}", "--nthreads", "1"),
    *("--local-directory", "{scratch}", *_DASK),
)
_RAY = ("--node-ip-address", "127.0.0.1", "--object-store-memory", "100000000", "--block")
RAY_HEAD = (
    *("ray.scripts.scripts", "start", "--head", "--port", "{port}", "--num-cpus", "0"),
    *("--include-dashboard", "false", "--temp-dir", "{scratch}", *_RAY),
)
RAY_WORKER = ("ray.scripts.scripts", "start", "--address", "{address}", "--num-cpus", "1", *_RAY)
STARTED = ("Scheduler at:", "Registered to:", "Ray runtime started.")  # printed when ready


def run(workspace: Workspace, *command: str) -> str:
    done = workspace.run(list(command))
    assert done.returncode == 0, f"{command}: {done.stdout}"
    return done.stdout


def dvc(workspace: Workspace, *arguments: str) -> None:
    """Run `dvc ARGUMENTS...` in this process."""
    with contextlib.chdir(workspace.path):
        assert dvc_main(list(arguments)) == 0


def clone(workspace: Workspace, path: Path) -> Workspace:
    """What another machine has: the commit, and nothing from DVC's cache."""
    run(workspace, "git", "clone", "--quiet", str(workspace.path), str(path))
    return Workspace(path)


def lock(workspace: Workspace) -> dict[str, Any]:
    return read_lock((workspace.path / "dvc.lock").read_bytes())


def s3_remote(workspace: Workspace, url: str) -> None:
    dvc(workspace, "remote", "add", "--default", "--force", "store", "s3://bucket/audits")
    dvc(workspace, "remote", "modify", "store", "endpointurl", url)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Cluster:
    """Workers of one kind, each started in an empty folder, with the path of its own clone or with GPUs.

    `env` is for the scheduler or head.
    """

    def __init__(self, kind: str, home: Path, **env: str) -> None:
        self.kind, self.home, port = kind, home, free_port()
        self.address = f"127.0.0.1:{port}"
        self.workers: list[subprocess.Popen[bytes]] = []
        self._scratch = Path(mkdtemp(prefix="faded-"))  # Ray's sockets need a short path
        self.head = self._started("head", *(DASK_HEAD if kind == "dask" else RAY_HEAD), port=str(port), **env)

    def _started(self, name: str, *command: str, port: str = "", **env: str) -> subprocess.Popen[bytes]:
        """A process that is ready. On a busy machine Ray's processes give up after 30 seconds, and are started again.

        Each has its own log: in a shared file, the head's next line would overwrite the worker's that it is ready.
        """
        words = [word.format(port=port, address=self.address, scratch=self._scratch) for word in command]
        log = self.home / f"cluster-{name}.log"
        for _ in range(4):
            with log.open("wb") as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", *words],
                    cwd=self.home,
                    env=os.environ | {"PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0"} | env,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            until(partial(_came_up_or_ended, process, log), log=log)
            if process.poll() is None:
                return process
        raise AssertionError(log.read_text())

    def add(self, clone: Workspace) -> None:
        """Add a machine with this clone."""
        options = ["--no-nanny"] if self.kind == "dask" else []
        self.add_worker(*options, FADED_WORKSPACE=str(clone.path))

    def add_worker(self, *options: str, **env: str) -> None:
        """Add a machine that is started with options."""
        command = DASK_WORKER if self.kind == "dask" else RAY_WORKER
        self.workers.append(self._started(f"worker-{len(self.workers)}", *command, *options, **env))

    def lose(self, which: int) -> None:
        """Kill a machine."""
        end(self.workers[which])

    def end(self) -> None:
        """Kill all machines."""
        for process in [*self.workers, self.head]:
            end(process)
        shutil.rmtree(self._scratch, ignore_errors=True)


def _came_up_or_ended(process: subprocess.Popen[bytes], log: Path) -> bool:
    return process.poll() is not None or any(word in log.read_text() for word in STARTED)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and everything it started, except stages, which have to end by themselves."""
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(process.pid)
        for one in [leader, *(child for child in leader.children(recursive=True) if not is_stage(child))]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def is_stage(process: psutil.Process) -> bool:
    """Whether a process belongs to a stage."""
    with contextlib.suppress(psutil.Error):
        return any(word.startswith(("flows.", "stages.", "dvc")) for word in process.cmdline())
    return False
