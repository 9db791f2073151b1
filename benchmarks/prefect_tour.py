"""Pictures for docs/schedule.md: the default audit under `faded serve`, as displayed by Chromium.

    .venv/bin/python -m benchmarks.prefect_tour

Works in a fresh clone of the committed state, in a temporary folder, with this interpreter: the audit runs, waits, is
approved, runs again with nothing to do, fails a gate, and is rejected. Writes docs/assets/prefect-*.png.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from playwright.sync_api import Page, sync_playwright
from prefect.client.orchestration import get_client

from benchmarks.gallery import keep
from flows.server import configured_api, talking_to
from stages.records import audit_folder
from tests.conftest import CHROMIUM, CHROMIUM_ARGS

ROOT = Path(__file__).parents[1]
AUDIT = "mnist"
_LIMIT = 1800.0  # seconds per run
_DRAWN = 4000  # milliseconds until a page of Prefect has drawn its graph


class Tour:
    """`faded serve` of the workspace in the current folder, and its pages in a browser.

    Args:
        page: a signed-in page.
        base: address of Prefect's pages.
    """

    def __init__(self, page: Page, base: str) -> None:
        self._page, self._base = page, base

    def run(self) -> UUID:
        """Start the audit's deployment and wait until it ends or waits for a person."""
        with _client() as client:
            run = client.create_flow_run_from_deployment(client.read_deployment_by_name(f"audit/{AUDIT}").id).id
        return self.wait(run)

    def wait(self, run: UUID) -> UUID:
        """Wait until a run ends or waits for a person."""
        deadline = time.monotonic() + _LIMIT
        while time.monotonic() < deadline:
            with _client() as client:
                state = client.read_flow_run(run).state
            if state.is_final() or state.is_paused():
                return run
            time.sleep(2)
        raise SystemExit(f"the run did not end within {_LIMIT:.0f} s")

    def picture(self, name: str, path: str, *, tab: str = "", button: str = "", height: int = 800) -> None:
        """Take a picture of a page.

        Args:
            name: of the file docs/assets/prefect-NAME.png.
            path: path of the page.
            tab: tab to open on it.
            button: button to press on it.
            height: height of the browser's window, pixels.
        """
        self._page.set_viewport_size({"width": 1280, "height": height})
        self._page.goto(self._base + path)
        self._page.wait_for_timeout(_DRAWN)
        if tab:
            self._page.get_by_text(tab, exact=True).first.click()
        if button:
            self._page.get_by_role("button", name=button).click()
        self._page.wait_for_timeout(_DRAWN)
        keep(self._page.screenshot(), f"prefect-{name}")

    def artifact(self, name: str, what: str, *, height: int = 800) -> None:
        """Take a picture of the audit's newest artifact with a given key."""
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

        with _client() as client:
            wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[f"{AUDIT}-{what}"]))
            newest = max(client.read_artifacts(artifact_filter=wanted), key=lambda artifact: artifact.created)
        self.picture(name, f"/artifacts/artifact/{newest.id}", height=height)


@contextlib.contextmanager
def _client() -> Iterator[Any]:
    api = configured_api()
    assert api is not None
    with talking_to(api), get_client(sync_client=True) as client:
        yield client


def _faded(*arguments: str) -> str:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def tour() -> Iterator[Tour]:
    """Serve the workspace in the current folder."""
    serving = subprocess.Popen([sys.executable, "-m", "flows.cli", "serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert serving.stdout is not None
        if not any("Ctrl-C" in line for line in serving.stdout):
            raise SystemExit("`faded serve` ended")
        link = _faded("serve", "--link")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_ARGS)
            page = browser.new_page()
            page.goto(link)
            yield Tour(page, link.partition("/faded/")[0])
            browser.close()
    finally:
        serving.terminate()
        serving.wait()


def _edit(old: str, new: str) -> None:
    """Replace the first occurrence of a text in params.yaml, which is the audit's."""
    text = Path("params.yaml").read_text(encoding="utf-8")
    if old not in text:
        raise SystemExit(f"params.yaml does not say {old!r}")
    Path("params.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")


def walk(on: Tour) -> None:
    """Take all pictures, in the workspace in the current folder."""
    run = on.run()
    on.picture("form", f"/runs/flow-run/{run}", button="Resume")
    modes = ",".join(mode.id for mode in audit_folder(AUDIT).summarize.landscape.modes)
    _faded("approve", AUDIT, "--reviewer", "Ada Lovelace", "--repair", f"{modes}=seen in the field")
    on.wait(run)
    on.picture("stages", f"/runs/flow-run/{run}")
    on.artifact("verdict", "verdict")
    on.run()
    _edit("newly_failing: {max: 0.05}", "newly_failing: {max: 0.0001}")
    on.run()
    _faded("reject", AUDIT, "--reviewer", "Ada Lovelace", "--revise", "--reason", "the labels of M1 are wrong")
    on.run()


def main() -> None:
    """Make a workspace, and take the pictures."""
    with tempfile.TemporaryDirectory(prefix="faded-tour-") as folder:
        workspace = Path(folder) / "audits"
        subprocess.run(["git", "clone", "--quiet", ROOT, workspace], check=True)
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        os.chdir(workspace)
        _edit("feedback: {policy: top-k, modes: 3}", "feedback: {policy: wait}")
        with tour() as on:
            walk(on)


if __name__ == "__main__":
    main()
