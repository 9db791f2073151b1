"""A language model as judge: its prompts, its replies, and the calibration that decides whether it may be used.

`stages.tasks.language.judges` defines which models can judge. This package knows neither models nor kinds of
items: a task gives it answers on trial, and a function that queries the model.
"""

from stages.tasks.judging.calibration import About, JudgeCalibration, LabelledAnswer, calibrate, read_labelled
from stages.tasks.judging.verdicts import (
    ABSTAINED,
    JUDGE,
    Asks,
    Judge,
    JudgeSettings,
    JudgeVerdict,
    Near,
    Parts,
    Trial,
    within,
)

__all__ = [
    "ABSTAINED",
    "JUDGE",
    "About",
    "Asks",
    "Judge",
    "JudgeCalibration",
    "JudgeSettings",
    "JudgeVerdict",
    "LabelledAnswer",
    "Near",
    "Parts",
    "Trial",
    "calibrate",
    "read_labelled",
    "within",
]
