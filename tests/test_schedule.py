"""prefect.yaml: its content, how it is edited, and that a real server accepts it."""

import difflib
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import flows.recur.schedule
from flows.cli import app
from flows.recur.deploy import apply, ensure_automations, overview
from flows.recur.schedule import add_missing, read_entries, set_schedule
from stages.core.errors import UsageError
from stages.decisions import landscape_hash
from stages.params import load_params
from tests.test_approval import show
from tests.workspace import ROOT, audit_params, make_workspace, repair_params


@pytest.fixture
def here(toys, monkeypatch) -> Path:
    """A toy workspace, with a deployment of its audit in a file with people's comments."""
    head, _, _ = (ROOT / "prefect.yaml").read_text().partition("deployments:")
    (toys.path / "prefect.yaml").write_text(
        head + "deployments:\n"
        "  - <<: *common   # as all of them\n"
        "    name: tiny\n"
        "    parameters: {audits: [tiny]}\n"
        "    schedules:\n"
        '      - {slug: faded, cron: "0 3 * * 1", timezone: UTC, active: false}   # at night\n'
    )
    monkeypatch.chdir(toys.path)
    return toys.path


def changed_lines(before: str, after: str) -> list[str]:
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line[:1] in "+-"]


def test_the_file_of_the_repository_holds_every_audit_with_its_schedule_off(monkeypatch):
    monkeypatch.chdir(ROOT)
    params = load_params()
    presets = {name for name in params.audits if any(name.startswith(f"{other}-") for other in params.audits)}
    entries = read_entries()
    assert [entry.audit for entry in entries] == [name for name in params.audits if name not in presets]
    assert all(entry.name == entry.audit and entry.cron and not entry.active for entry in entries)
    assert all(entry.next_start() is None for entry in entries)
    written = yaml.safe_load(Path("prefect.yaml").read_text())
    common = yaml.safe_load(flows.recur.schedule._NEW)["definitions"]["common"]  # start of another workspace's file
    assert written["definitions"]["common"] == common
    for deployment in written["deployments"]:
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
        assert [schedule["active"] for schedule in deployment["schedules"]] == [False]


