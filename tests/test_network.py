"""Stages whose task needs no network cannot use it."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from stages.code import Code
from stages.params import load_params
from stages.params.network import needs_network
from tests.workspace import ROOT

TRIES = """
import ctypes, errno, json, mmap, platform, socket, subprocess, sys
from stages.command import stage_main

CHILD = "import socket; socket.socketpair(); socket.socket()"

def outcome(ask):
    try:
        return ask() or "open"
    except OSError as error:
        return str(error.strerror)

def native():
    libc = ctypes.CDLL(None, use_errno=True)
    return "open" if libc.socket(socket.AF_INET6, socket.SOCK_STREAM, 0) >= 0 else f"errno {ctypes.get_errno()}"

def compatible():
    # socket(2) by the 32-bit entry of the kernel, which any process has
    if platform.machine() != "x86_64":
        return -errno.EACCES
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("53 b867010000 bb02000000 b901000000 31d2 cd80 5b c3"))
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()

def main(audit):
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True)
    print(json.dumps({
        "python": outcome(lambda: socket.socket().close()),
        "unix": outcome(lambda: socket.socket(socket.AF_UNIX).close()),
        "native": native(),
        "compatible": compatible(),
        "child": child.returncode and child.stderr.splitlines()[-1],
    }))

stage_main(main)
"""


def tries(folder, **env: str) -> dict:
    script = folder / "summarize.py"
    script.write_text(TRIES)
    shutil.copy(ROOT / "params.yaml", folder)
    code = folder / "data/mnist/code.json"
    code.parent.mkdir(parents=True)
    code.write_text(Code(beside=folder).written(load_params(ROOT / "params.yaml").audit("mnist")))
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, str(script), "mnist"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel refuses sockets on Linux alone")
def test_neither_python_nor_native_code_nor_children_open_internet_sockets(tmp_path):
    found = tries(tmp_path)
    assert found["python"].startswith("summarize of mnist has no network")
    assert found["native"] == "errno 13" and found["compatible"] < 0
    assert found["child"] == "PermissionError: [Errno 13] Permission denied" and found["unix"] == "open"


def test_a_stage_that_may_fetch_from_a_hub_keeps_it(tmp_path):
    found = tries(tmp_path, HF_HUB_OFFLINE="0")
    assert (found["python"], found["native"], found["child"]) == ("open", "open", 0)


@pytest.mark.parametrize(
    ("change", "needs"),
    [
        ({"task": "image-classification"}, False),
        ({"task": "mine.task:Task"}, True),
        ({"prepare": {"model": {"endpoint": "http://10.0.0.1/predict"}}}, True),
        ({"discrepancy": {"judges": [{"endpoint": "http://10.0.0.1/judge"}]}}, True),
    ],
)
def test_what_an_audit_names_says_whether_it_needs_the_network(change, needs, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    params = load_params(ROOT / "params.yaml")
    params.audits["mnist"] = params.audits["mnist"].model_copy(update=change)
    assert needs_network("discover", "mnist", params) is needs
    assert not needs_network("collect_feedback", "mnist", params)
