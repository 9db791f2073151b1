"""A kind of model as another package adds it: a list of words that a model cannot answer. `site` has it installed."""
