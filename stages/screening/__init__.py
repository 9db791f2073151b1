"""Screening: a cheap first pass before an audit, like factor screening before a costly experiment.

It measures the effect of each concept, alone and combined, and proposes levels at which an audit has something to find.
See docs/screening.md. Importing the records does not import the code that measures.
"""

from stages.screening.record import ConceptScreening, Screening, ScreenSettings

__all__ = ["ConceptScreening", "ScreenSettings", "Screening"]
