"""What is wrong with an audit of a text-to-image model, or with its repair: said before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from stages.concepts.prompts import check_slots, check_templates, prompt_space, read_templates
from stages.errors import UsageError
from stages.params import validation_lines
from stages.tasks.compute import no_choice
from stages.tasks.contract import TaskContext
from stages.tasks.sources import missing_splits, source_errors
from stages.tasks.text_to_image.config import DiscrepancyConfig, PrepareConfig, conflicts
from stages.tasks.text_to_image.items import used_splits
from stages.tasks.text_to_image.judges import JUDGE_LOADERS
from stages.tasks.text_to_image.models import MODEL_LOADERS
from stages.tasks.text_to_image.picture_sources import PICTURE_LOADERS
from stages.tasks.text_to_image.quality import quality_errors
from stages.tasks.text_to_image.repair_config import check_settings
from stages.tasks.text_to_image.schedulers import scheduler_errors


def audit_errors(context: TaskContext) -> list[str]:
    """All errors of prepare:, concepts: and discrepancy:."""
    slots = check_slots(context.concepts)
    errors = [*slots, *no_choice(context.compute, "prepare.model.dtype")]
    config = settings = None
    try:
        config = PrepareConfig.model_validate(dict(context.config))
    except ValidationError as error:
        errors += validation_lines(error, PrepareConfig, "prepare")
    else:
        errors += source_errors(config.model, MODEL_LOADERS, "prepare.model", context.inputs)
        errors += source_errors(config.pictures, PICTURE_LOADERS, "prepare.pictures", context.inputs)
        errors += source_errors(config.judge, JUDGE_LOADERS, "prepare.judge", context.inputs)
        errors += scheduler_errors(config.sampling)
        errors += _template_errors(config, context)
    try:
        settings = DiscrepancyConfig.model_validate(dict(context.discrepancy))
    except ValidationError as error:
        errors += validation_lines(error, DiscrepancyConfig, "discrepancy")
    if config and settings and not slots:
        errors += conflicts(config, settings, prompt_space(context.concepts))
        errors += quality_errors(settings.quality, config.judge)
    return errors


def repair_errors(context: TaskContext, settings: Mapping[str, Any]) -> list[str]:
    """Errors of the method and its settings, and whether there are items to repair and judge with."""
    model = context.config.get("model")
    if isinstance(model, Mapping) and "endpoint" in model:
        return [
            f"restructure: models behind HTTP cannot be repaired (no weights); remove {context.audit} from repairs:"
        ]
    return missing_splits(context) + check_settings(context, settings)


def _template_errors(config: PrepareConfig, context: TaskContext) -> list[str]:
    try:
        templates = read_templates(config.templates, context.inputs)
    except UsageError as error:
        return str(error).splitlines()
    errors = check_templates(templates, list(context.concepts), "prepare.templates")
    try:
        used_splits(templates, config.items)
    except UsageError as error:
        errors.append(str(error))
    return errors
