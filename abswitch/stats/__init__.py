"""What the evidence says. Pure: numbers in, numbers and words out; NumPy and SciPy are all it needs."""

from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.evidence import ArmEvidence, Evidence
from abswitch.stats.means import welch_t_test
from abswitch.stats.metrics import Direction, Mean, Metric, Rate, Ratio, Role
from abswitch.stats.plan import AnalysisPlan
from abswitch.stats.power import detectable_effect, units_needed
from abswitch.stats.proportions import two_proportion_z_test, wilson_interval
from abswitch.stats.ratios import ratio_delta_test
from abswitch.stats.srm import SampleRatio, sample_ratio_mismatch
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary, Summary
from abswitch.stats.verdict import Decision, Verdict, decide

__all__ = [
    "AnalysisPlan",
    "ArmEstimate",
    "ArmEvidence",
    "Comparison",
    "Decision",
    "Direction",
    "Evidence",
    "Mean",
    "MeanSummary",
    "Metric",
    "Rate",
    "RateSummary",
    "Ratio",
    "RatioSummary",
    "Role",
    "SampleRatio",
    "Summary",
    "Verdict",
    "decide",
    "detectable_effect",
    "ratio_delta_test",
    "sample_ratio_mismatch",
    "two_proportion_z_test",
    "units_needed",
    "welch_t_test",
    "wilson_interval",
]
