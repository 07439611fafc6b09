"""What the evidence says. Pure: numbers in, numbers and words out; NumPy and SciPy are all it needs."""

from abswitch.stats.adjusted import adjusted_rate_test, adjusted_ratio_test
from abswitch.stats.adjustment import (
    CovariateSummary,
    RatioCovariateSummary,
    cuped_summaries,
    cuped_test,
    cuped_theta,
    lin_test,
)
from abswitch.stats.bandits import (
    BanditLog,
    ThompsonSampling,
    aw_aipw_test,
    aw_aipw_value,
    draw_arm,
    generator_at,
)
from abswitch.stats.bayes import BayesianComparison, beta_binomial, chances_best, normal_posterior
from abswitch.stats.bounded import (
    BettingSequence,
    EmpiricalBernsteinSequence,
    betting_difference,
    empirical_bernstein_difference,
)
from abswitch.stats.canary import (
    CanaryDecision,
    CanaryVerdict,
    GuardrailFinding,
    harm_alpha,
    judge_canary,
)
from abswitch.stats.column_summaries import summarise
from abswitch.stats.comparison import ArmEstimate, Comparison
from abswitch.stats.crossing import anytime_expected_share, anytime_noncentrality, anytime_power
from abswitch.stats.error_process import Claim, ErrorProcess, first_errors
from abswitch.stats.evidence import ArmEvidence, Evidence, SegmentEvidence
from abswitch.stats.family import FamilyPlan, decide_family, winner_of
from abswitch.stats.group_sequential import (
    GroupSequentialDesign,
    exit_probabilities,
    group_sequential_test,
    obrien_fleming_spending,
    pocock_spending,
    power_spending,
)
from abswitch.stats.joint import BlockSummary, JointSummary, PairedRatioSummary, joint_test
from abswitch.stats.kinds import MetricSummary
from abswitch.stats.lift import RelativeLift, geometric_lift, relative_lift
from abswitch.stats.looks import Look, alpha_spent, compare_at
from abswitch.stats.many import (
    Corrected,
    benjamini_hochberg,
    benjamini_yekutieli,
    correct_comparisons,
    dunnett_test,
    e_bh,
    holm,
)
from abswitch.stats.margins import MarginOutcome, MarginTest, harm_test, non_inferiority, tost_equivalence
from abswitch.stats.means import welch_t_test
from abswitch.stats.metrics import Direction, Mean, Metric, Paired, Quantile, Rate, Ratio, Role
from abswitch.stats.mixture import mixture_sprt
from abswitch.stats.paired import (
    PairedRateSummary,
    PairedSummary,
    mcnemar_test,
    paired_t_test,
    tango_interval,
    tango_score_test,
)
from abswitch.stats.paired_sequences import mixed_bets_difference, mixed_bets_log_e
from abswitch.stats.plan import AnalysisPlan
from abswitch.stats.planner import ExperimentPlan, PowerCurve, Traffic, anytime_inflation, plan_experiment
from abswitch.stats.power import (
    detectable_effect,
    mde_mean,
    mde_rate,
    power_mean,
    power_rate,
    required_n_mean,
    required_n_rate,
    required_pairs,
    two_sided_power,
    units_needed,
)
from abswitch.stats.proportions import (
    boschloo_exact_test,
    farrington_manning_test,
    fisher_exact_test,
    miettinen_nurminen_test,
    newcombe_interval,
    two_proportion_z_test,
    wilson_interval,
)
from abswitch.stats.quantile_sequences import (
    quantile_sequence,
    sequential_quantile_difference,
    sequential_quantile_ranks,
    sequential_quantile_test,
)
from abswitch.stats.quantile_summary import QuantileSummary
from abswitch.stats.quantiles import (
    QuantileInterval,
    QuantileRanks,
    clustered_quantile_interval,
    clustered_quantile_ranks,
    least_n_for_quantile,
    quantile_interval,
    quantile_ranks,
    quantile_test,
)
from abswitch.stats.ranks import hodges_lehmann, mann_whitney_test, wilcoxon_signed_rank_test
from abswitch.stats.rate_betting import betting_rate_difference
from abswitch.stats.rate_sequences import beta_binomial_difference, beta_binomial_log_e, beta_binomial_sequence
from abswitch.stats.ratios import clustered_mean_test, clustered_rate_test, design_effect, ratio_delta_test
from abswitch.stats.robust import TrimmedSummary, permutation_test, yuen_t_test
from abswitch.stats.rules import Decision
from abswitch.stats.segment_findings import SegmentFinding, segment_findings
from abswitch.stats.segments import Heterogeneity, cochran_mantel_haenszel_test, cochran_q_test
from abswitch.stats.selection import Segments, Where
from abswitch.stats.sequential import anytime_valid, mixture_log_e, z_boundary
from abswitch.stats.sequential_srm import StageCounts, dirichlet_log_e, sequential_sample_ratio
from abswitch.stats.srm import SampleRatio, sample_ratio_mismatch
from abswitch.stats.strata import StratifiedSummary, stratified_test
from abswitch.stats.summaries import MeanSummary, RateSummary, RatioSummary, Summary
from abswitch.stats.switchback import Block, SwitchbackSchedule, switchback_test
from abswitch.stats.timeseries import default_lags, long_run_variance, newey_west_test
from abswitch.stats.verdict import Verdict, decide

