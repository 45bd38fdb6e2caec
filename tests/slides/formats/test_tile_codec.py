from __future__ import annotations

import struct

import cv2
import imagecodecs
import numpy as np
import pytest
import simplejpeg
from synthetic_slides import tissue_like

from anlage.geometry import Size
from anlage.slides.formats.tile_codec import DECODERS, DecodeError, TileCodec, jpeg_head

TILE = tissue_like(64, 48)
RAW = TILE.tobytes()
ENCODED = {
    "jpeg": simplejpeg.encode_jpeg(TILE, quality=90),
    "jpeg2000": imagecodecs.jpeg2k_encode(TILE, level=0),
    "deflate": imagecodecs.zlib_encode(RAW),
    "lzw": imagecodecs.lzw_encode(RAW),
    "jpeg2000-ycbcr": imagecodecs.jpeg2k_encode(
        cv2.cvtColor(TILE, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]], level=0
    ),
    "jpegls": bytes(imagecodecs.jpegls_encode(TILE)),
    "webp": bytes(imagecodecs.webp_encode(TILE, lossless=True)),
    "jpegxl": bytes(imagecodecs.jpegxl_encode(TILE, lossless=True)),
    "none": RAW,
}


# Without compression any bytes are pixels; the last byte of an LZW stream only says that it ends.
HARMLESS = {("none", "zeros"), ("none", "noise"), ("lzw", "last byte")}


def test_every_decoder_is_tested() -> None:
    assert set(ENCODED) == {*DECODERS, "jpeg"}


@pytest.mark.parametrize(
    "kind", [kind for kind in ENCODED if kind not in {"jpeg", "jpeg2000-ycbcr"}]
)
def test_lossless(kind: str) -> None:
    assert np.array_equal(TileCodec(kind).decode(ENCODED[kind], height=48, width=64), TILE)


