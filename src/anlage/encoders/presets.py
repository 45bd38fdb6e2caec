"""Published tile encoders by name: what each is, where it lies, and how it is used.

A fact is ``verified`` where a public source that we read confirms it: the code that loads the very
file strictly, its config, or its card. No weights were at hand: that a file of the published format
gives the published model's embeddings is tested with random weights (tests/encoders).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Channels = tuple[float, float, float]
IMAGENET: tuple[Channels, Channels] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF: tuple[Channels, Channels] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
H_OPTIMUS: tuple[Channels, Channels] = (
    (0.707223, 0.578729, 0.703617),
    (0.211883, 0.230117, 0.177517),
)
HIBOU: tuple[Channels, Channels] = (0.7068, 0.5755, 0.722), (0.195, 0.2316, 0.1816)
LUNIT: tuple[Channels, Channels] = (
    (0.70322989, 0.53606487, 0.66096631),
    (0.21716536, 0.26081574, 0.20723464),
)
GENBIO: tuple[Channels, Channels] = (0.697, 0.575, 0.728), (0.188, 0.24, 0.187)
FILES = ("model.safetensors", "pytorch_model.bin")
NON_COMMERCIAL = "CC-BY-NC-ND-4.0"


class Preset(BaseModel):
    """A published encoder.

    Attributes:
        name: What it is called here.
        label: Its architecture in short, such as ``ViT-L/16``.
        architecture: Keyword arguments of ``VisionTransformer``, without ``image_px``; empty for a
            network that runs by its authors' own code.
        grids_px: Image sizes that the positions of its file may be for.
        remote: How its authors' code gives the encoder: ``model``, the model itself, or
            ``return_conch``, what this method of it gives; None for what runs on our transformer.
        repo: Repository on the Hugging Face hub.
        files: Weight files to look for there, in this order.
        licence: Licence of the weights.
        gated: Whether its page asks for an account and an agreement.
        tile_px: Edge of a tile, pixels at ``mpp``.
        mpp: Resolution it is used at unless another is asked for, micrometres per pixel.
        mpps: Resolutions it was trained at; empty where no source says, or it saw no slides.
        mean: Mean taken off each channel of pixels in [0, 1].
        std: Standard deviation each channel is divided by.
        pooling: See ``EncoderConfig``.
        width: Embedding width.
        precision: What its authors or other tools run it in.
        verified: The source that confirms architecture, names and transform; None for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    label: str
    architecture: dict[str, Any]
    grids_px: tuple[int, ...] = (224,)
    remote: Literal["model", "return_conch"] | None = None
    repo: str
    files: tuple[str, ...] = FILES
    licence: str
    gated: bool = False
    tile_px: int = 224
    mpp: float = 0.5
    mpps: tuple[float, ...] = (0.5,)
    mean: Channels
    std: Channels
    pooling: Literal["cls", "cls+mean", "own"] = "cls"
    width: int
    precision: Literal["fp32", "bf16", "fp16"] = "fp16"
    verified: str | None = None


def _preset(  # noqa: PLR0917 - what every entry has, in a line
    name: str,
    label: str,
    repo: str,
    licence: str,
    colours: tuple[Channels, Channels],
    **more: Any,  # noqa: ANN401 - fields of Preset
) -> Preset:
    architecture = dict(more.pop("architecture", {}))
    width = more.pop("width", architecture.get("width", 0))
    if more.get("pooling") == "cls+mean":
        width *= 2
    return Preset(
        name=name,
        label=label,
        architecture=architecture,
        repo=repo,
        licence=licence,
        mean=colours[0],
        std=colours[1],
        width=width,
        **more,
    )


def _vit(size: str, patch_px: int, **more: object) -> dict[str, Any]:
    """Arguments of a vision transformer of DINO's and DINOv2's sizes."""
    width, depth, n_heads = {
        "s": (384, 12, 6),
        "b": (768, 12, 12),
        "l": (1024, 24, 16),
        "h": (1280, 32, 16),
        "g": (1536, 40, 24),
    }[size]
    sizes = {"patch_px": patch_px, "width": width, "depth": depth, "n_heads": n_heads}
    swiglu = {"feed_forward": "swiglu"} if size == "g" else {}
    return {**sizes, "layer_scale": 1e-5, **swiglu, **more}


