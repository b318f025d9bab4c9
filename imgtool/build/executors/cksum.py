"""POSIX cksum: the one checksum that every guest can make. A CRC-32 with the polynomial of Ethernet, most significant
bit first, over the data and then its length, least significant byte first without leading zeros, inverted."""

from __future__ import annotations

_POLYNOMIAL = 0x04C11DB7


def _table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte << 24
        for _ in range(8):
            crc = (crc << 1) ^ (_POLYNOMIAL if crc & 0x80000000 else 0)
        table.append(crc & 0xFFFFFFFF)
    return table


class Cksum:
    """The checksum of data that comes in pieces."""

    _TABLE = _table()

    def __init__(self) -> None:
        self._crc = 0
        self._length = 0

    def update(self, data: bytes) -> None:
        self._crc = self._feed(self._crc, data)
        self._length += len(data)

    def value(self) -> int:
        length = self._length
        tail = length.to_bytes((length.bit_length() + 7) // 8, "little")
        return self._feed(self._crc, tail) ^ 0xFFFFFFFF

    def _feed(self, crc: int, data: bytes) -> int:
        table = self._TABLE
        for byte in data:
            crc = ((crc << 8) & 0xFFFFFFFF) ^ table[(crc >> 24) ^ byte]
        return crc


def cksum(data: bytes) -> int:
    """What `cksum` prints first."""
    summed = Cksum()
    summed.update(data)
    return summed.value()
