"""What the evidence says. Pure: numbers in, numbers and words out; NumPy and SciPy are all it needs."""

from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.evidence import ArmEvidence, Evidence
from abswitch.stats.lift import RelativeLift, relative_lift
from abswitch.stats.margins import MarginOutcome, MarginTest, non_inferiority, tost_equivalence
from abswitch.stats.means import welch_t_test
from abswitch.stats.metrics import Direction, Mean, Metric, Rate, Ratio, Role
from abswitch.stats.plan import AnalysisPlan
from abswitch.stats.power import detectable_effect, mde_mean, mde_rate, required_n_mean, required_n_rate, units_needed
from abswitch.stats.proportions import two_proportion_z_test, wilson_interval
from abswitch.stats.ratios import clustered_mean_test, clustered_rate_test, ratio_delta_test
from abswitch.stats.rules import Decision
from abswitch.stats.srm import SampleRatio, sample_ratio_mismatch
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary, Summary
from abswitch.stats.verdict import Verdict, decide

__all__ = [
    "AnalysisPlan",
    "ArmEstimate",
    "ArmEvidence",
    "Comparison",
    "Decision",
    "Direction",
    "Evidence",
    "MarginOutcome",
    "MarginTest",
    "Mean",
    "MeanSummary",
    "Metric",
    "Rate",
    "RateSummary",
    "Ratio",
    "RatioSummary",
    "RelativeLift",
    "Role",
    "SampleRatio",
    "Summary",
    "Verdict",
    "clustered_mean_test",
    "clustered_rate_test",
    "decide",
    "detectable_effect",
    "mde_mean",
    "mde_rate",
    "non_inferiority",
    "ratio_delta_test",
    "relative_lift",
    "required_n_mean",
    "required_n_rate",
    "sample_ratio_mismatch",
    "tost_equivalence",
    "two_proportion_z_test",
    "units_needed",
    "welch_t_test",
    "wilson_interval",
]
