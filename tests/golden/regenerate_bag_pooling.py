"""Recompute bag_pooling.json by running official code.

    PYTHONPATH=tests:PACKAGES python tests/golden/regenerate_bag_pooling.py SOURCES

SOURCES holds clones: ``clam`` (github.com/mahmoodlab/CLAM at 53e2409, GPL-3), ``topk``
(github.com/oval-group/smooth-topk at 12c1645, MIT), ``transmil`` (szc19990412/TransMIL at 9d6aee5,
no licence file), ``mcat`` (mahmoodlab/MCAT at b9cca63, GPL-3) and ``gigapath``
(prov-gigapath/prov-gigapath, Apache-2.0). PACKAGES holds nystrom-attention 0.0.14, einops, future
and kaiko-eva 0.4.5. All are run, none is copied.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from golden import pooling_inputs as given
from golden import regenerate_slide_encoder
from official_slide_weights import bag_of, official_weights
from torch import nn

HERE = Path(__file__).parent


def file_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def function_of(path: Path, name: str) -> Callable[..., torch.Tensor]:
    """One function of a file whose imports are not needed for it."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", None) == name]
    room: dict[str, Any] = {"torch": torch}
    exec(compile(tree, str(path), "exec"), room)
    return room[name]


@torch.no_grad()
def fill(official: nn.Module, ours: Mapping[str, str]) -> None:
    """Give official parameters the weights of our names; a row of ours as ``name[row]``."""
    for name, parameter in official.named_parameters():
        our_name, _, part = ours[name].partition("@")
        if not part:
            parameter.copy_(given.weight(our_name, parameter.shape).view(parameter.shape))
            continue
        row, n_rows = map(int, part.split("/"))
        shape = (n_rows * len(parameter), *parameter.shape[1:])
        parameter.copy_(given.weight(our_name, shape).chunk(n_rows)[row])


def clam_names(n_classes: int, *, multi_branch: bool) -> dict[str, str]:
    layers = {
        "attention_net.0": "pooling.embed.0",
        "attention_net.3.attention_a.0": "pooling.attention.content",
        "attention_net.3.attention_b.0": "pooling.attention.gate",
        "attention_net.3.attention_c": "pooling.attention.score",
    }
    if not multi_branch:
        layers["classifiers"] = "head.0"
    names = {f"{a}.{p}": f"{b}.{p}" for a, b in layers.items() for p in ("weight", "bias")}
    for c in range(n_classes):
        for p in ("weight", "bias"):
            names[f"instance_classifiers.{c}.{p}"] = f"pooling.instances.{p}@{c}/{n_classes}"
            if multi_branch:
                names[f"classifiers.{c}.{p}"] = f"head.{p}@{c}/{n_classes}"
    return names


def clam(sources: Path, *, multi_branch: bool) -> dict[str, Any]:
    sys.path[:0] = [str(sources / "clam"), str(sources / "topk")]
    module = file_of(sources / "clam" / "models" / "model_clam.py")
    svm = importlib.import_module("topk.svm").SmoothTop1SVM(n_classes=2)
    bags = given.features(given.CLAM_LENGTHS, given.CLAM_WIDTH).split(given.CLAM_LENGTHS)
    found: dict[str, Any] = {"logits": [], "attention": []}
    for loss_name, loss in (("svm", svm), ("cross_entropy", nn.CrossEntropyLoss())):
        for subtyping in (True, False):
            kind = module.CLAM_MB if multi_branch else module.CLAM_SB
            network = kind(
                n_classes=given.N_CLASSES,
                k_sample=given.N_INSTANCES,
                instance_loss_fn=loss,
                subtyping=subtyping,
                embed_dim=given.CLAM_WIDTH,
            ).eval()
            fill(network, clam_names(given.N_CLASSES, multi_branch=multi_branch))
            key = f"{loss_name}, {'all classes' if subtyping else 'own class'}"
            found[key] = []
            for bag, target in zip(bags, given.CLAM_TARGETS, strict=True):
                with torch.no_grad():
                    logits, _, _, score, more = network(
                        bag, label=torch.tensor([target]), instance_eval=True
                    )
                found[key].append(float(more["instance_loss"]))
                if len(found["logits"]) < len(bags):
                    found["logits"].append(logits[0].tolist())
                    found["attention"].append(score.softmax(dim=1)[:, :5].T.tolist())
    return found


def transmil_names() -> dict[str, str]:
    layers = {"_fc1.0": "pooling.embed.0", "norm": "pooling.norm", "_fc2": "head.0"}
    layers |= {
        f"pos_layer.proj{n}": f"pooling.positions.conv_{e}" for n, e in (("", 7), (1, 5), (2, 3))
    }
    for i in (0, 1):
        layers[f"layer{i + 1}.norm"] = f"pooling.norms.{i}"
        layers[f"layer{i + 1}.attn.to_out.0"] = f"pooling.attentions.{i}.proj"
    names = {f"{a}.{p}": f"{b}.{p}" for a, b in layers.items() for p in ("weight", "bias")}
    for i in (0, 1):
        names[f"layer{i + 1}.attn.to_qkv.weight"] = f"pooling.attentions.{i}.qkv.weight"
        names[f"layer{i + 1}.attn.res_conv.weight"] = f"pooling.attentions.{i}.value_conv.weight"
    return names | {"cls_token": "pooling.class_token"}


