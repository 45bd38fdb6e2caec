"""Images to patch tokens.

Shape suffixes: B images, C channels, H and W pixels, N patches, F values of a patch, D width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def patchify(image_BCHW: Tensor, *, patch_px: int) -> Tensor:
    """Cut images into square patches that do not overlap.

    Args:
        image_BCHW: (B, C, H, W) images whose edges are multiples of ``patch_px``.
        patch_px: Edge of a patch, pixels.

    Returns:
        (B, N, C * patch_px ** 2), patches in row-major order; the values of a patch in the order
        channel, row, column.

    Raises:
        ValueError: If an edge of the image is not a multiple of ``patch_px``.
    """
    batch, channels, height, width = image_BCHW.shape
    if height % patch_px or width % patch_px or not height * width:
        fit_height, fit_width = (
            max(round(edge / patch_px), 1) * patch_px for edge in (height, width)
        )
        msg = (
            f"patchify: needs images whose edges are multiples of patch_px={patch_px}; got "
            f"{height} x {width} px. Crop or resize to {fit_height} x {fit_width} px."
        )
        raise ValueError(msg)
    rows, columns = height // patch_px, width // patch_px
    grid = image_BCHW.reshape(batch, channels, rows, patch_px, columns, patch_px)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)


class PatchEmbedding(nn.Module):
    """One linear layer over the pixels of each patch.

    ``proj`` is stored as the convolution it equals, for the sake of published weights, and run as
    a matrix product.

    Args:
        patch_px: Edge of a patch, pixels.
        width: Token width D.
        dual_norm: LayerNorm over a patch's pixels before the layer, and over the token after it.

    Source: Kumar et al. 2023, Dual PatchNorm, arXiv:2302.01327.
    """

    def __init__(self, *, patch_px: int, width: int, dual_norm: bool = False) -> None:
        super().__init__()
        self.patch_px = patch_px
        self.norm_in = nn.LayerNorm(3 * patch_px**2, eps=1e-6) if dual_norm else nn.Identity()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_px, stride=patch_px)
        self.norm = nn.LayerNorm(width, eps=1e-6) if dual_norm else nn.Identity()

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Embed each patch by itself.

        Args:
            image_B3HW: (B, 3, H, W) normalised images, edges multiples of ``patch_px``.

        Returns:
            (B, N, D) patch tokens in row-major order.
        """
        patch_BNF = self.norm_in(patchify(image_B3HW, patch_px=self.patch_px))
        token_BND: Tensor = self.norm(
            functional.linear(patch_BNF, self.proj.weight.flatten(1), self.proj.bias)
        )
        return token_BND
