#!/usr/bin/env bash
# Everything that needs a CUDA device, in one go: the gpu tests, then the demo with its times and
# peak memory; then the loader, if a slide is given. Prints what docs/benchmarks.md wants to know. Usage: benchmarks/gpu.sh [OUT [SLIDE]]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-$(mktemp -d)}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
uv run python -c 'import torch; print("torch", torch.__version__, "cuda", torch.version.cuda)'

uv run pytest -m gpu -n 0 -rs

started=$(date +%s)
uv run anlage demo --out "$out/demo"
echo "demo: $(($(date +%s) - started)) s"
uv run python - "$out/demo/run/metrics.jsonl" <<'PY'
import sys
from pathlib import Path
from statistics import median

from anlage.training.log import read_metrics

rows = read_metrics(Path(sys.argv[1]))[10:]
for key in ("tiles_per_s", "data_wait_share", "loss"):
    print(key, "median of the steps after the tenth:", round(median(r[key] for r in rows), 4))
PY

if [ $# -ge 2 ]; then
    uv run benchmarks/loader.py "$2" --json "$out/loader.json"
fi
