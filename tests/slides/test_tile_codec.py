from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
import simplejpeg
from synthetic_slides import tissue_like

from anlage.slides.tile_codec import DECODERS, DecodeError, TileCodec, jpeg_head

TILE = tissue_like(64, 48)
RAW = TILE.tobytes()
ENCODED = {
    "jpeg": simplejpeg.encode_jpeg(TILE, quality=90),
    "jpeg2000": imagecodecs.jpeg2k_encode(TILE, level=0),
    "deflate": imagecodecs.zlib_encode(RAW),
    "lzw": imagecodecs.lzw_encode(RAW),
    "none": RAW,
}


def test_every_decoder_is_tested() -> None:
    assert set(ENCODED) == set(DECODERS)


@pytest.mark.parametrize("kind", [kind for kind in ENCODED if kind != "jpeg"])
def test_lossless(kind: str) -> None:
    assert np.array_equal(TileCodec(kind).decode(ENCODED[kind], height=48, width=64), TILE)


@pytest.mark.parametrize("kind", ["deflate", "lzw", "none"])
def test_differences_along_the_rows_are_summed(kind: str) -> None:
    stored = TILE.copy()
    stored[:, 1:] -= TILE[:, :-1]
    data = {
        "deflate": imagecodecs.zlib_encode(stored.tobytes()),
        "lzw": imagecodecs.lzw_encode(stored.tobytes()),
        "none": stored.tobytes(),
    }[kind]
    codec = TileCodec(kind, is_differenced=True)
    assert np.array_equal(codec.decode(data, height=48, width=64), TILE)


def test_jpeg_equals_pillows_decoder() -> None:
    import io

    from PIL import Image

    got = TileCodec("jpeg").decode(ENCODED["jpeg"], height=48, width=64)
    assert np.abs(got.astype(int) - np.array(Image.open(io.BytesIO(ENCODED["jpeg"])))).max() <= 2


def test_rgb_components_are_left_as_they_are() -> None:
    """Grey in YCbCr is (y, 128, 128); read as RGB components it is that very colour."""
    grey = np.full((48, 64, 3), 90, np.uint8)
    jpeg = simplejpeg.encode_jpeg(grey, colorsubsampling="444", quality=95)
    length = int.from_bytes(jpeg[4:6])
    without_jfif = jpeg[:2] + jpeg[4 + length :]
    plain = TileCodec("jpeg", jpeg_head(None, is_rgb=False))
    marked = TileCodec("jpeg", jpeg_head(None, is_rgb=True))
    assert plain.decode(without_jfif, height=48, width=64)[0, 0].tolist() == [90, 90, 90]
    assert marked.decode(without_jfif, height=48, width=64)[0, 0].tolist() == [90, 128, 128]
    assert marked.decode(jpeg, height=48, width=64)[0, 0].tolist() == [90, 90, 90]  # JFIF rules


@pytest.mark.parametrize(
    ("kind", "damage"),
    # Without compression any bytes are pixels.
    [(k, d) for k in ENCODED for d in ("empty", "cut", "zeros", "noise")][:-2],
)
def test_damage_is_refused(kind: str, damage: str) -> None:
    data = ENCODED[kind]
    damaged = {
        "empty": b"",
        "zeros": bytes(len(data)),
        "cut": data[: len(data) * 6 // 10],
        "noise": np.random.default_rng(0).bytes(len(data)),
    }[damage]
    with pytest.raises(DecodeError):
        TileCodec(kind).decode(damaged, height=48, width=64)


@pytest.mark.parametrize("kind", ENCODED)
def test_a_tile_of_another_size_is_refused(kind: str) -> None:
    with pytest.raises(DecodeError):
        TileCodec(kind).decode(ENCODED[kind], height=64, width=64)
