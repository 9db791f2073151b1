"""The built-in image classification task."""

from stages.tasks.classification.task import ImageClassification

__all__ = ["ImageClassification"]
