"""Recompute slide_encoder.json by running the official code on the CPU.

    cd tests/golden
    PYTHONPATH=.. uv run --with einops python regenerate_slide_encoder.py CLONE [FILE]

Needs a clone of github.com/prov-gigapath/prov-gigapath (Apache-2.0), which has its own torchscale
(MIT); their files are run, not copied. Four things stand in for what a CPU lacks: attention in
plain torch for flash-attn, empty names of fairscale (of which nothing runs), NumPy's old way of
printing numbers (the code reads segments back from text), and a grid of 128 cells a side, since
its table of 1,000 takes 2.9 GiB; the rows of the cells are the same.
"""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from official_slide_weights import bag_of, official_weights
from torch import Tensor

SMALL = {"input_width": 24, "width": 32, "depth": 2}
FULL = {"input_width": 1536, "width": 768, "depth": 12}
SMALL_CASES = [  # of an edge of the largest slide in pixels, and tiles
    *((262144, n_tiles) for n_tiles in (37, 1500, 6001)),
    *((250000, n_tiles) for n_tiles in (37, 1500, 6001)),
    (12000, 2900),  # segments 1217 and 1722 that the dilations 2 and 8 do not divide
]
FULL_LENGTH = 1100
N_CELLS = 128
TILE_PX = 256


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object
) -> tuple[Tensor, Tensor]:
    """What flash-attn gives: (B, L, H, E), and log-sum-exp (B, H, L)."""
    logits = torch.einsum("bqhe,bkhe->bhqk", query, key) * query.shape[-1] ** -0.5
    sums = logits.logsumexp(dim=-1)
    return torch.einsum("bhqk,bkhe->bqhe", (logits - sums[..., None]).exp(), value), sums


def official(clone: Path) -> ModuleType:
    """The module ``gigapath.slide_encoder``, ready for the CPU."""
    np.set_printoptions(legacy="1.25")
    fairscale, names = ModuleType("fairscale"), ModuleType("fairscale.nn")
    names.checkpoint_wrapper = names.wrap = None
    package = ModuleType("gigapath")  # without its __init__, which needs more
    package.__path__ = [str(clone / "gigapath")]
    sys.modules |= {"fairscale": fairscale, "fairscale.nn": names, "gigapath": package}
    sys.path.insert(0, str(clone / "gigapath"))
    module = importlib.import_module("gigapath.slide_encoder")
    attention = importlib.import_module("torchscale.component.multihead_attention")
    attention.flash_attn_func = plain_attention
    configs = importlib.import_module("torchscale.model.LongNetConfig")
    sizes = {"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 128}
    configs.LongNet_2_layers_32_dim = configs.LongNet_12_layers_768_dim | sizes
    return module


def outputs(
    module: ModuleType, sizes: dict[str, int], n_tiles: int, **options: Any
) -> dict[str, Tensor]:
    """All states and the output for one bag: ``states`` (K, D) and ``output`` (D,)."""
    network = module.LongNetViT(
        in_chans=sizes["input_width"],
        embed_dim=sizes["width"],
        depth=sizes["depth"],
        slide_ngrids=N_CELLS,
        norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
        **options,
    ).eval()
    network.load_state_dict(official_weights(**sizes), strict=True)
    features, cells = bag_of(n_tiles, input_width=sizes["input_width"])
    corners = cells[None] * TILE_PX + 100
    with torch.no_grad():
        states = network(features[None], corners, all_layer_embed=True)
        (last,) = network(features[None], corners)
    return {"states": torch.cat(states), "output": last[0]}


def rounded(values: Tensor) -> Any:
    return json.loads(
        json.dumps(values.tolist()), parse_float=lambda text: float(f"{float(text):.7g}")
    )


def official_numbers(clone: Path) -> dict[str, Any]:
    """The numbers of slide_encoder.json."""
    with redirect_stdout(sys.stderr):
        module = official(clone)
        small = [
            {
                "max_slide_px": max_slide_px,
                "n_tiles": n_tiles,
                "pooling": pooling,
                **{
                    name: rounded(values)
                    for name, values in outputs(
                        module,
                        SMALL,
                        n_tiles,
                        max_wsi_size=max_slide_px,
                        global_pool=pooling == "mean",
                    ).items()
                },
            }
            for max_slide_px, n_tiles in SMALL_CASES
            for pooling in ("cls", "mean")
        ]
        full = outputs(module, FULL, FULL_LENGTH)
    return {
        "origin": "prov-gigapath/prov-gigapath, see regenerate_slide_encoder.py",
        "small": small,
        "full": {
            "n_tiles": FULL_LENGTH,
            "states": rounded(full["states"][:, ::96]),
            "output": rounded(full["output"][::96]),
        },
    }


def main() -> None:
    output = Path(__file__).with_name("slide_encoder.json")
    if sys.argv[2:]:
        output = Path(sys.argv[2])
    output.write_text(json.dumps(official_numbers(Path(sys.argv[1]).resolve())) + "\n")


if __name__ == "__main__":
    main()
