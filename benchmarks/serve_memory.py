"""Memory of `faded serve` while it is idle, shows pages and runs audits: `python -m benchmarks.serve_memory AUDIT`.

Serves this workspace, opens the first page and the review page of an audit, starts the audit's deployment, and looks
at all processes twice a second until the run ends: the median is what they take while it waits for its stages (make
one stale first), the most is at its end. Measures PSS, which divides shared memory equally among the processes that
share it, so the sum is what all of them use. What the audit's stages themselves take (DVC and what it starts) is left
out. Linux only. Run it where no other `faded serve` runs.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections import Counter

import httpx
import psutil

from flows.server import served_api, talking_to

# Parts of a command line that identify a process, in this order; None for what is left out.
_NAMES = {
    **{" dvc ": None, "stages.": None, "flows.start.engine": "run", "flows.worker": "run"},
    **dict.fromkeys(("flows.processes", "flows.results.abilities"), "for seconds"),
}


def memory(process: psutil.Process) -> Counter[str]:
    """Return the PSS of a process and all its descendants but the stages of audits, in MB by name."""
    command = " ".join(process.cmdline())
    name = next((name for part, name in _NAMES.items() if part in command), "faded serve")
    if name is None:
        return Counter()
    found = Counter({name: process.memory_full_info().pss / 1e6})
    for one in process.children():
        with contextlib.suppress(psutil.Error):
            if one.cmdline() != process.cmdline():  # a child that has not executed its program yet shares all memory
                found += memory(one)
    return found


def open_pages(audit: str) -> None:
    """Open the first page and an audit's review page, as a browser would."""
    command = [sys.executable, "-P", "-m", "flows.cli", "review", audit, "--link"]
    link = httpx.URL(subprocess.check_output(command, text=True).split()[-1])
    # Names under localhost are known to browsers, not to every system.
    here = link.copy_with(host="127.0.0.1")
    with httpx.Client(headers={"Host": link.netloc.decode()}, follow_redirects=True, timeout=120) as browser:
        for path in (here, here.copy_with(path="/", query=None)):
            browser.get(path).raise_for_status()


def during_a_run(audit: str, process: psutil.Process) -> tuple[list[Counter[str]], str]:
    """Start an audit, and return what everything took until it ended, the least first, and how it ended."""
    from prefect.client.orchestration import get_client

    api, looks = served_api(), []
    assert api is not None
    with talking_to(api), get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(f"audit/{audit}")
        run = client.create_flow_run_from_deployment(deployment.id)
        while (state := client.read_flow_run(run.id).state) is None or not (state.is_final() or state.is_paused()):
            looks.append(memory(process))
            time.sleep(0.5)
    return sorted(looks, key=lambda found: sum(found.values())), f"{state.name}: {state.message}"


def main() -> None:
    """Serve this workspace, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audit")
    parser.add_argument("--seconds", type=float, default=60, help="before each look")
    parser.add_argument("--no-pages", action="store_true", help="open no page")
    given = parser.parse_args()
    served = subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.cli", "serve"], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    process = psutil.Process(served.pid)
    try:
        assert served.stdout is not None
        if not any("Ctrl-C stops everything" in line for line in served.stdout):
            raise SystemExit(f"faded serve ended with {served.wait()}")
        time.sleep(given.seconds)
        found = {"idle": memory(process)}
        if not given.no_pages:
            open_pages(given.audit)
            time.sleep(given.seconds)
            found["pages opened"] = memory(process)
        looks, ended = during_a_run(given.audit, process)
        found |= {"while a run works": looks[len(looks) // 2], "at most": looks[-1]}
        time.sleep(given.seconds)
        found["afterwards"] = memory(process)
    finally:
        served.terminate()
        served.wait()
    print(ended)
    names = list(dict.fromkeys(name for sizes in found.values() for name in sizes))
    print(f"| MB | {' | '.join(names)} | together |\n|---|{'---|' * (len(names) + 1)}")
    for when, sizes in found.items():
        print(f"| {when} | {' | '.join(f'{sizes[name]:.0f}' for name in names)} | {sum(sizes.values()):.0f} |")


if __name__ == "__main__":
    main()
