"""The obvious bootstrap over groups: draw them, gather their rows, score the rows."""

import numpy as np
from scipy import stats


def slow_bootstrap(score, columns, group, *, n_resamples, seed):
    """Values of all resamples, drawn without strata."""
    names = np.unique(group)
    drawn = np.random.default_rng(seed).integers(len(names), size=(n_resamples, len(names)))
    return np.array([score(*gathered(columns, group, names[row])) for row in drawn])


def gathered(columns, group, drawn):
    """The rows of the drawn groups, as often as they were drawn."""
    rows = np.concatenate([np.flatnonzero(group == name) for name in drawn])
    return tuple(column[rows] for column in columns)


def slow_leave_one_out(score, columns, group):
    """The score without each group in its turn."""
    return np.array([score(*(c[group != name] for c in columns)) for name in np.unique(group)])


def widened_tails(n_groups, *, confidence=0.95):
    """The two quantiles of an expanded percentile interval (Hesterberg 2015, section 5.3)."""
    t = stats.t.isf((1 - confidence) / 2, n_groups - 1)
    tail = stats.norm.sf(t * np.sqrt(n_groups / (n_groups - 1)))
    return [tail, 1 - tail]
