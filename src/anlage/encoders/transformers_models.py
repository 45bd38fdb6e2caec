"""Models of transformers: loaded with their weights, and run by their own code.

Shape suffixes: B images, 3 channels, H and W pixels, N patch tokens, D embedding width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anlage.encoders.hub import tell_licence
from anlage.encoders.other_network import OtherNetwork
from anlage.encoders.precision import Precision
from anlage.encoders.preset_encoder import preset_config
from anlage.encoders.presets import Preset
from anlage.encoders.tile_encoder import EncoderConfig, TileEncoder, torch_device
from anlage.errors import EncoderError
from anlage.provenance import sha256_of_json

HF = "hf:"
POOLER = "pooler."
CLASS_TOKENS = ("cls_token", "class_embedding")
OF_A_COPY = ("transformers_version", "dtype", "torch_dtype")  # in a config, but no matter
MISSING = "needs transformers, which is not installed. Run: pip install 'anlage[transformers]'."


def transformers_encoder(
    repo: str,
    *,
    revision: str | None = None,
    mpp: float,
    trust_remote_code: bool = False,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
) -> TileEncoder:
    """Any image model of transformers, at the size, mean and deviation of its image processor.

    The embedding is the class token where the model has one, else the mean of its tokens or of its
    feature map. Its pooler is not used: it is often untrained.

    Args:
        repo: ``OWNER/MODEL`` on the hub, or a folder of the same files.
        revision: Commit, tag or branch.
        mpp: Resolution to use it at, micrometres per pixel, which the hub does not know.
        trust_remote_code: Whether code in the repository may run.
        device: See ``TileEncoder``.
        precision: See ``TileEncoder``.

    Raises:
        EncoderError: If it cannot be had or loaded whole, says no size, or would run code.
    """
    source = f"{HF}{repo}"
    torch_device(device)
    told = _json_of(repo, "config.json", revision, source)
    _refuse_remote_code(told, source, trusted=trust_remote_code)
    looks = _json_of(repo, "preprocessor_config.json", revision, source)
    model, notes = _loaded(repo, revision, source, trust_remote_code=trust_remote_code)
    width, patch_px = told.get("hidden_size"), told.get("patch_size")
    if not isinstance(width, int):
        sizes = told.get("hidden_sizes")
        if not isinstance(sizes, list):
            msg = "says no hidden_size in its config.json. Write a function that returns it: "
            raise EncoderError(source, f"{msg}file.py:function.")
        width = sizes[-1]
    has_patches = isinstance(patch_px, int)
    network = OtherNetwork(
        model,
        run=partial(_run, has_class_token=_has_class_token(model), has_patches=has_patches),
        width=int(width),
        patch_px=patch_px if has_patches else None,
    )
    tile_px = _size_px(looks, source)
    config = EncoderConfig(
        architecture={"hf": repo, "revision": revision, **_decides(model)},
        tile_px=tile_px,
        mpp=mpp,
        mean=looks["image_mean"],
        std=looks["image_std"],
        pooling="own",
        provenance={"source": source, "transformers": version("transformers"), "notes": notes},
    )
    return TileEncoder(config, network, device=device, precision=precision)


def remote_preset(
    preset: Preset,
    *,
    mpp: float | None = None,
    trust_remote_code: bool,
    device: str | torch.device = "cpu",
    precision: Precision = "auto",
) -> TileEncoder:
    """A preset that only its authors' code runs.

    Args:
        preset: Which.
        mpp: Resolution to use it at; None for its own.
        trust_remote_code: Whether that code may run.
        device: See ``TileEncoder``.
        precision: See ``TileEncoder``.

    Raises:
        EncoderError: If the code may not run, or it cannot be had.
    """
    _refuse_remote_code({"auto_map": True}, preset.name, trusted=trust_remote_code)
    tell_licence(preset)
    model, notes = _loaded(preset.repo, None, preset.name, trust_remote_code=True)
    architecture = {"hf": preset.repo, "remote": preset.remote, **_decides(model)}
    if preset.remote == "return_conch":
        model = model.return_conch()[0]  # type: ignore[operator]
    network = OtherNetwork(model.float().eval(), run=_call, width=preset.width)
    config = preset_config(preset, architecture, mpp=mpp, notes=notes)
    return TileEncoder(config, network, device=device, precision=precision)


def _refuse_remote_code(told: Mapping[str, Any], source: str, *, trusted: bool) -> None:
    if told.get("auto_map") and not trusted:
        msg = (
            "runs by code in its repository, which may do anything on this machine. Where you have "
            "read and trust it, add --trust-remote-code."
        )
        raise EncoderError(source, msg)


def _json_of(repo: str, file: str, revision: str | None, source: str) -> dict[str, Any]:
    """A JSON file of a repository or of a folder."""
    path = Path(repo) / file
    if not Path(repo).is_dir():
        try:
            from huggingface_hub import hf_hub_download
        except ImportError as error:
            raise EncoderError(source, MISSING) from error
        path = Path(_asked(partial(hf_hub_download, repo, file, revision=revision), source))
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"its {file} cannot be read ({error}). Download it again."
        raise EncoderError(source, msg) from error
    return dict(told)


def _loaded(
    repo: str, revision: str | None, source: str, *, trust_remote_code: bool
) -> tuple[nn.Module, list[str]]:
    """The model with its weights, none of them missing; and what was left out of the file."""
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise EncoderError(source, MISSING) from error
    model, told = _asked(
        partial(
            AutoModel.from_pretrained,
            repo,
            revision=revision,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            weights_only=True,
        ),
        source,
    )
    missing = sorted(name for name in told["missing_keys"] if POOLER not in name)
    if missing or told["mismatched_keys"]:
        first = missing[0] if missing else next(iter(told["mismatched_keys"]))
        msg = f"its weights lack {first!r}, or have it in another shape. Choose another revision."
        raise EncoderError(source, msg)
    unused = sorted(told["unexpected_keys"])
    notes = [f"Left out, for AutoModel has no place for it: {name}" for name in unused]
    return model.float().eval(), notes  # whatever they are stored in


def _decides(model: Any) -> dict[str, Any]:  # noqa: ANN401 - transformers'
    """What decides a model's function beside its weights: its configuration, its code's commit."""
    config = getattr(model, "config", None)
    if config is None:
        return {}
    told = json.loads(config.to_json_string(use_diff=False))
    kept = {k: v for k, v in told.items() if k not in OF_A_COPY and not k.startswith("_")}
    commit = getattr(config, "_commit_hash", None)
    return {"config_sha256": sha256_of_json(kept), **({"commit": commit} if commit else {})}


def _asked(ask: Callable[[], Any], source: str) -> Any:  # noqa: ANN401 - whatever is asked for
    try:
        return ask()
    except Exception as error:  # of transformers, the hub, the network or the file
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        msg = (
            f"cannot be loaded ({reason}). Check the name, the network and HF_HUB_OFFLINE; where "
            "it is gated accept its conditions on its page and run `hf auth login`."
        )
        raise EncoderError(source, msg) from error


def _size_px(looks: Mapping[str, Any], source: str) -> int:
    """Edge of the image that the processor makes: its crop, or its size where it crops nothing."""
    scale = looks.get("rescale_factor", 1 / 255)
    is_usual = looks.get("do_normalize", True) and looks.get("do_rescale", True)
    if not is_usual or abs(scale * 255 - 1) > 1e-3:
        msg = "its processor does not take mean and deviation of pixels in [0, 1]. "
        raise EncoderError(source, msg + "Write a function that normalises: file.py:function.")
    crops = looks.get("do_center_crop", "crop_size" in looks)
    size = looks.get("crop_size" if crops else "size")
    if isinstance(size, dict):
        edges = {size[key] for key in ("height", "width", "shortest_edge") if key in size}
        size = edges.pop() if len(edges) == 1 else None
    if not isinstance(size, int) or not (looks.get("image_mean") and looks.get("image_std")):
        msg = "its preprocessor_config.json says no square size, mean and deviation. "
        raise EncoderError(source, msg + "Write a function that states them: file.py:function.")
    return size


def _has_class_token(model: nn.Module) -> bool:
    return any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in model.named_parameters())


def _run(
    model: Any,  # noqa: ANN401 - transformers'
    image_B3HW: Tensor,
    *,
    has_class_token: bool,
    has_patches: bool,
) -> tuple[Tensor, Tensor | None]:
    hidden = model(pixel_values=image_B3HW).last_hidden_state
    if hidden.ndim == 4:
        return hidden.mean((2, 3)), None
    embedding_BD = hidden[:, 0] if has_class_token else hidden.mean(1)
    if not has_patches:
        return embedding_BD, None
    patch_px = model.config.patch_size
    n_patches = (image_B3HW.shape[2] // patch_px) * (image_B3HW.shape[3] // patch_px)
    if hidden.shape[1] < n_patches and has_class_token:
        msg = f"gives {hidden.shape[1]} tokens of {n_patches} patches: it masks or merges them. "
        raise EncoderError(type(model).__name__, msg + "Write a function: file.py:function.")
    return embedding_BD, hidden[:, -n_patches:] if hidden.shape[1] >= n_patches else None


def _call(model: Any, image_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:  # noqa: ANN401
    return model(image_B3HW), None
