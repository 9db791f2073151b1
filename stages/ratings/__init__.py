"""Ratings that teach: what people's scores of examples make of the automatic discrepancy.

The paper's second use of feedback: not only which failures to repair, but what counts as one. `evidence` gathers the
scores, `fit` learns from them, `apply` puts what was learnt in the place of the automatic measure. Stages need only
the last.
"""

from stages.ratings.apply import RatedTask, Ratings, rated, read_ratings

__all__ = ["RatedTask", "Ratings", "rated", "read_ratings"]
