"""Bring the model under test and its items into one standard form."""

from __future__ import annotations

from pathlib import Path

from stages.command import stage_main
from stages.files import content_hash, publishing, stage_dir, write_json
from stages.params import load_params, task_class, task_context
from stages.provenance import provenance


def main(name: str) -> None:
    """Run the stage; see docs/files.md for what it writes."""
    audit = load_params().audit(name)
    with publishing(stage_dir(name, "prepare")) as out:
        metrics = task_class(name, audit).prepare(task_context(name, audit), out)
        write_json(out / "metrics.json", metrics, schema=False)
        write_json(out / "code.json", {"code": content_hash([Path(audit.code), Path(__file__).with_name("tasks")])})
        write_json(out / "provenance.json", provenance(name, audit, out))


if __name__ == "__main__":
    stage_main(main)
