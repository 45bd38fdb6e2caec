"""ICC profiles made by hand: a display of three primaries and one gamma, whose maths is known."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

# Columns are red, green and blue as XYZ, adapted to D50: of sRGB, and of a wider display.
SRGB_TO_XYZ = np.array(
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)
WIDE_TO_XYZ = np.array(
    [
        [0.6097559, 0.2052401, 0.1492240],
        [0.3111242, 0.6256560, 0.0632197],
        [0.0194811, 0.0608902, 0.7448387],
    ]
)
D50 = (0.9642, 1.0, 0.8249)
PAPER = (0.87, 0.90, 0.70)  # only absolute colorimetry would look at it


def matrix_profile(
    primaries: NDArray[np.float64], *, gamma: float, space: bytes = b"RGB ", kind: bytes = b"scnr"
) -> bytes:
    """An ICC v2 profile of three primaries (columns of a matrix to XYZ at D50) and one gamma."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    text = b"text" + bytes(4) + b"none\0\0\0\0"
    name = b"made by hand\0"
    described = b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(12 + 67)
    tags = {
        b"desc": described + bytes(-len(described) % 4),
        b"cprt": text,
        b"wtpt": _xyz(PAPER),
        b"rXYZ": _xyz(primaries[:, 0]),
        b"gXYZ": _xyz(primaries[:, 1]),
        b"bXYZ": _xyz(primaries[:, 2]),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    table, data = struct.pack(">I", len(tags)), b""
    first = 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag + struct.pack(">II", first + len(data), len(value))
        data += value
    size = first + len(data)
    header = struct.pack(">I4sI4s4s4s", size, b"none", 0x02100000, kind, space, b"XYZ ")
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += b"".join(_fixed(value) for value in D50)
    return header + bytes(128 - len(header)) + table + data


def in_srgb(
    pixels: NDArray[np.uint8], primaries: NDArray[np.float64], *, gamma: float
) -> NDArray[np.float64]:
    """The same colours in sRGB by its definition, 0 to 255, not rounded."""
    linear = (pixels / 255.0) ** gamma
    shown = np.clip(linear @ (np.linalg.inv(SRGB_TO_XYZ) @ primaries).T, 0, 1)
    encoded = np.where(shown <= 0.0031308, 12.92 * shown, 1.055 * shown ** (1 / 2.4) - 0.055)
    return 255 * encoded


def _xyz(values: tuple[float, float, float] | NDArray[np.float64]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(_fixed(float(value)) for value in values)


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))
