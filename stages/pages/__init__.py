"""Reports: self-contained pages on a landscape, and on a model before and after a repair."""

from stages.pages.comparison_report import write_comparison_report
from stages.pages.gallery import Gallery, PicturedCell
from stages.pages.landscape_report import write_landscape_report
from stages.pages.model_card import model_card

__all__ = [
    "Gallery",
    "PicturedCell",
    "model_card",
    "write_comparison_report",
    "write_landscape_report",
]
