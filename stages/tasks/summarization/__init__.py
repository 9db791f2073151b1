"""The built-in text summarization task."""

from stages.tasks.summarization.task import Summarization