__all__ = [
    "AnalysisPlan",
    "ArmEstimate",
    "ArmEvidence",
    "BanditLog",
    "BayesianComparison",
    "BettingSequence",
    "Block",
    "BlockSummary",
    "CanaryDecision",
    "CanaryVerdict",
    "Claim",
    "Comparison",
    "Corrected",
    "CovariateSummary",
    "Decision",
    "Direction",
    "EmpiricalBernsteinSequence",
    "ErrorProcess",
    "Evidence",
    "ExperimentPlan",
    "FamilyPlan",
    "GroupSequentialDesign",
    "GuardrailFinding",
    "Heterogeneity",
    "JointSummary",
    "Look",
    "MarginOutcome",
    "MarginTest",
    "Mean",
    "MeanSummary",
    "Metric",
    "MetricSummary",
    "Paired",
    "PairedRateSummary",
    "PairedRatioSummary",
    "PairedSummary",
    "PowerCurve",
    "Quantile",
    "QuantileInterval",
    "QuantileRanks",
    "QuantileSummary",
    "Rate",
    "RateSummary",
    "Ratio",
    "RatioCovariateSummary",
    "RatioSummary",
    "RelativeLift",
    "Role",
    "SampleRatio",
    "SegmentEvidence",
    "SegmentFinding",
    "Segments",
    "StageCounts",
    "StratifiedSummary",
    "Summary",
    "SwitchbackSchedule",
    "ThompsonSampling",
    "Traffic",
    "TrimmedSummary",
    "Verdict",
    "Where",
    "adjusted_rate_test",
    "adjusted_ratio_test",
    "alpha_spent",
    "anytime_expected_share",
    "anytime_inflation",
    "anytime_noncentrality",
    "anytime_power",
    "anytime_valid",
    "aw_aipw_test",
    "aw_aipw_value",
    "benjamini_hochberg",
    "benjamini_yekutieli",
    "beta_binomial",
    "beta_binomial_difference",
    "beta_binomial_log_e",
    "beta_binomial_sequence",
    "betting_difference",
    "betting_rate_difference",
    "boschloo_exact_test",
    "chances_best",
    "clustered_mean_test",
    "clustered_quantile_interval",
    "clustered_quantile_ranks",
    "clustered_rate_test",
    "cochran_mantel_haenszel_test",
    "cochran_q_test",
    "compare_at",
    "correct_comparisons",
    "cuped_summaries",
    "cuped_test",
    "cuped_theta",
    "decide",
    "decide_family",
    "default_lags",
    "design_effect",
    "detectable_effect",
    "dirichlet_log_e",
    "draw_arm",
    "dunnett_test",
    "e_bh",
    "empirical_bernstein_difference",
    "exit_probabilities",
    "farrington_manning_test",
    "first_errors",
    "fisher_exact_test",
    "generator_at",
    "geometric_lift",
    "group_sequential_test",
    "harm_alpha",
    "harm_test",
    "hodges_lehmann",
    "holm",
    "joint_test",
    "judge_canary",
    "least_n_for_quantile",
    "lin_test",
    "long_run_variance",
    "mann_whitney_test",
    "mcnemar_test",
    "mde_mean",
    "mde_rate",
    "miettinen_nurminen_test",
    "mixed_bets_difference",
    "mixed_bets_log_e",
    "mixture_log_e",
    "mixture_sprt",
    "newcombe_interval",
    "newey_west_test",
    "non_inferiority",
    "normal_posterior",
    "obrien_fleming_spending",
    "paired_t_test",
    "permutation_test",
    "plan_experiment",
    "pocock_spending",
    "power_mean",
    "power_rate",
    "power_spending",
    "quantile_interval",
    "quantile_ranks",
    "quantile_sequence",
    "quantile_test",
    "ratio_delta_test",
    "relative_lift",
    "required_n_mean",
    "required_n_rate",
    "required_pairs",
    "sample_ratio_mismatch",
    "segment_findings",
    "sequential_quantile_difference",
    "sequential_quantile_ranks",
    "sequential_quantile_test",
    "sequential_sample_ratio",
    "stratified_test",
    "summarise",
    "switchback_test",
    "tango_interval",
    "tango_score_test",
    "tost_equivalence",
    "two_proportion_z_test",
    "two_sided_power",
    "units_needed",
    "welch_t_test",
    "wilcoxon_signed_rank_test",
    "wilson_interval",
    "winner_of",
    "yuen_t_test",
    "z_boundary",
]
