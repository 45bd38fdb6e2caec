"""AUROC and its variance from all pairs of rows, as DeLong and Obuchowski wrote them down."""

import numpy as np


def kernel(positive, negative):
    """(P, Q): 1 where the positive scores higher, half where equal."""
    above = positive[:, None] > negative[None, :]
    return above + 0.5 * (positive[:, None] == negative[None, :])


def slow_covariance(truth, scores, group):
    """Covariance of AUROCs by loops over patients; (auroc (S,), covariance (S, S))."""
    names = np.unique(group)
    positive = [names_ for names_ in names if (truth[group == names_] == 1).any()]
    negative = [names_ for names_ in names if (truth[group == names_] == 0).any()]
    m, n = (truth == 1).sum(), (truth == 0).sum()
    pairs = [kernel(s[truth == 1], s[truth == 0]) for s in scores]
    auroc = np.array([k.mean() for k in pairs])
    s10, s01, s11 = (np.zeros((len(scores),) * 2) for _ in range(3))
    for name in names:
        of_p, of_q = group[truth == 1] == name, group[truth == 0] == name
        p = [k.mean(1)[of_p].sum() - of_p.sum() * a for k, a in zip(pairs, auroc, strict=True)]
        q = [k.mean(0)[of_q].sum() - of_q.sum() * a for k, a in zip(pairs, auroc, strict=True)]
        for r in range(len(scores)):
            for s in range(len(scores)):
                s10[r, s] += p[r] * p[s] * len(positive) / ((len(positive) - 1) * m)
                s01[r, s] += q[r] * q[s] * len(negative) / ((len(negative) - 1) * n)
                s11[r, s] += p[r] * q[s] * len(names) / (len(names) - 1)
    return auroc, s10 / m + s01 / n + (s11 + s11.T) / (m * n)