def transmil(sources: Path) -> dict[str, Any]:
    network = file_of(sources / "transmil" / "models" / "TransMIL.py").TransMIL(given.N_CLASSES)
    fill(network.eval(), transmil_names())
    torch.Tensor.cuda = lambda self: self  # its class token is moved to a GPU
    bags = given.features(given.TRANSMIL_LENGTHS, given.TRANSMIL_WIDTH)
    with torch.no_grad():
        logits = [
            network(data=bag[None])["logits"][0].tolist()
            for bag in bags.split(given.TRANSMIL_LENGTHS)
        ]
    return {"logits": logits}


def eva() -> dict[str, Any]:
    package = Path(importlib.util.find_spec("eva").submodule_search_locations[0])
    sys.modules["eva.core.models.networks"] = file_of(package / "core/models/networks/mlp.py")
    network = file_of(package / "vision/models/networks/abmil.py").ABMIL(
        given.EVA_WIDTH, given.N_CLASSES, projected_input_size=128
    )
    layers = {
        "projector.0": "pooling.embed.0",
        "gated_attention.attention_a.0": "pooling.attention.content",
        "gated_attention.attention_b.0": "pooling.attention.gate",
        "gated_attention.attention_c": "pooling.attention.score",
    } | {f"classifier._network.{i}": f"head.{i}" for i in (0, 2, 4)}
    fill(network, {f"{a}.{p}": f"{b}.{p}" for a, b in layers.items() for p in ("weight", "bias")})
    bags = given.features(given.EVA_LENGTHS, given.EVA_WIDTH).split(given.EVA_LENGTHS)
    with torch.no_grad():
        return {"logits": [network(bag[None])[0].tolist() for bag in bags]}


def mcat(sources: Path) -> dict[str, Any]:
    loss = function_of(sources / "mcat" / "utils" / "utils.py", "nll_loss")
    bins, censored = (torch.tensor(x) for x in (given.HAZARD_BINS, given.HAZARD_EVENTS))
    hazards, censored = given.HAZARD_LOGITS.sigmoid(), 1 - censored
    return {
        str(alpha): [
            float(loss(hazards[i : i + 1], None, bins[i : i + 1], censored[i : i + 1], alpha=alpha))
            for i in range(len(bins))
        ]
        for alpha in (0.0, 0.4)
    }


def gigapath(sources: Path) -> list[dict[str, Any]]:
    """The fine-tuned model of the open code: logits, gradients of a loss, layers by its names."""
    module = regenerate_slide_encoder.official(sources / "gigapath")
    heads = importlib.import_module("gigapath.classification_head")
    layer_of = function_of(sources / "gigapath" / "finetune" / "utils.py", "get_layer_id")
    sizes, found = given.GIGAPATH_SIZES, []

    def small_encoder(*_: object, in_chans: int, **options: Any) -> nn.Module:
        network = module.LongNetViT(
            in_chans=in_chans,
            embed_dim=sizes["width"],
            depth=sizes["depth"],
            slide_ngrids=regenerate_slide_encoder.N_CELLS,
            norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
            **options,
        )
        network.load_state_dict(official_weights(**sizes), strict=True)
        return network

    heads.slide_encoder.create_model = small_encoder
    for layers, route in given.GIGAPATH_ROUTES:
        network = heads.ClassificationHead(
            sizes["input_width"],
            sizes["width"],
            "-".join(map(str, layers)),
            n_classes=given.N_CLASSES,
            global_pool=route == "mean",
        ).eval()
        ours = {f"classifier.0.{p}": f"head.0.{p}" for p in ("weight", "bias")}
        fill(network.classifier, {name.partition(".")[2]: our for name, our in ours.items()})
        features, cells = bag_of(given.GIGAPATH_TILES, input_width=sizes["input_width"])
        logits = network(features[None], cells[None] * 256 + 100)
        nn.functional.cross_entropy(logits, torch.tensor([1])).backward()
        names = [name for name, _ in network.named_parameters()]
        found.append(
            {
                "logits": logits[0].tolist(),
                "head_gradient": network.classifier[0].weight.grad[0].tolist(),
                "tile_gradient": network.slide_encoder.patch_embed.proj.weight.grad[0].tolist(),
                "layers": {name: layer_of(name, sizes["depth"] + 1) for name in names},
            }
        )
    return found


def numbers(sources: Path) -> dict[str, Any]:
    """All of them, from clones below a folder and packages on the path."""
    return {
        "clam_sb": clam(sources, multi_branch=False),
        "clam_mb": clam(sources, multi_branch=True),
        "transmil": transmil(sources),
        "eva_abmil": eva(),
        "mcat_nll": mcat(sources),
        "gigapath_head": gigapath(sources),
    }


if __name__ == "__main__":
    text = json.dumps(numbers(Path(sys.argv[1])), indent=1)
    (HERE / "bag_pooling.json").write_text(text + "\n")
