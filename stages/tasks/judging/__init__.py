"""A language model as judge: how it is asked, what its reply says, and whether it may decide anything.

Which models may judge is told by `stages.tasks.summarization.judges`. This package knows neither models nor kinds of
items: a task gives it answers on trial, and what asks the model.
"""

from stages.tasks.judging.calibration import Calibration, Labelled, calibrate, read_labelled
from stages.tasks.judging.verdicts import ABSTAINED, JUDGE, Asks, Judge, JudgeSettings, Near, Trial, Verdict, within

__all__ = [
    "ABSTAINED",
    "JUDGE",
    "Asks",
    "Calibration",
    "Judge",
    "JudgeSettings",
    "Labelled",
    "Near",
    "Trial",
    "Verdict",
    "calibrate",
    "read_labelled",
    "within",
]
