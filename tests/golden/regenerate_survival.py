"""Recompute survival.json by running scikit-survival.

    python tests/golden/regenerate_survival.py

Needs scikit-survival 0.28.0 (GPL-3, in an environment of its own; it is run, not copied). The
cohorts are stored with the numbers, so that no generator of random numbers needs to agree.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import sksurv.metrics as m
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

PACKAGES = ("scikit-survival", "numpy", "scikit-learn")


def cohort(seed: int, n_rows: int, *, has_ties: bool) -> dict[str, list]:
    """Features, risks, times and events of made patients; ties in time and risk where asked."""
    rng = np.random.default_rng(seed)
    feature = rng.normal(size=(n_rows, 4)).round(3)
    hazard = np.exp(feature @ [0.8, -0.5, 0.0, 0.3])
    death, lost = rng.exponential(10 / hazard), rng.exponential(15, size=n_rows)
    time, event = np.minimum(death, lost) + 0.1, death <= lost
    risk = (feature @ [0.6, -0.5, 0.2, 0.1]).round(1 if has_ties else 3)
    time = time.round(0 if has_ties else 3) + (1 if has_ties else 0)
    columns = {"feature": feature, "risk": risk, "time": time, "event": event.astype(int)}
    return {name: column.tolist() for name, column in columns.items()}


def scores(train: dict[str, list], test: dict[str, list]) -> dict[str, object]:
    """Every number that the tests compare with, for one pair of cohorts."""
    fitted = Surv.from_arrays(np.array(train["event"], bool), train["time"])
    kept = np.array(test["time"]) < max(train["time"])
    event, time = np.array(test["event"], bool)[kept], np.array(test["time"])[kept]
    judged, risk = Surv.from_arrays(event, time), np.array(test["risk"])[kept]
    times = np.quantile(time, [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]) + 0.05
    tau = float(np.quantile(time, 0.8))
    found = {
        "kept": np.flatnonzero(kept).tolist(),
        "times": times.tolist(),
        "tau": tau,
        "harrell_c": float(m.concordance_index_censored(event, time, risk)[0]),
        "uno_c": float(m.concordance_index_ipcw(fitted, judged, risk)[0]),
        "uno_c_tau": float(m.concordance_index_ipcw(fitted, judged, risk, tau=tau)[0]),
        "auc": m.cumulative_dynamic_auc(fitted, judged, risk, times)[0].tolist(),
    }
    at, share, interval = kaplan_meier_estimator(
        np.array(train["event"], bool), train["time"], conf_type="log-log"
    )
    found["kaplan_meier"] = [at.tolist(), share.tolist(), *interval.tolist()]
    for ties in ("breslow", "efron"):
        for alpha in (1e-8, 3.0):
            model = CoxPHSurvivalAnalysis(alpha=alpha, ties=ties, tol=1e-14, n_iter=200)
            model.fit(np.array(train["feature"]), fitted)
            curves = model.predict_survival_function(np.array(test["feature"])[kept])
            survival = np.array([curve(times) for curve in curves])
            found[f"cox_{ties}_{alpha:g}"] = {
                "weight": model.coef_.tolist(),
                "survival": survival[:5].tolist(),
                "integrated_brier": float(
                    m.integrated_brier_score(fitted, judged, survival, times)
                ),
            }
    return found


def main() -> None:
    """Score two pairs of cohorts, without ties and with many."""
    golden: dict[str, object] = {name: version(name) for name in PACKAGES}
    for name, has_ties in (("distinct", False), ("tied", True)):
        train = cohort(1, 90, has_ties=has_ties)
        test = cohort(2, 70, has_ties=has_ties)
        golden[name] = {"train": train, "test": test, "scores": scores(train, test)}
    Path(__file__).with_name("survival.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
