"""Classification of table rows with scikit-learn."""

from stages.tasks.tabular.task import TabularClassification

__all__ = ["TabularClassification"]
