"""What is wrong with an audit of a summarizer, or with its repair: said before any data or model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from stages.concepts.texts import TextConcept, check_text_concepts
from stages.params import validation_lines
from stages.tasks.compute import no_choice
from stages.tasks.contract import TaskContext
from stages.tasks.sources import data_errors, missing_splits, source_errors
from stages.tasks.summarization.config import DiscrepancyConfig, PrepareConfig, conflicts
from stages.tasks.summarization.data_sources import DATA_LOADERS
from stages.tasks.summarization.measures import EMBEDDER_LOADERS
from stages.tasks.summarization.models import MODEL_LOADERS
from stages.tasks.summarization.repair_config import RepairSettings


def audit_errors(context: TaskContext, catalogue: Mapping[str, TextConcept]) -> list[str]:
    """All errors of prepare:, concepts: and discrepancy:."""
    errors = check_text_concepts(context.concepts, catalogue)
    errors += no_choice(context.compute, "prepare.generation.dtype")
    config = None
    try:
        config = PrepareConfig.model_validate(dict(context.config))
    except ValidationError as error:
        errors += validation_lines(error, PrepareConfig, "prepare")
    else:
        errors += data_errors(config.data, DATA_LOADERS, config.items, context.inputs)
        errors += source_errors(config.model, MODEL_LOADERS, "prepare.model", context.inputs)
        errors += source_errors(config.embedder, EMBEDDER_LOADERS, "prepare.embedder", context.inputs)
        benign = {name: [level] for name, level in config.calibrate.benign.items()}
        errors += [
            line.replace("concepts", "prepare.calibrate.benign", 1) for line in check_text_concepts(benign, catalogue)
        ]
    try:
        settings = DiscrepancyConfig.model_validate(dict(context.discrepancy))
    except ValidationError as error:
        errors += validation_lines(error, DiscrepancyConfig, "discrepancy")
    else:
        errors += conflicts(config, settings) if config else []
    return errors


def repair_errors(context: TaskContext, settings: Mapping[str, Any]) -> list[str]:
    """Errors of the method and its settings, and whether there are items to repair and judge with."""
    errors = missing_splits(context)
    try:
        asked = RepairSettings.model_validate(dict(settings))
    except ValidationError as error:
        return errors + validation_lines(error, RepairSettings, "restructure.settings")
    model, data = (context.config.get(part, {}) for part in ("model", "data"))
    if asked.method == "lora" and isinstance(model, Mapping) and "endpoint" in model:
        errors.append(
            "restructure.method: lora trains weights, and models behind HTTP have none to train; use method"
            f" normalise, which changes the model's input, or remove {context.audit} from repairs:"
        )
    if asked.targets == "reference" and isinstance(data, Mapping) and data.get("summary") is None:
        errors.append(
            "restructure.settings.targets: reference needs reference summaries, their field is named by"
            " prepare.data.summary, found none"
        )
    return errors
