"""Learn from people's ratings of examples how the automatic discrepancy relates to what people call a failure.

This is the paper's second use of feedback: not only which failures to repair, but what counts as one. `fit`
collects the scores and learns from them, and `apply` replaces the automatic measure. Stages need only `apply`.
"""

from stages.ratings.apply import RatedTask, Ratings, rated, read_ratings
