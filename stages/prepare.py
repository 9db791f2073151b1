"""Convert the model under test and its items to one standard form."""

from typing import Any

from stages.command import stage_main
from stages.core.errors import UsageError
from stages.core.files import content_hash, publishing, record_probe_seconds, stage_dir, write_json
from stages.params import DATA, AuditConfig, load_params
from stages.provenance import of_answers, provenance, write_provenance
from stages.tasks.contract import ASSETS, Chosen
from stages.tasks.load import task_class, task_context


def main(name: str) -> None:
    """Run the stage; see docs/files.md for what it writes."""
    audit = load_params().audit(name)
    inputs = DATA / name / "inputs"
    if not inputs.is_dir():
        raise UsageError(
            f"{inputs} is missing: make that folder for the audit's own files, or empty but for a .gitkeep"
        )
    with publishing(stage_dir(name, "prepare")) as out:
        (out / ASSETS).mkdir()
        metrics = task_class(name, audit).prepare(task_context(name, audit), out)
        asked = audit.compute.backend
        chosen = metrics.pop("chosen_backend", Chosen("eager" if asked == "auto" else asked))
        if "seconds_per_probe" in metrics:
            record_probe_seconds(name, metrics.pop("seconds_per_probe"))
        write_json(out / "metrics.json", metrics, schema=False)
        write_json(out / "fingerprint.json", _fingerprint(name, audit, chosen.backend))
        record = provenance(name, audit, out)
        write_provenance(out, record | {"backend_auto": chosen.why} if chosen.why else record)


def _fingerprint(name: str, audit: AuditConfig, backend: str) -> dict[str, Any]:
    """Hash what a task may use in later stages besides its prepared files, so that they need only this file for it."""
    return {
        "inputs": content_hash([DATA / name / "inputs"]),
        "prepare": content_hash([], of_answers(audit.prepare)),
        "backend": backend,
    }


if __name__ == "__main__":
    stage_main(main)
