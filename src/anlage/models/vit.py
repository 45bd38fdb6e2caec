"""The vision transformer of anlage: the only one.

Shape suffixes: B images, 3 channels, H and W pixels, N patch tokens, R register tokens, S tokens
of an image (class, registers, patches), T packed tokens of all images, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from anlage.models.layers.block import Block, LayerScale
from anlage.models.layers.initialisation import initialise_linear
from anlage.models.layers.packing import pack, unpack
from anlage.models.layers.patch_embedding import PatchEmbedding
from anlage.models.layers.position_embedding import resize_positions
from anlage.models.layers.recompute import Recompute


class TokenOutput(NamedTuple):
    """What the transformer says about the images of one resolution, after its last LayerNorm.

    Attributes:
        cls_BD: (B, D) class tokens.
        registers_BRD: (B, R, D) register tokens.
        patches_BND: (B, N, D) patch tokens in row-major order.
    """

    cls_BD: Tensor
    registers_BRD: Tensor
    patches_BND: Tensor


class VisionTransformer(nn.Module):
    """Images of one or several sizes to tokens, in one pass.

    Tokens of all sizes are packed below each other for norms and linear layers; attention runs
    once a size. Parameters are named as in timm's ``vit_*_patch14_reg4_dinov2``; ``mask_token`` and
    ``patch_embed.norm_in`` (dual patch norm) are ours.

    Args:
        image_px: Edge of the image whose patch grid the position embedding has; others are
            interpolated to.
        patch_px: Edge of a patch.
        width: Token width D.
        depth: Number of blocks.
        n_heads: Attention heads; must divide ``width``.
        n_registers: Register tokens R, extra tokens that belong to no patch.
        mlp_ratio: Hidden width of the feed-forward layer over ``width``.
        feed_forward: ``mlp`` (GELU) or ``swiglu`` (at two thirds of the hidden width).
        layer_scale: Initial LayerScale gain; None for no LayerScale.
        stochastic_depth: Share of images that skip a residual branch while training, in [0, 1),
            the same in every block.
        dual_patch_norm: LayerNorm before and after the patch projection.
        qk_norm: LayerNorm on queries and keys.
        linear_std: Deviation of the first weights of linear layers; None for one over the root
            of the fan-in, which suits narrow networks.
        norm_eps: Epsilon of the LayerNorms of blocks and of the last one; 1e-12 in transformers'
            ViT.
        antialias: Positions for another image size are resampled with antialiasing, as timm does;
            transformers' Dinov2 goes without.

    Raises:
        ValueError: If the sizes do not fit each other.

    Source: Oquab et al. 2023, DINOv2, arXiv:2304.07193; Darcet et al. 2023, registers,
        arXiv:2309.16588. The class token has no position embedding (timm's ``no_embed_class``).
    """

    def __init__(
        self,
        *,
        image_px: int,
        patch_px: int,
        width: int,
        depth: int,
        n_heads: int,
        n_registers: int = 0,
        mlp_ratio: float = 4.0,
        feed_forward: Literal["mlp", "swiglu"] = "mlp",
        layer_scale: float | None = 1e-5,
        stochastic_depth: float = 0.0,
        dual_patch_norm: bool = False,
        qk_norm: bool = False,
        linear_std: float | None = 0.02,
        norm_eps: float = 1e-6,
        antialias: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(image_px=image_px, patch_px=patch_px, depth=depth)
        _check_branches(stochastic_depth=stochastic_depth, feed_forward=feed_forward)
        self.patch_px, self.width, self.n_registers = patch_px, width, n_registers
        self.linear_std, self.antialias = linear_std, antialias
        self.grid = (image_px // patch_px, image_px // patch_px)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        if n_registers:
            self.reg_token = nn.Parameter(torch.empty(1, n_registers, width))
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], width))
        self.mask_token = nn.Parameter(torch.empty(1, width))
        self.patch_embed = PatchEmbedding(patch_px=patch_px, width=width, dual_norm=dual_patch_norm)
        self.blocks = nn.ModuleList(
            Block(
                width=width,
                n_heads=n_heads,
                mlp_ratio=mlp_ratio,
                feed_forward=feed_forward,
                layer_scale=layer_scale,
                stochastic_depth=stochastic_depth,
                qk_norm=qk_norm,
                norm_eps=norm_eps,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.initialise()

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, as DINOv2 does.

        Linear weights from a normal of deviation ``linear_std`` and positions of 0.02, both cut
        at ±2 (absolute, as torch's default); biases and mask token zero, class and register
        tokens 1e-6.

        Args:
            generator: Source of randomness on the parameters' device; None for the global one.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                initialise_linear(module, linear_std=self.linear_std, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, LayerScale):
                module.gamma.fill_(module.initial)
        nn.init.trunc_normal_(self.pos_embed, std=0.02, generator=generator)
        nn.init.normal_(self.cls_token, std=1e-6, generator=generator)
        if self.n_registers:
            nn.init.normal_(self.reg_token, std=1e-6, generator=generator)
        nn.init.zeros_(self.mask_token)

    def forward(
        self,
        images: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        *,
        generator: torch.Generator | None = None,
        recompute: Recompute = "none",
    ) -> list[TokenOutput]:
        """Encode images of several sizes in one pass.

        Args:
            images: One (B, 3, H, W) tensor a size, normalised, edges multiples of ``patch_px``;
                B may differ.
            masks: One (B, N) bool tensor a size, True where the mask token stands in for the
                patch; None where nothing is masked.
            generator: Randomness of stochastic depth, on the images' device; None for torch's
                global one, whose saved state then reproduces the pass.
            recompute: What of the blocks runs again in the backward pass instead of being kept:
                ``none``; ``selective``, norms and activations, so that about half of what it needs
                is kept, equal but for rounding; ``full``, whole blocks, of which the inputs are
                kept, equal to the bit.

        Returns:
            One ``TokenOutput`` a size, in the order of ``images``.

        Raises:
            ValueError: If an image or a mask has a shape that does not fit, or ``recompute`` is
                none of the three.
        """
        _check_recompute(recompute)
        if masks is None:
            masks = [None] * len(images)
        if not images or len(masks) != len(images):
            msg = (
                "VisionTransformer: needs one or more image tensors and a mask (or None) for "
                f"each; got {len(images)} image tensors and {len(masks)} masks. "
                "Pass lists of equal length."
            )
            raise ValueError(msg)
        tokens_TD, shapes = pack(
            [self._tokens(image, mask) for image, mask in zip(images, masks, strict=True)]
        )
        for block in self.blocks:
            assert isinstance(block, Block), "they are, sharded or not"
            kept = block.draw(shapes, device=tokens_TD.device, generator=generator)
            tokens_TD = block(tokens_TD, shapes, kept, recompute=recompute)
        return [self._parts(tokens_BSD) for tokens_BSD in unpack(self.norm(tokens_TD), shapes)]

    def embed(self, image_B3HW: Tensor) -> TokenOutput:
        """Encode images of one size, (B, 3, H, W) normalised, nothing masked."""
        return self([image_B3HW])[0]  # type: ignore[no-any-return]

    def _tokens(self, image_B3HW: Tensor, mask_BN: Tensor | None) -> Tensor:
        if image_B3HW.ndim != 4 or image_B3HW.shape[1] != 3:
            msg = (
                "VisionTransformer: needs (B, 3, H, W) images; got shape "
                f"{tuple(image_B3HW.shape)}. Stack RGB images, channels first."
            )
            raise ValueError(msg)
        patches_BND = self.patch_embed(image_B3HW)
        if mask_BN is not None:
            _check_mask(mask_BN, patches_BND)
            mask_token = self.mask_token.to(patches_BND.dtype)
            patches_BND = torch.where(mask_BN[..., None], mask_token, patches_BND)
        to_grid = (image_B3HW.shape[2] // self.patch_px, image_B3HW.shape[3] // self.patch_px)
        position_1ND = resize_positions(
            self.pos_embed, from_grid=self.grid, to_grid=to_grid, antialias=self.antialias
        )
        lead = [self.cls_token, self.reg_token] if self.n_registers else [self.cls_token]
        lead_BRD = [token.expand(len(patches_BND), -1, -1) for token in lead]
        return torch.cat([*lead_BRD, patches_BND + position_1ND], dim=1)

    def _parts(self, tokens_BSD: Tensor) -> TokenOutput:
        first_patch = 1 + self.n_registers
        return TokenOutput(
            cls_BD=tokens_BSD[:, 0],
            registers_BRD=tokens_BSD[:, 1:first_patch],
            patches_BND=tokens_BSD[:, first_patch:],
        )


def _check_sizes(*, image_px: int, patch_px: int, depth: int) -> None:
    if image_px < patch_px or image_px % patch_px:
        msg = (
            "VisionTransformer: needs image_px to be a multiple of patch_px; got "
            f"image_px={image_px}, patch_px={patch_px}. "
            f"Use image_px={max(round(image_px / patch_px), 1) * patch_px}."
        )
        raise ValueError(msg)
    if depth < 1:
        msg = f"VisionTransformer: needs depth >= 1; got {depth}. Ask for at least one block."
        raise ValueError(msg)


def _check_branches(*, stochastic_depth: float, feed_forward: str) -> None:
    if not 0 <= stochastic_depth < 1:
        msg = (
            f"VisionTransformer: needs 0 <= stochastic_depth < 1; got {stochastic_depth}. "
            "It is the share of images that skip a branch; 0 switches it off."
        )
        raise ValueError(msg)
    if feed_forward not in {"mlp", "swiglu"}:
        msg = (
            "VisionTransformer: needs feed_forward to be 'mlp' or 'swiglu'; got "
            f"{feed_forward!r}. Choose one of the two."
        )
        raise ValueError(msg)


def _check_recompute(recompute: str) -> None:
    if recompute not in get_args(Recompute):
        msg = (
            "VisionTransformer: needs recompute to be 'none', 'selective' or 'full'; got "
            f"{recompute!r}. Choose one of the three."
        )
        raise ValueError(msg)


def _check_mask(mask_BN: Tensor, patches_BND: Tensor) -> None:
    if mask_BN.shape != patches_BND.shape[:2] or mask_BN.dtype != torch.bool:
        msg = (
            f"VisionTransformer: needs a bool mask of shape {tuple(patches_BND.shape[:2])} "
            f"(images, patches); got {mask_BN.dtype} of shape {tuple(mask_BN.shape)}. "
            "Flatten the patch grid row by row and pass one row an image."
        )
        raise ValueError(msg)
