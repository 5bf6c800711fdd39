"""Integer codes of 2 to 16 bits as a dense stream of bytes, and back. Only numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitsense.errors import UserInputError


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` codes of ``bits`` bits each."""
    return -(-count * bits // 8)


def pack_codes(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Codes of any shape as bytes, `(packed_bytes,)`.

    Code ``i`` (in C order) is written in two's complement into the bits ``i * bits`` to
    ``(i + 1) * bits - 1`` of the stream; bit ``j`` of the stream is bit ``j % 8`` of byte
    ``j // 8``, the least significant first. The last byte is filled with zeros.
    """
    words = codes.reshape(-1).astype("<i4").astype("<u4")
    spread = np.unpackbits(words.view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
    return np.packbits(spread[:, :bits].reshape(-1), bitorder="little")


def unpack_codes(
    stream: NDArray[np.uint8], bits: int, shape: tuple[int, ...], *, signed: bool
) -> NDArray[np.int32]:
    """The inverse of `pack_codes`.

    Raises:
        UserInputError: the stream does not have the length that the shape needs.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if len(stream) != packed_bytes(count, bits):
        raise UserInputError(
            f"{len(stream)} bytes do not hold {count} codes of {bits} bits "
            f"({packed_bytes(count, bits)} bytes are needed): the file is damaged; export it again."
        )
    flat = np.unpackbits(stream, count=count * bits, bitorder="little").reshape(count, bits)
    wide = np.zeros((count, 32), dtype=np.uint8)
    wide[:, :bits] = flat
    if signed:
        wide[:, bits:] = flat[:, -1:]  # the sign bit is repeated
    words = np.packbits(wide, axis=1, bitorder="little").reshape(-1).view("<u4")
    return words.astype("<i4").reshape(shape)
