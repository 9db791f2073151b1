"""Compare before and after the repair: rates, landscapes, and where failures may have moved. No model is asked."""

from __future__ import annotations

from stages.command import stage_main
from stages.landscape.verdict import AskedAgain, by_purpose, compare_models
from stages.params import load_params
from stages.provenance import provenance
from stages.records import audit_folder


def main(name: str) -> None:
    """Run the stage for one audit."""
    params, here = load_params(), audit_folder(name)
    audit, repair, found, landscape = (
        params.audit(name),
        params.repair(name),
        here.re_evaluate,
        here.summarize.landscape,
    )
    asked = AskedAgain(
        audit=name,
        space=landscape.space,
        threshold=landscape.threshold,
        embedded=found.embedded,
        searches=by_purpose(found.probes, "search"),
        answers=by_purpose(found.probes, "paired"),
        clean=by_purpose(found.probes, "clean"),
        found=found.metrics,
        quality=found.quality,
        measures=found.measures,
        tallies=found.tallies.models,
        ratings=landscape.ratings.bound if landscape.ratings else None,
    )
    compared = compare_models(
        asked,
        here.collect_feedback.plan,
        audit.summarize,
        repair.restructure.control,
        resamples=repair.re_evaluate.bootstrap,
        seed=audit.seed,
    )
    record = provenance(name, audit, computes=False) | found.provenance.of_model()
    used = ("probes", "embedded", "quality", "measures", "tallies", "metrics")
    read = [here.summarize.where("landscape"), here.collect_feedback.where("plan"), *map(found.where, used)]
    with here.compare.publish(record, read) as out:
        out.comparison, out.cells = compared.comparison, compared.cells


if __name__ == "__main__":
    stage_main(main)
