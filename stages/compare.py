"""Compare before and after the repair: rates, landscapes, and where failures may have moved. No model is queried."""

from __future__ import annotations

from stages.command import stage_main
from stages.landscape.before_after import AskedAgain, by_purpose, compare_models
from stages.params import load_params
from stages.provenance import provenance
from stages.records import AuditFolder, audit_folder


def main(name: str) -> None:
    """Run the stage for one audit."""
    params, here = load_params(), audit_folder(name)
    audit, repair = params.audit(name), params.repair(name)
    compared = compare_models(
        asked_again(here),
        here.collect_feedback.plan,
        audit.summarize,
        repair.restructure.control,
        resamples=repair.re_evaluate.bootstrap,
        seed=audit.seed,
    )
    record = provenance(name, audit, computes=False) | here.re_evaluate.provenance.of_model()
    with here.compare.publish(record) as out:
        out.comparison, out.cells = compared.comparison, compared.cells


def asked_again(here: AuditFolder) -> AskedAgain:
    """Collect the models' answers from the audit's records."""
    found, landscape = here.re_evaluate, here.summarize.landscape
    return AskedAgain(
        audit=here.path.name,
        space=landscape.space,
        threshold=landscape.threshold,
        embedded=found.embedded,
        searches=by_purpose(found.probes, "search"),
        answers=by_purpose(found.probes, "paired"),
        clean=by_purpose(found.probes, "clean"),
        found=found.metrics,
        quality=found.quality,
        measures=found.measures,
        policies=found.policies,
        tallies=found.tallies.models,
        doses=found.doses,
        usage=landscape.usage,
        ratings=landscape.ratings.bound if landscape.ratings else None,
    )


if __name__ == "__main__":
    stage_main(main)
