"""Reports: one self-contained page for a landscape, one for before against after."""

from stages.report.comparison_report import write_comparison_report
from stages.report.gallery import Compared, Gallery, PicturedCell
from stages.report.landscape_report import write_landscape_report

__all__ = ["Compared", "Gallery", "PicturedCell", "write_comparison_report", "write_landscape_report"]
