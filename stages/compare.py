"""Compare before and after the repair: rates, landscapes, and where failures may have moved. No model is queried."""

from stages.command import stage_main
from stages.landscape.before_after import compare_models
from stages.params import load_params
from stages.provenance import provenance
from stages.records import audit_folder


def main(name: str) -> None:
    """Run the stage for one audit."""
    params, here = load_params(), audit_folder(name)
    audit, repair = params.audit(name), params.repair(name)
    comparison, cells = compare_models(
        here,
        audit.summarize,
        repair.restructure.control,
        resamples=repair.re_evaluate.bootstrap,
        seed=audit.seed,
    )
    record = provenance(name, audit, computes=False) | here.re_evaluate.provenance.of_model()
    with here.compare.publish(record) as out:
        out.comparison, out.cells = comparison, cells


if __name__ == "__main__":
    stage_main(main)
