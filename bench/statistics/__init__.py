"""Uncertainty of a comparison between two models that answered the same items.

Items of one template, passage or window are not independent, so every standard error is by cluster, and every
interval is paired. Arrays are float64 [n]; `clusters` holds one label an item. Each formula is held against
simulation in tests/bench/statistics.
"""

from qdeploy.bench.statistics.contingency import changes, mcnemar, newcombe
from qdeploy.bench.statistics.intervals import (
    CONFIDENCE,
    Array,
    accuracy_interval,
    bootstrap_mean,
    cluster_codes,
    clustered_error,
    design_effect,
    high_of,
    low_of,
    mean_interval,
    share,
    wilson,
)
from qdeploy.bench.statistics.latency import ratio_of_runs
from qdeploy.bench.statistics.paired import (
    Pairs,
    moments,
    paired_difference,
    recovery,
    suite_difference,
    suite_mean,
    suite_recovery,
)
from qdeploy.bench.statistics.power import detectable_difference, items_for_difference, items_for_verdict
from qdeploy.bench.statistics.quantiles import normal_quantile, student_cdf, student_quantile
from qdeploy.bench.statistics.sequential import nominal_levels, repeated_p
from qdeploy.bench.statistics.verdicts import (
    LEVEL,
    MARGINS,
    difference_p,
    holm,
    inferiority_p,
    judge,
    overall,
    recovery_bounds,
    verdict,
)

__all__ = [
    "CONFIDENCE",
    "LEVEL",
    "MARGINS",
    "Array",
    "Pairs",
    "accuracy_interval",
    "bootstrap_mean",
    "changes",
    "cluster_codes",
    "clustered_error",
    "design_effect",
    "detectable_difference",
    "difference_p",
    "high_of",
    "holm",
    "inferiority_p",
    "items_for_difference",
    "items_for_verdict",
    "judge",
    "low_of",
    "mcnemar",
    "mean_interval",
    "moments",
    "newcombe",
    "nominal_levels",
    "normal_quantile",
    "overall",
    "paired_difference",
    "ratio_of_runs",
    "recovery",
    "recovery_bounds",
    "repeated_p",
    "share",
    "student_cdf",
    "student_quantile",
    "suite_difference",
    "suite_mean",
    "suite_recovery",
    "verdict",
    "wilson",
]
