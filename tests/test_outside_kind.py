"""A kind of model in a package outside has every command, without an edit in Faded."""

import json
import re
import shutil

import pytest
import yaml

from tests.endpoints import completion, served
from tests.finished import faded, run_stages
from tests.own_workspaces import git
from tests.planted_words import questions
from tests.workspace import ROOT, Workspace


@pytest.mark.slow
def test_a_kind_from_outside_passes_init_plan_audit_mine_propose_and_usage(tmp_path, monkeypatch):
    pytest.importorskip("textblob")
    pytest.importorskip("lemminflect")
    site = tmp_path / "site"
    shutil.copytree(ROOT / "tests/outside_kind", site / "outside_kind")
    info = site / "outside_kind-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-kind\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[faded.tasks]\nword-list = outside_kind.task:WordList\n")
    here = Workspace(tmp_path / "own")
    here.path.mkdir()
    git(here.path, "init", "--quiet")
    git(here.path, "config", "user.name", "Ada")
    git(here.path, "config", "user.email", "a@b.c")
    asked = questions(90, 7)
    (here.path / "hard.words").write_text("garden\n")
    (here.path / "asked.txt").write_text("\n".join(asked[:60]))
    (here.path / "sent.txt").write_text("\n".join([*(f"{text}!!!" for text in asked[60:70]), *asked[70:]]))

    monkeypatch.syspath_prepend(str(site))
    command = ("init", "--model", "hard.words", "--data", "asked.txt", "--shout", "4", "--budget", "100", "--yes")
    done = here.faded(*command, PYTHONPATH=f"{site}:{ROOT}")  # a process, as options are those of installed kinds
    assert done.returncode == 0, done.stdout
    assert "model: hard.words, a list of words" in done.stdout and "data:  60 questions" in done.stdout

    def ok(*arguments: str) -> str:
        code, told = faded(here, *arguments)
        assert code == 0, told
        return told

    audit = here.params()["audits"]["asked"]
    assert audit["task"] == "word-list" and audit["concepts"]["marks"][-1] == 4
    assert "discover@asked" in ok("plan", "asked")
    run_stages(here, "asked")
    assert "marks" in (here.path / "data/asked/report/report.html").read_text()
    assert "says garden" in ok("mine", "asked", "--probes", "400")
    mined = json.loads((here.path / ".faded/mine/asked.jsonl").read_text().splitlines()[0])
    assert mined.keys() >= {"id", "sentence", "says garden"}
    assert "marks" in ok("usage", "asked", "--from", "sent.txt")

    answer = {"proposals": [{"concept": "tone", "levels": ["plain", "rude"], "reason": "people are angry"}]}
    with served(lambda _: completion(json.dumps(answer)), whole=True) as model:
        proposer = {"openai": f"{model.url}/v1", "model": "tiny", "retries": 0}
        with (here.path / "params.yaml").open("a") as params:
            params.write(yaml.safe_dump({"proposer": proposer}))
        ok("propose", "asked", "--write")
        assert re.search(r"- tone: .*\(of any question\)", model.requests[0]["messages"][-1]["content"])
    assert here.params()["audits"]["asked"]["concepts"]["tone"] == ["plain", "rude"]
