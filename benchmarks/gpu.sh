#!/usr/bin/env bash
# Everything that needs a CUDA device. Prints what docs/benchmarks.md wants to know.
#
#   benchmarks/gpu.sh [OUT [SLIDE]]   the gpu tests, then the demo with its times and peak memory;
#                                     then the loader, if a slide is given
#   benchmarks/gpu.sh MODEL [OUT]     pretraining of vit-s14, vit-b14, vit-l14, vit-h14, vit-g14,
#                                     vit-h14-float8 or vit-g14-float8, from tensors and from
#                                     slides, at most 4 minutes each; rows go to docs/benchmarks.md,
#                                     JSON to OUT. SLIDES names a catalogue or slides in place of
#                                     the bundled ones, THREADS the loader's.
#   benchmarks/gpu.sh embed SLIDE [OUT]
#                                     embedding a JPEG slide by ViT-L/16, H/14 and g/14 in bf16,
#                                     beside timm's forward pass on tensors that are there;
#                                     JSON to OUT
#   benchmarks/gpu.sh slide [OUT]     the slide encoder of GigaPath's size in bf16: tiles/s and memory
#                                     forward and backward at 10,000 and 70,121 tiles, attention
#                                     beside SDPA of the tensors it gathers, and 8 bags at once
#                                     beside one by one; JSON to OUT
#
# GPU_SH_DRY=1 prints what a MODEL would run, and runs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

bench_model() {
    local model=$1 out=$2 source
    # 2 x 224 + 8 x 98 px, 65,536 prototypes; batches that fit 80 GB by `--dry-run`
    local changes=(
        views.source_px=256 views.mode=resized views.global_px=224 views.local_px=98 views.n_local=8
        "tiles.magnifications={1.0: 1.0}" encoder.mpp=1.0
        head.n_prototypes=65536 objective.prototype_memory_mb=2048
        precision=bf16 engine.compile=blocks
    )
    case $model in
    vit-s14) changes+=(model.size=vit-s14 batch_size=320) ;;
    vit-b14) changes+=(model.size=vit-s14 model.width=768 model.n_heads=12 batch_size=160) ;;
    vit-l14) changes+=(model.size=vit-l14-reg4 model.n_registers=0 batch_size=64) ;;
    vit-h14 | vit-h14-float8) changes+=(model.size=vit-h14-reg4 batch_size=28) ;;
    vit-g14 | vit-g14-float8)
        changes+=(model.size=vit-g14 model.stochastic_depth=0.4 engine.recompute=full batch_size=96)
        ;;
    *)
        echo "gpu.sh: needs vit-s14, vit-b14, vit-l14, vit-h14, vit-g14, vit-h14-float8 or" \
            "vit-g14-float8; got $model." >&2
        return 2
        ;;
    esac
    if [[ $model == *-float8 ]]; then changes+=(engine.linears=float8); fi
    local sets=()
    for change in "${changes[@]}"; do sets+=(--set "$change"); done
    for source in tensors slides; do
        local command=(
            timeout 240 uv run anlage bench train --recipe small-1gpu "${sets[@]}"
            --from "$source" --steps 40 --warm-up 10 --device cuda --json
        )
        if [ "$source" = slides ]; then
            command+=(--threads "${THREADS:-$(nproc)}")
            if [ -n "${SLIDES:-}" ]; then command+=(--slides "$SLIDES"); fi
        fi
        if [ -n "${GPU_SH_DRY:-}" ]; then
            printf '%q ' "${command[@]}"
            echo
            continue
        fi
        mkdir -p "$out"
        "${command[@]}" >"$out/$model-$source.json"
        uv run python benchmarks/gpu_row.py "$model" "$out/$model-$source.json" docs/benchmarks.md
    done
}

if [[ ${1:-} == vit-* ]]; then
    bench_model "$1" "${2:-$(mktemp -d)}"
    exit
fi

if [[ ${1:-} == embed ]]; then
    slide=${2:?gpu.sh: needs a slide after embed} out=${3:-$(mktemp -d)}
    mkdir -p "$out"
    uv run benchmarks/embedding.py "$slide" --parts timm --device cuda --batch 256 \
        --threads "${THREADS:-$(nproc)}" --json "$out/embedding.json"
    exit
fi

if [[ ${1:-} == slide ]]; then
    out=${2:-$(mktemp -d)}
    mkdir -p "$out"
    uv run pytest -m gpu -n 0 -rs tests/models
    uv run benchmarks/slide_encoder.py --parts train --device cuda --dtype bfloat16 \
        --json "$out/slide_train.json"
    uv run benchmarks/slide_encoder.py --parts batch --device cuda --json "$out/slide_batch.json"
    exit
fi

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
