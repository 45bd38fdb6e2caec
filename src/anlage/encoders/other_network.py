"""A network that is not ours, run by its own code: timm's, transformers', or a function of yours.

Shape suffixes: B images, 3 channels, H and W pixels, N patch tokens, D embedding width, E width of
a patch token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from anlage.errors import EncoderError
from anlage.models.vit import TokenOutput

Run = Callable[[Any, Tensor], tuple[Tensor, Tensor | None]]


class OtherNetwork(nn.Module):
    """Any network behind the interface of our transformer.

    Args:
        network: A torch module, or a function, which then has no weights that anlage knows of.
        run: Given the network and (B, 3, H, W) normalised images: (B, D) embeddings, and (B, N, E)
            patch tokens in row-major order, or None.
        width: Embedding width D.
        patch_px: Edge of a patch, pixels; None if there are no patch tokens.
        token_width: Width E of a patch token; None if it is ``width``.
    """

    def __init__(
        self,
        network: nn.Module | Callable[[Tensor], Tensor],
        *,
        run: Run,
        width: int,
        patch_px: int | None = None,
        token_width: int | None = None,
    ) -> None:
        super().__init__()
        self.network, self.run = network, run
        self.width, self.patch_px = width, patch_px
        self.token_width = width if token_width is None else token_width

    def embed(self, image_B3HW: Tensor) -> TokenOutput:
        """Encode normalised images of one size.

        Args:
            image_B3HW: (B, 3, H, W) float32.

        Returns:
            The embedding in place of the class token; no registers; patch tokens, or none of them.

        Raises:
            EncoderError: If the network gives anything but (B, D) embeddings.
        """
        embedding_BD, patches_BNE = self.run(self.network, image_B3HW)
        wanted = (len(image_B3HW), self.width)
        shape = getattr(embedding_BD, "shape", None)
        if shape is None or tuple(shape) != wanted:
            found = type(embedding_BD).__name__ if shape is None else f"shape {tuple(shape)}"
            msg = f"needs to give a tensor of shape {wanted}; gave {found}. Correct its width."
            raise EncoderError(type(self.network).__name__, msg)
        if patches_BNE is None:
            patches_BNE = embedding_BD.new_empty(len(embedding_BD), 0, self.token_width)
        no_registers = embedding_BD.new_empty(len(embedding_BD), 0, self.token_width)
        return TokenOutput(embedding_BD, no_registers, patches_BNE)
