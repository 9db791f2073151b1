"""Reports: one self-contained page for a landscape, one for before against after."""

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