def _kaiko(name: str, label: str, timm: str, **more: Any) -> Preset:  # noqa: ANN401
    repo = f"1aurent/{timm}.kaiko_ai_towards_large_pathology_fms"
    return _preset(
        f"kaiko-{name}",
        label,
        repo,
        "kaiko non-commercial",
        HALF,
        files=("model.safetensors",),
        mpps=(0.25, 0.5, 1.0, 2.0),
        precision="fp32",
        verified="kaiko's hubconf.py, and TRIDENT's loader of this repository",
        **more,
    )


def _dinov2(size: str, label: str, timm: str) -> Preset:
    return _preset(
        f"dinov2-{size}",
        label,
        f"timm/vit_{timm}_patch14_dinov2.lvd142m",
        "Apache-2.0",
        IMAGENET,
        architecture=_vit(size, 14),
        grids_px=(518,),
        mpps=(),
        verified="timm's model and pretrained_cfg of this name",
    )


VIRCHOW = _vit("h", 14, feed_forward="swiglu")
TABLE = (
    _preset(
        "uni",
        "ViT-L/16",
        "MahmoodLab/UNI",
        NON_COMMERCIAL,
        IMAGENET,
        architecture=_vit("l", 16),
        gated=True,
        verified="TRIDENT's strict loader of this file",
    ),
    _preset(
        "uni2-h",
        "ViT-H/14, 8 registers",
        "MahmoodLab/UNI2-h",
        NON_COMMERCIAL,
        IMAGENET,
        architecture=_vit("g", 14, depth=24, n_registers=8),
        gated=True,
        precision="bf16",
        verified="its card's arguments, in TRIDENT's strict loader of this file",
    ),
    _preset(
        "virchow",
        "ViT-H/14",
        "paige-ai/Virchow",
        "Apache-2.0",
        IMAGENET,
        architecture=VIRCHOW,
        gated=True,
        pooling="cls+mean",
        verified="TRIDENT's strict loader of this file",
    ),
    _preset(
        "virchow2",
        "ViT-H/14, 4 registers",
        "paige-ai/Virchow2",
        NON_COMMERCIAL,
        IMAGENET,
        architecture={**VIRCHOW, "n_registers": 4},
        gated=True,
        pooling="cls+mean",
        mpps=(0.25, 0.5, 1.0, 2.0),
        verified="TRIDENT's strict loader of this file; its card's pooling in slide2vec",
    ),
    _preset(
        "prov-gigapath",
        "ViT-g/16",
        "prov-gigapath/prov-gigapath",
        "Apache-2.0 with conditions",
        IMAGENET,
        architecture=_vit("g", 16),
        files=("pytorch_model.bin",),
        gated=True,
        verified="its pipeline.py, and TRIDENT's strict loader of this file",
    ),
    _kaiko(
        "vits16",
        "ViT-S/16",
        "vit_small_patch16_224",
        architecture=_vit("s", 16, layer_scale=None),
    ),
    _kaiko("vits8", "ViT-S/8", "vit_small_patch8_224", architecture=_vit("s", 8, layer_scale=None)),
    _kaiko(
        "vitb16", "ViT-B/16", "vit_base_patch16_224", architecture=_vit("b", 16, layer_scale=None)
    ),
    _kaiko("vitb8", "ViT-B/8", "vit_base_patch8_224", architecture=_vit("b", 8, layer_scale=None)),
    _kaiko(
        "vitl14",
        "ViT-L/14, 4 registers",
        "vit_large_patch14_reg4_224",
        architecture=_vit("l", 14, n_registers=4),
        grids_px=(518, 224),
    ),
    _preset(
        "midnight-12k",
        "ViT-g/14",
        "kaiko-ai/midnight",
        "MIT",
        HALF,
        architecture=_vit("g", 14, antialias=False),
        grids_px=(224, 518),
        files=("model.safetensors",),
        pooling="cls+mean",
        mpps=(0.25, 0.5, 1.0, 2.0),
        verified="its card (Dinov2Model of transformers, transform, pooling)",
    ),
    _preset(
        "h-optimus-0",
        "ViT-g/14, 4 registers",
        "bioptimus/H-optimus-0",
        "Apache-2.0",
        H_OPTIMUS,
        architecture=_vit("g", 14, n_registers=4),
        verified="its config.json",
    ),
    _preset(
        "h-optimus-1",
        "ViT-g/14, 4 registers",
        "bioptimus/H-optimus-1",
        NON_COMMERCIAL,
        H_OPTIMUS,
        architecture=_vit("g", 14, n_registers=4),
        gated=True,
        verified="TRIDENT's strict loader of this file",
    ),
    _preset(
        "h0-mini",
        "ViT-B/14, 4 registers",
        "bioptimus/H0-mini",
        NON_COMMERCIAL,
        H_OPTIMUS,
        architecture=_vit("b", 14, n_registers=4, feed_forward="swiglu"),
        gated=True,
        pooling="cls+mean",
    ),
    _preset(
        "phikon",
        "ViT-B/16",
        "owkin/phikon",
        "Owkin non-commercial",
        IMAGENET,
        architecture=_vit("b", 16, layer_scale=None, norm_eps=1e-12, antialias=False),
        precision="fp32",
        verified="its config.json (ViTModel of transformers)",
    ),
    _preset(
        "phikon-v2",
        "ViT-L/16",
        "owkin/phikon-v2",
        "Owkin non-commercial",
        IMAGENET,
        architecture=_vit("l", 16, antialias=False),
        files=("model.safetensors",),
        precision="fp32",
        verified="its config.json (Dinov2Model of transformers)",
    ),
    _preset(
        "hibou-b",
        "ViT-B/14, 4 registers",
        "histai/hibou-b",
        "Apache-2.0",
        HIBOU,
        architecture=_vit("b", 14, n_registers=4, feed_forward="swiglu"),
        files=("model.safetensors",),
        precision="fp32",
        verified="its config.json, and HistAI/hibou's build_model",
    ),
    _preset(
        "hibou-l",
        "ViT-L/14, 4 registers",
        "histai/hibou-L",
        "Apache-2.0",
        HIBOU,
        architecture=_vit("l", 14, n_registers=4, feed_forward="swiglu"),
        gated=True,
        precision="fp32",
    ),
    _preset(
        "lunit-vits8",
        "ViT-S/8",
        "1aurent/vit_small_patch8_224.lunit_dino",
        "Lunit non-commercial",
        LUNIT,
        architecture=_vit("s", 8, layer_scale=None),
        files=("model.safetensors",),
        precision="fp32",
        verified="Lunit's README, eva's and TRIDENT's loaders",
    ),
    _preset(
        "lunit-vits16",
        "ViT-S/16",
        "1aurent/vit_small_patch16_224.lunit_dino",
        "Lunit non-commercial",
        LUNIT,
        architecture=_vit("s", 16, layer_scale=None),
        files=("model.safetensors",),
        precision="fp32",
        verified="Lunit's README, eva's and TRIDENT's loaders",
    ),
    _preset(
        "conch-v1.5",
        "ViT-L/16, attentional pooling",
        "MahmoodLab/TITAN",
        NON_COMMERCIAL,
        IMAGENET,
        remote="return_conch",
        files=(),
        gated=True,
        tile_px=448,
        mpp=512 * 0.5 / 448,
        mpps=(512 * 0.5 / 448,),
        pooling="own",
        width=768,
    ),
    _preset(
        "genbio-pathfm",
        "ViT-g/16, a pass a channel",
        "genbio-ai/genbio-pathfm",
        "GenBio AI Community",
        GENBIO,
        remote="model",
        files=(),
        mpps=(),
        pooling="own",
        width=4608,
        precision="fp32",
    ),
    _preset(
        "openmidnight",
        "ViT-g/14, 4 registers",
        "SophontAI/OpenMidnight",
        "Apache-2.0",
        IMAGENET,
        architecture=_vit("g", 14, n_registers=4),
        files=("teacher_checkpoint_load.pt",),
        gated=True,
        mpps=(),
        verified="TRIDENT's strict loader of this file into dinov2_vitg14_reg",
    ),
    _dinov2("s", "ViT-S/14", "small"),
    _dinov2("b", "ViT-B/14", "base"),
    _dinov2("l", "ViT-L/14", "large"),
    _dinov2("g", "ViT-g/14", "giant"),
)
PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in TABLE})
