"""Any Python function as a model under test: images, texts or rows of features in; labels, scores or texts out."""

from stages.tasks.functions.task import FunctionTask
