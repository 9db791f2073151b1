"""Classification of rows of a table, with scikit-learn."""

from stages.tasks.tabular.task import TabularClassification

__all__ = ["TabularClassification"]
