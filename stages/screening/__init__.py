"""Screening: a cheap first pass before an audit, as factor screening comes before any costly experiment.

It measures what each concept does, alone and in company, and proposes levels with which an audit has something to
find. See docs/screening.md. Importing its records does not import what measures.
"""

from stages.screening.record import ConceptScreening, Screening, ScreenSettings

__all__ = ["ConceptScreening", "ScreenSettings", "Screening"]
