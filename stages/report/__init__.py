"""Reports: one self-contained page for a landscape, one for before against after."""

from stages.report.comparison_report import write_comparison_report
from stages.report.exhibits import ShownExample, read_exhibits, write_exhibits
from stages.report.gallery import Compared, Gallery, PicturedCell
from stages.report.landscape_report import write_landscape_report
from stages.report.model_card import model_card

__all__ = [
    "Compared",
    "Gallery",
    "PicturedCell",
    "ShownExample",
    "model_card",
    "read_exhibits",
    "write_comparison_report",
    "write_exhibits",
    "write_landscape_report",
]
