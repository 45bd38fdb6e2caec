"""Bags that are to be used together are of one encoder, resolution and colour."""

from __future__ import annotations

from anlage.bags.bag import BagAttributes
from anlage.errors import BagError

ONE_ENCODER = ("encoder_fingerprint", "mpp", "tile_px", "colour")


def refuse_mixed(place: str, made: BagAttributes, first_place: str, first: BagAttributes) -> None:
    """Refuse a bag whose tiles or encoder are not those of another.

    Args:
        place: Where the bag is, for the message.
        made: What it was made from.
        first_place: Where the other is.
        first: What that was made from.

    Raises:
        BagError: If they differ in encoder, resolution, tile edge or colour.
    """
    for name in ONE_ENCODER:
        found, wanted = getattr(made, name), getattr(first, name)
        if found != wanted:
            msg = f"was made with {name} {found}; {first_place} with {wanted}. "
            raise BagError(place, f"{msg}`anlage bags verify` lists which are which.")
