"""What probes say about a model: the landscape of failure rates, its modes, and how it moves after a repair."""

from stages.intervals import Rate, Resampler, holm, wilson
from stages.landscape.again import FoundAgain, found_again, jaccard, name_in_halves, reproducibility
from stages.landscape.bias import compare_bias, judged, largest_bias, measure_bias, newly_skewed, total_variation
from stages.landscape.compare import Paired, against_noise, compare_quality, reduced_failures, risen, targeting
from stages.landscape.describe import effects, invalid_probes, invalid_share, name_modes, overall_rate
from stages.landscape.estimate import Landscape, estimate
from stages.landscape.gates import all_passed, judge, judge_landscape, judge_repair
from stages.landscape.modes import Mode, confirm, find_regions, skipped_combinations
from stages.landscape.pairs import covered_share, draw_pairs, inside_any
from stages.landscape.people import Against, against_automatic
from stages.landscape.shift import distance, entropy, shift, transport_grid

__all__ = [
    "Against",
    "FoundAgain",
    "Landscape",
    "Mode",
    "Paired",
    "Rate",
    "Resampler",
    "against_automatic",
    "against_noise",
    "all_passed",
    "compare_bias",
    "compare_quality",
    "confirm",
    "covered_share",
    "distance",
    "draw_pairs",
    "effects",
    "entropy",
    "estimate",
    "find_regions",
    "found_again",
    "holm",
    "inside_any",
    "invalid_probes",
    "invalid_share",
    "jaccard",
    "judge",
    "judge_landscape",
    "judge_repair",
    "judged",
    "largest_bias",
    "measure_bias",
    "name_in_halves",
    "name_modes",
    "newly_skewed",
    "overall_rate",
    "reduced_failures",
    "reproducibility",
    "risen",
    "shift",
    "skipped_combinations",
    "targeting",
    "total_variation",
    "transport_grid",
    "wilson",
]