def test_a_schedule_is_one_changed_line_and_every_comment_stays(tmp_path, monkeypatch):
    shutil.copy(ROOT / "prefect.yaml", tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    before = Path("prefect.yaml").read_text()
    entry = set_schedule(load_params(), "news", "30 4 * * *", "Europe/Berlin")
    assert (entry.cron, entry.timezone, entry.active) == ("30 4 * * *", "Europe/Berlin", True)
    after = Path("prefect.yaml").read_text()
    assert changed_lines(before, after) == [
        '-       - {slug: faded, cron: "0 3 * * 6", timezone: UTC, active: false}',
        '+       - {slug: faded, cron: "30 4 * * *", timezone: Europe/Berlin, active: true}',
    ]
    assert not set_schedule(load_params(), "news", None).active
    off = Path("prefect.yaml").read_text()
    assert changed_lines(after, off)[1].endswith("timezone: Europe/Berlin, active: false}")
    assert set_schedule(load_params(), "news", "0 5 * * *").timezone == "Europe/Berlin"
    assert list(tmp_path.glob(".*partial")) == []


def test_bad_input_is_told_and_nothing_is_written(here):
    before = (here / "prefect.yaml").read_text()
    for arguments, told in (
        (["nope", "--cron", "0 3 * * 1"], "no audit 'nope' in params.yaml, found: tiny"),
        (["tiny", "--cron", "61 3 * * 1"], "'61 3 * * 1' is not a valid schedule, expected five fields"),
        (["tiny", "--cron", "0 3 * * 1", "--timezone", "Berlin"], "'Berlin' is unknown, expected a name like Europe/"),
        (["tiny", "--cron", "0 3 * * 1", "--off"], "use either --cron or --off"),
    ):
        result = CliRunner().invoke(app, ["schedule", *arguments])
        assert isinstance(result.exception, UsageError) and told in str(result.exception)
        assert (here / "prefect.yaml").read_text() == before
    (here / "prefect.yaml").unlink()
    with pytest.raises(UsageError, match=r"has no schedule in prefect\.yaml"):
        set_schedule(load_params(), "tiny", None)


def test_audits_get_the_deployments_they_lack_and_presets_none(tmp_path, monkeypatch):
    audits = {name: audit_params() for name in ("tiny", "tiny-quick", "other")}
    make_workspace(tmp_path / "new", audits, {"tiny": repair_params()}, toys=True)
    monkeypatch.chdir(tmp_path / "new")
    assert add_missing(load_params()) == ["tiny", "other"]
    first = Path("prefect.yaml").read_text()
    assert add_missing(load_params()) == [] and Path("prefect.yaml").read_text() == first
    assert [entry.audit for entry in read_entries()] == ["tiny", "other"]
    entry = set_schedule(load_params(), "tiny-quick", "0 3 * * *")  # requested by name: it gets one
    assert entry == next(e for e in read_entries() if e.audit == "tiny-quick")
    # Merged, not copied, so that a change of the common settings affects it.
    assert yaml.safe_load(Path("prefect.yaml").read_text())["deployments"][2]["entrypoint"] == "flows.audit.audit"
    assert Path("prefect.yaml").read_text().count("flows.audit.audit") == 1


def test_the_next_start_is_in_the_schedules_zone_and_listed_without_a_server(here):
    start = set_schedule(load_params(), "tiny", "0 3 * * 1", "Asia/Kolkata").next_start()
    assert start is not None and start > datetime.now(UTC) and start.astimezone(UTC).strftime("%a %H:%M") == "Sun 21:30"
    [row] = overview(load_params(), read_entries(), None)
    assert (row.last, row.verdict, row.waits, row.next_start) == ("never", "no verdict yet", "", start)


def test_a_broken_decision_file_costs_the_others_nothing(tmp_path, monkeypatch):
    audits = {name: audit_params() for name in ("tiny", "other")}
    repairs = {"tiny": repair_params(feedback={"policy": "wait"})}
    make_workspace(tmp_path / "new", audits, repairs, toys=True)
    monkeypatch.chdir(tmp_path / "new")
    add_missing(load_params())
    show()
    broken = Path(f"data/tiny/decisions/{landscape_hash('tiny')}.yaml")
    broken.parent.mkdir(parents=True, exist_ok=True)
    broken.write_text("approve: [")
    tiny, other = overview(load_params(), read_entries(), None)
    assert str(broken) in tiny.waits and (other.entry.audit, other.waits) == ("other", "")


@pytest.mark.slow
def test_a_server_takes_it_as_it_is_written(here, prefect_server, monkeypatch):
    from prefect.client.orchestration import get_client

    params = load_params()
    text = (here / "prefect.yaml").read_text().replace("name: faded   ", "name: taken   ")
    (here / "prefect.yaml").write_text(text.replace("name: tiny", "name: mine"))  # names that only this test uses
    assert [entry.pool for entry in read_entries()] == ["taken"] and apply(read_entries()) == []
    with get_client(sync_client=True) as client:
        pool = client.read_work_pool("taken")
        assert (pool.type, pool.concurrency_limit) == ("process", 1)
        deployment = client.read_deployment_by_name("audit/mine")
        assert deployment.parameters == {"audits": ["tiny"]} and deployment.entrypoint == "flows.audit.audit"
        assert [schedule.active for schedule in deployment.schedules] == [False]
        where = {"directory": str(here.resolve())}
        assert deployment.pull_steps == [{"prefect.deployments.steps.set_working_directory": where}]
        assert deployment.global_concurrency_limit is not None and deployment.global_concurrency_limit.limit == 1
        assert deployment.concurrency_options is not None
        assert deployment.concurrency_options.collision_strategy.value == "ENQUEUE"

        # Applied again after an edit: the schedule changes, and nothing is duplicated.
        set_schedule(params, "tiny", "0 5 * * *", "Europe/Berlin")
        apply(read_entries())
        [schedule] = client.read_deployment_by_name("audit/mine").schedules
        assert schedule.active
        assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 5 * * *", "Europe/Berlin")
        for _ in range(2):
            ensure_automations(client, "taken", [deployment.id], deployment.id)
            [automation] = client.read_automations_by_name("taken: tell of late runs")
        assert str(deployment.id) in str(automation.trigger.match_related)
        ensure_automations(client, "taken", [deployment.id], None)
        assert client.read_automations_by_name("taken: tell of late runs") == []

        # A removed entry: its deployment starts nothing any more, and its history is kept.
        document = yaml.safe_load((here / "prefect.yaml").read_text())
        renamed = document["deployments"][0] | {"name": "my-renamed"}
        (here / "prefect.yaml").write_text(yaml.safe_dump({**document, "deployments": [renamed]}))
        assert apply(read_entries()) == ["deployment mine is not in prefect.yaml any more: its schedules are paused"]
        assert client.read_deployment_by_name("audit/mine").paused
        assert not client.read_deployment_by_name("audit/my-renamed").paused

    other = make_workspace(here.parent / "other", toys=True)
    shutil.copy(here / "prefect.yaml", other.path)
    monkeypatch.chdir(other.path)
    with pytest.raises(UsageError, match=r"belongs to another workspace .*toys on .*give this one's another name"):
        apply(read_entries())
    (other.path / "prefect.yaml").write_text((here / "prefect.yaml").read_text().replace("taken", "free"))
    told = r"audit/my-renamed of this .* runs in work pool 'taken', not 'free': give it an"
    with pytest.raises(UsageError, match=told):
        apply(read_entries())