def test_jpeg2000_of_luma_and_chroma_becomes_rgb() -> None:
    got = TileCodec("jpeg2000-ycbcr").decode(ENCODED["jpeg2000-ycbcr"], height=48, width=64)
    assert np.abs(got.astype(int) - TILE).max() <= 2  # rounded to whole YCbCr and back


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
    [
        (k, d)
        for k in ENCODED
        for d in ("empty", "cut", "last byte", "zeros", "noise")
        if (k, d) not in HARMLESS
    ],
)
def test_damage_is_refused(kind: str, damage: str) -> None:
    data = ENCODED[kind]
    damaged = {
        "empty": b"",
        "zeros": bytes(len(data)),
        "cut": data[: len(data) * 6 // 10],
        "last byte": data[:-1],
        "noise": np.random.default_rng(0).bytes(len(data)),
    }[damage]
    with pytest.raises(DecodeError):
        TileCodec(kind).decode(damaged, height=48, width=64)


@pytest.mark.parametrize("kind", ENCODED)
def test_a_tile_of_another_size_is_refused(kind: str) -> None:
    with pytest.raises(DecodeError):
        TileCodec(kind).decode(ENCODED[kind], height=64, width=64)


def test_jpeg_reduces_where_the_edges_divide() -> None:
    jpeg = TileCodec("jpeg")
    assert jpeg.reductions(Size(240, 240)) == (1, 2, 4, 8)
    assert jpeg.reductions(Size(256, 512)) == (1, 2, 4, 8)
    assert jpeg.reductions(Size(244, 240)) == (1, 2, 4)
    assert jpeg.reductions(Size(240, 242)) == (1, 2)
    assert jpeg.reductions(Size(241, 240)) == (1,)
    assert jpeg.reductions(Size(1000, 16)) == (1, 2)
    for kind in DECODERS:
        assert TileCodec(kind).reductions(Size(256, 256)) == (1,)


@pytest.mark.parametrize("reduce", [2, 4, 8])
@pytest.mark.parametrize("chroma", ["444", "422", "420"])
def test_a_reduced_jpeg_is_its_area_average(reduce: int, chroma: str) -> None:
    smooth = cv2.GaussianBlur(tissue_like(240, 192), (0, 0), 3)
    data = simplejpeg.encode_jpeg(smooth, quality=95, colorsubsampling=chroma)
    got = TileCodec("jpeg").decode(data, height=192, width=240, reduce=reduce)
    full = TileCodec("jpeg").decode(data, height=192, width=240).astype(float)
    mean = full.reshape(192 // reduce, reduce, 240 // reduce, reduce, 3).mean((1, 3))
    assert got.shape == (192 // reduce, 240 // reduce, 3)
    # At 1/8 the chroma of 4:2:2 has no scale that fits, and is repeated.
    assert np.abs(got - mean).mean() < (2.5 if (chroma, reduce) == ("422", 8) else 0.7)
    assert abs((got - mean).mean()) < 0.3  # neither brighter nor darker


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_a_line_stays_in_its_place_when_reduced(reduce: int) -> None:
    """The centre of mass of a dark line is where it is in the area average, to 2 % of a pixel."""
    for at in (33, 64, 90, 111):
        picture = np.full((64, 240, 3), 255, np.uint8)
        picture[:, at : at + 6] = 0
        data = simplejpeg.encode_jpeg(picture, quality=100, colorsubsampling="444")
        got = TileCodec("jpeg").decode(data, height=64, width=240, reduce=reduce)
        mean = picture.reshape(64, 240 // reduce, reduce, 3).mean(2)
        centres = []
        for columns in (got[..., 1].mean(axis=0), mean[..., 1].mean(axis=0)):
            darkness = 255.0 - columns
            centres.append((darkness * np.arange(len(darkness))).sum() / darkness.sum())
        assert centres[0] == pytest.approx(centres[1], abs=0.02)


def test_the_last_strip_is_reduced_with_its_last_row() -> None:
    data = simplejpeg.encode_jpeg(tissue_like(64, 13), quality=90)
    got = TileCodec("jpeg").decode(data, height=13, width=64, reduce=2)
    assert got.shape == (7, 32, 3)


@pytest.mark.parametrize("reduce", [2, 4, 8])
@pytest.mark.parametrize("stored", [(96, 128), (192, 256), (48, 32), (48, 72), (24, 32)])
def test_a_tile_of_another_size_is_refused_when_reduced(
    reduce: int, stored: tuple[int, int]
) -> None:
    """Twice the size at half the scale would have the right shape, and be the wrong picture."""
    data = simplejpeg.encode_jpeg(tissue_like(stored[1], stored[0]), quality=90)
    with pytest.raises(DecodeError, match=f"holds {stored[1]} x {stored[0]} pixels of 3"):
        TileCodec("jpeg").decode(data, height=48, width=64, reduce=reduce)


@pytest.mark.parametrize("reduce", [1, 2, 8])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_a_cut_jpeg_is_refused_when_reduced(reduce: int, share: float) -> None:
    data = ENCODED["jpeg"]
    with pytest.raises(DecodeError, match="Premature end|no frame|subsampling"):
        TileCodec("jpeg").decode(data[: int(len(data) * share)], height=48, width=64, reduce=reduce)


def test_a_grey_jpeg_is_refused() -> None:
    grey = simplejpeg.encode_jpeg(TILE[..., :1].copy(), quality=90, colorspace="GRAY")
    with pytest.raises(DecodeError, match="of 1 components; needs 64 x 48 of 3"):
        TileCodec("jpeg").decode(grey, height=48, width=64)


@pytest.mark.parametrize("size_bytes", [40, 4000])
def test_a_frame_header_is_found_behind_anything(size_bytes: int) -> None:
    """A comment may hold what looks like a header of another size, and any number of bytes."""
    decoy = struct.pack(">HHBHHB", 0xFFC0, 17, 8, 64, 64, 3).ljust(size_bytes, b"\0")
    comment = b"\xff\xfe" + struct.pack(">H", len(decoy) + 2) + decoy
    data = ENCODED["jpeg"][:2] + comment + ENCODED["jpeg"][2:]
    plain = TileCodec("jpeg").decode(ENCODED["jpeg"], height=48, width=64)
    assert np.array_equal(TileCodec("jpeg").decode(data, height=48, width=64), plain)
    with pytest.raises(DecodeError):
        TileCodec("jpeg").decode(data, height=64, width=64)


def test_a_buffer_is_used_and_may_be_larger() -> None:
    buffer = np.zeros(64 * 48 * 3 + 999, np.uint8)
    plain = TileCodec("jpeg").decode(ENCODED["jpeg"], height=48, width=64)
    got = TileCodec("jpeg").decode(ENCODED["jpeg"], height=48, width=64, buffer=buffer)
    assert np.array_equal(got, plain)
    assert np.shares_memory(got, buffer)


@pytest.mark.parametrize("kind", ["webp", "jpegxl"])
def test_an_alpha_channel_is_refused(kind: str) -> None:
    rgba = np.dstack([TILE, np.full(TILE.shape[:2], 100, np.uint8)])
    encode = {"webp": imagecodecs.webp_encode, "jpegxl": imagecodecs.jpegxl_encode}[kind]
    data = bytes(encode(rgba, lossless=True))
    with pytest.raises(DecodeError, match="has an alpha channel, where the file says RGB"):
        TileCodec(kind).decode(data, height=48, width=64)


def described(data: bytes, at: int, form: str, *numbers: int) -> bytes:
    """A codestream with other numbers at a place behind its first marker of a frame or size."""
    changed = bytearray(data)
    struct.pack_into(form, changed, at, *numbers)
    return bytes(changed)


CODESTREAM = imagecodecs.jpeg2k_encode(TILE, level=0, codecformat="j2k")
FRAME = ENCODED["jpegls"].index(b"\xff\xf7")
ABSURD = {  # pixels that no memory holds, and samples of 20 bits
    "jpeg2000": described(CODESTREAM, 8, ">2I", 2**31, 2**31),
    "jpegls": described(ENCODED["jpegls"], FRAME + 5, ">2H", 65535, 65535),
    "jpeg2000-ycbcr": described(CODESTREAM, 42, ">9B", *(19, 1, 1) * 3),
}


@pytest.mark.parametrize("kind", ABSURD)
def test_a_tile_that_says_absurd_things_of_itself(kind: str) -> None:
    codec = TileCodec(kind)
    if kind != "jpegls":
        codec.decode(CODESTREAM, height=48, width=64)
    with pytest.raises(DecodeError, match="needs|invalid"):
        codec.decode(ABSURD[kind], height=48, width=64)


def test_a_decoder_without_memory_is_an_error_of_the_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        msg = "unable to allocate 12 GiB"
        raise MemoryError(msg)

    monkeypatch.setattr(imagecodecs, "webp_decode", fail)
    with pytest.raises(DecodeError, match="webp decoder: unable to allocate"):
        TileCodec("webp").decode(ENCODED["webp"], height=48, width=64)
