"""Recompute delong.json by running R's pROC.

    python tests/golden/regenerate_delong.py

Needs Rscript with pROC 1.18.0 (GPL-3; run, not copied or linked) beside the test environment.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np

SCRIPT = """
suppressMessages(library(pROC))
x <- read.csv(file("stdin"))
a <- roc(x$truth, x$a, direction = "<", quiet = TRUE)
b <- roc(x$truth, x$b, direction = "<", quiet = TRUE)
test <- roc.test(a, b, method = "delong", paired = TRUE)
show <- function(name, v) cat(name, format(v, digits = 15), "\\n")
show("version", as.character(packageVersion("pROC")))
show("auroc_a", as.numeric(auc(a)))
show("auroc_b", as.numeric(auc(b)))
show("variance_a", var(a, method = "delong"))
show("variance_b", var(b, method = "delong"))
show("covariance", cov(a, b, method = "delong"))
show("low_a", ci.auc(a, method = "delong")[1])
show("high_a", ci.auc(a, method = "delong")[3])
show("z", as.numeric(test$statistic))
show("p_value", test$p.value)
show("low", test$conf.int[1])
show("high", test$conf.int[2])
"""


def main() -> None:
    """Score 80 made-up rows with ties in R, and keep rows and numbers."""
    generator = np.random.default_rng(7)
    truth = (generator.random(80) < 0.4).astype(int)
    hidden = truth + generator.normal(0, 1, 80)
    a = np.round(hidden + generator.normal(0, 0.5, 80), 1)
    b = np.round(3 * hidden + generator.normal(0, 4, 80)) + 10
    lines = ["truth,a,b", *(f"{t},{x},{y}" for t, x, y in zip(truth, a, b, strict=True))]
    output = subprocess.run(
        ["Rscript", "-e", SCRIPT],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    numbers = dict(line.split() for line in output.splitlines())
    golden = {
        "origin": f"R pROC {numbers.pop('version')}, roc.test and ci.auc, method delong",
        "truth": truth.tolist(),
        "a": a.tolist(),
        "b": b.tolist(),
        **{name: float(value) for name, value in numbers.items()},
    }
    path = Path(__file__).with_name("delong.json")
    path.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
