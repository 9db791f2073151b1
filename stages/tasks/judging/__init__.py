"""A language model as judge: its prompts, its replies, and the calibration that decides whether it may be used.

`stages.tasks.language.judges` defines which models can judge. This package knows neither models nor kinds of
items: a task gives it answers on trial, and a function that queries the model.
"""
