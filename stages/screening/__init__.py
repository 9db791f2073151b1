"""Screening: a cheap first pass before an audit, as factor screening comes before any costly experiment.

It measures what each concept does, alone and in company, and proposes levels with which an audit has something to
find. See docs/screening.md.
"""

from stages.screening.first_pass import fewest_probes, screen
from stages.screening.ranges import Axis, declared_bounds
from stages.screening.reach import reach
from stages.screening.record import ConceptScreening, Screening, ScreenSettings
from stages.screening.surface import Surface, fit_surface

__all__ = [
    "Axis",
    "ConceptScreening",
    "ScreenSettings",
    "Screening",
    "Surface",
    "declared_bounds",
    "fewest_probes",
    "fit_surface",
    "reach",
    "screen",
]
