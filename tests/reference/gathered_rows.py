"""A metric under weights of groups, the slow way: each row repeated as often as its group."""

import numpy as np


def resample_weights(generator, n_groups, n_resamples):
    """(R, G) counts of a bootstrap of the groups."""
    share = np.full(n_groups, 1 / n_groups)
    return generator.multinomial(n_groups, share, size=n_resamples).astype(np.float64)


def on_gathered_rows(function, columns, group_N, weight_RG):
    """The function of the repeated rows, one weighting after another."""
    values = []
    for weight_G in weight_RG:
        rows = np.repeat(np.arange(len(group_N)), weight_G[group_N].astype(int))
        values.append(function(*(column[rows] for column in columns)))
    return np.array(values)
