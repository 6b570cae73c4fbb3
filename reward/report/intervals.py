"""95 % confidence intervals, each as {"low", "high"}: by resampling, and of shares by Wilson's equation."""

import math

import numpy as np
from scipy.stats import norm

WILSON_BELOW = 30  # prompts: resampling a handful of them gives intervals that are too narrow
BLOCK = 100_000  # draws that are made at once: many small resamples take few calls, and large ones little memory


def mean_interval(values, num_bootstrap, seed, groups=None):
    """Mean of values [n] and its 95 % percentile bootstrap interval: {"value", "low", "high"}.

    Whole prompts are resampled: rows with the same entry in groups [n] stay together, for they are not independent.
    Without groups each row is its own. Efron 1979; for clusters, Field and Welsh 2007.
    """
    values = np.asarray(values, dtype=float)
    assert len(values) > 0, "an interval needs at least one value"
    return ratio_interval(values, np.ones(len(values)), num_bootstrap, seed, groups)


def ratio_interval(sums, counts, num_bootstrap, seed, groups=None):
    """The same of values that are summed up in part already: sums [n] of counts [n] values each."""
    groups = range(len(sums)) if groups is None else groups
    _, index = np.unique(groups if isinstance(groups, np.ndarray) else list(groups), return_inverse=True)
    value, (sums, counts) = sums.sum() / counts.sum(), (np.bincount(index, weights=one) for one in (sums, counts))
    rng, at_once, ratios = np.random.default_rng(seed), max(1, BLOCK // len(sums)), []
    for first in range(0, num_bootstrap, at_once):
        picked = rng.integers(len(sums), size=(min(at_once, num_bootstrap - first), len(sums)))
        ratios.append(sums[picked].sum(axis=1) / counts[picked].sum(axis=1))
    return {"value": float(value), **percentile_interval(np.concatenate(ratios))}


def percentile_interval(resampled):
    """{"low", "high"} of a figure from its values in bootstrap resamples. Efron 1979."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def wilson_interval(share, n):
    """{"low", "high"}: the 95 % interval of a share seen in n trials.

    Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.
    """
    z2 = norm.ppf(0.975) ** 2
    middle, half = share + z2 / (2 * n), math.sqrt(z2 * (share * (1 - share) + z2 / (4 * n)) / n)
    return {"low": max(0.0, (middle - half) / (1 + z2 / n)), "high": min(1.0, (middle + half) / (1 + z2 / n))}
