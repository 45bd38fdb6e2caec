"""What a network costs, from its sizes alone: parameters, FLOPs and memory kept for backward.

A multiplication and an addition are two FLOPs. Counted are the products of matrices; norms,
softmax, GELU, gates, residual sums and the resampling of positions are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from anlage.models.layers.block import Block
from anlage.models.layers.feed_forward import SwiGlu
from anlage.models.layers.recompute import Recompute
from anlage.models.projection_head import ProjectionHead
from anlage.models.vit import VisionTransformer
from anlage.models.without_weights import without_weights

FORWARD_AND_BACKWARD = 3  # a product of matrices has two more in its backward pass


class StepFlops(NamedTuple):
    """FLOPs of one training step for each tile of the batch.

    Attributes:
        student: Student's transformer, forward and backward.
        teacher: Teacher's transformer, forward.
        student_heads: Projection of the student's tokens, forward and backward.
        teacher_heads: Projection of the teacher's tokens, forward.
    """

    student: float
    teacher: float
    student_heads: float
    teacher_heads: float

    @property
    def total(self) -> float:
        """All of them together."""
        return sum(self)


def parameter_count(architecture: Mapping[str, Any]) -> int:
    """Parameters of a transformer, mask token included.

    Args:
        architecture: Keyword arguments of ``VisionTransformer``.

    Returns:
        Their number; no memory is taken for them.
    """
    return sum(parameter.numel() for parameter in _shape(architecture).parameters())


def forward_flops(architecture: Mapping[str, Any], *, edge_px: int) -> int:
    """FLOPs of one image's way through a transformer.

        depth * (2 N w + 4 N^2 D) + 2 P * 3 p^2 D

    with N tokens and P patches of an image, D the width, p the patch's edge, and w the weights of
    a block's linear layers. Stochastic depth is not counted.

    Args:
        architecture: Keyword arguments of ``VisionTransformer``.
        edge_px: Edge of the square image, a multiple of the patch's.

    Returns:
        FLOPs of the forward pass.

    Raises:
        ValueError: If ``edge_px`` is not a positive multiple of the patch's edge.
    """
    blocks, patches = _forward_parts(_shape(architecture), edge_px=edge_px)
    return blocks + patches


def head_flops(rows: float, head: Mapping[str, Any], *, width: int) -> float:
    """FLOPs of projecting tokens onto prototypes, forward.

    Args:
        rows: Tokens; a mean number may be broken.
        head: Keyword arguments of ``ProjectionHead`` but for its width.
        width: Width of the tokens.

    Returns:
        Two for each row and weight.
    """
    with without_weights():
        layers = ProjectionHead(width=width, **head)
    weights = _linear_weights(layers) + layers.last_layer.weight_v.numel()
    return 2 * rows * weights


def step_flops(
    architecture: Mapping[str, Any],
    *,
    teacher: Mapping[str, Any] | None = None,
    cls_head: Mapping[str, Any],
    patch_head: Mapping[str, Any] | None = None,
    global_px: int = 224,
    local_px: int = 98,
    n_global: int = 2,
    n_local: int = 8,
    masked_patches: float = 0.0,
) -> StepFlops:
    """FLOPs of one step of DINO, iBOT or DINOv2 for each tile of the batch.

    The student sees global and local views, forward and backward at three times a forward pass
    (less than 1 % too much, since no gradient flows to pixels); the teacher sees the global
    views, forward. Stochastic depth saves its share of the student's blocks: exact where that
    share of the batch is a whole number of images.

    Args:
        architecture: Keyword arguments of the student's ``VisionTransformer``.
        teacher: Those of the teacher's; None for the student's.
        cls_head: Keyword arguments of the ``ProjectionHead`` of class tokens, width left out.
        patch_head: Those of the head of masked patches; None for the same head.
        global_px: Edge of a global view.
        local_px: Edge of a local view; not read without local views.
        n_global: Global views of a tile.
        n_local: Local views of a tile.
        masked_patches: Masked patches of a tile, all of its global views together, on average.

    Returns:
        The parts of a step, for one tile.

    Source: the counting of Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B, carried
        over to views and heads.
    """
    student, taught_by = _shape(architecture), _shape(teacher or architecture)
    kept = 1 - _first_block(student).stochastic_depth
    views = [(global_px, n_global), *([(local_px, n_local)] if n_local else [])]
    learned = 0.0
    for edge_px, n_views in views:
        blocks, patches = _forward_parts(student, edge_px=edge_px)
        learned += FORWARD_AND_BACKWARD * n_views * (kept * blocks + patches)
    taught = n_global * sum(_forward_parts(taught_by, edge_px=global_px))

    def projected(width: int, n_cls: int) -> float:
        return head_flops(n_cls, cls_head, width=width) + head_flops(
            masked_patches, patch_head or cls_head, width=width
        )

    return StepFlops(
        student=learned,
        teacher=taught,
        student_heads=FORWARD_AND_BACKWARD * projected(student.width, n_global + n_local),
        teacher_heads=projected(taught_by.width, n_global),
    )


def activation_bytes(
    architecture: Mapping[str, Any],
    *,
    edge_px: int,
    mixed_precision: bool,
    recompute: Recompute = "none",
) -> float:
    """Memory that one image keeps in the transformer from its forward to its backward pass.

    Counted for images of two sizes in one pass, as the student sees them. The residual stream is
    float32; under mixed precision the inputs of linear layers and of attention take two bytes.
    Left out: weights and their two-byte copies, masks, the head, the loss, and what lives within
    one operation only. Attention keeps no matrix of scores (flash or efficient kernels). On CUDA,
    mixed precision with QK norm keeps 8 bytes more for each token, channel and block, since
    LayerNorm takes float32 there.

    Args:
        architecture: Keyword arguments of ``VisionTransformer``.
        edge_px: Edge of the square image, a multiple of the patch's.
        mixed_precision: Whether autocast to bfloat16 or float16 is on.
        recompute: What runs again in the backward pass: ``none``; ``selective``, norms, activations
            and packing; ``full``, whole blocks, of which the inputs are kept; what one block at a
            time makes anew comes on top (``recomputed_bytes``).

    Returns:
        Bytes for one image; a mean under stochastic depth.

    Raises:
        ValueError: If ``edge_px`` is not a positive multiple of the patch's edge.
    """
    model = _shape(architecture)
    n_tokens, n_patches = _token_counts(model, edge_px=edge_px)
    value = 2 if mixed_precision else 4
    blocks = (
        len(model.blocks)
        * n_tokens
        * _block_bytes(_first_block(model), value=value, recompute=recompute)
    )
    last_norm = n_tokens * (4 * model.width + 8)
    return blocks + last_norm + n_patches * _patch_bytes(model, value=value)


def recomputed_bytes(
    architecture: Mapping[str, Any], *, edge_px: int, mixed_precision: bool
) -> float:
    """Memory that one image takes in the block that runs again, where whole blocks do.

    It is there while the block's backward pass runs, one block at a time, beside what
    ``activation_bytes`` counts with ``recompute="full"``; counted in the same way.

    Args:
        architecture: Keyword arguments of ``VisionTransformer``.
        edge_px: Edge of the square image, a multiple of the patch's.
        mixed_precision: Whether autocast to bfloat16 or float16 is on.

    Returns:
        Bytes for one image; a mean under stochastic depth.

    Raises:
        ValueError: If ``edge_px`` is not a positive multiple of the patch's edge.
    """
    model = _shape(architecture)
    block, (n_tokens, _) = _first_block(model), _token_counts(model, edge_px=edge_px)
    made = _block_bytes(block, value=2 if mixed_precision else 4, recompute="none")
    if not block.stochastic_depth:
        made -= 4 * model.width  # its input, which was kept; rows that are drawn are a copy
    return n_tokens * made


def _block_bytes(block: Block, *, value: int, recompute: Recompute) -> float:
    """Bytes a block keeps for one token; ``value`` of them for an input of a linear layer."""
    if recompute == "full":
        n_drawn = 2 if block.stochastic_depth else 0  # rows and weights of what takes part
        return 4.0 * block.norm1.normalized_shape[0] + 12 * n_drawn * (1 - block.stochastic_depth)
    width, n_heads = block.norm1.normalized_shape[0], block.attn.n_heads
    hidden = block.mlp.fc2.in_features
    # inputs of both norms and their statistics; attention's sum over the keys of each head
    in_float32 = 4 * (2 * width + 4 + n_heads)
    # both norms' outputs, q, k, v, attention's output by image size and packed
    halved = 7 * width + (4 if isinstance(block.mlp, SwiGlu) else 2) * hidden
    if recompute == "selective":
        # q, k, v, attention's output by image size, what goes into the activation
        halved = 4 * width + (2 if isinstance(block.mlp, SwiGlu) else 1) * hidden
    elif not isinstance(block.ls1, nn.Identity):
        halved += 2 * width  # what each gain multiplies
    if not isinstance(block.attn.q_norm, nn.Identity):
        halved += 2 * width
        in_float32 += 4 * 4 * n_heads
    if block.stochastic_depth:
        in_float32 += 2 * (4 * width + 12)  # each branch's output, row number and weight
    return (1 - block.stochastic_depth) * (in_float32 + value * halved)


def _patch_bytes(model: VisionTransformer, *, value: int) -> int:
    """Bytes the patch embedding keeps for one patch."""
    pixels = model.patch_embed.proj.weight[0].numel()
    if isinstance(model.patch_embed.norm, nn.Identity):
        return value * pixels
    return 4 * pixels + value * (pixels + model.width) + 16  # two norms and their statistics


def _shape(architecture: Mapping[str, Any]) -> VisionTransformer:
    with without_weights():
        return VisionTransformer(**architecture)


def _first_block(model: VisionTransformer) -> Block:
    block = model.blocks[0]
    assert isinstance(block, Block)
    return block


def _linear_weights(module: nn.Module) -> int:
    layers = (layer for layer in module.modules() if isinstance(layer, nn.Linear))
    return sum(layer.weight.numel() for layer in layers)


def _token_counts(model: VisionTransformer, *, edge_px: int) -> tuple[int, int]:
    """Tokens and patches of a square image."""
    if edge_px < model.patch_px or edge_px % model.patch_px:
        fit_px = max(round(edge_px / model.patch_px), 1) * model.patch_px
        msg = (
            f"flops: needs an image edge that is a multiple of patch_px={model.patch_px}; "
            f"got {edge_px}. Use {fit_px}."
        )
        raise ValueError(msg)
    n_patches = (edge_px // model.patch_px) ** 2
    return 1 + model.n_registers + n_patches, n_patches


def _forward_parts(model: VisionTransformer, *, edge_px: int) -> tuple[int, int]:
    """FLOPs of the blocks, and of the patch embedding, for one image."""
    n_tokens, n_patches = _token_counts(model, edge_px=edge_px)
    weights = _linear_weights(_first_block(model))
    block = 2 * n_tokens * weights + 4 * n_tokens**2 * model.width
    return len(model.blocks) * block, 2 * n_patches * model.patch_embed.proj.weight.numel()
