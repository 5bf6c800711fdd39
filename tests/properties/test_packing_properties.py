"""Codes survive packing, and lie in the stream where the format says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitsense.errors import UserInputError
from vitsense.export.bitstream import pack_codes, packed_bytes, unpack_codes

WIDTHS = st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16])


@st.composite
def coded(draw: st.DrawFn) -> tuple[int, bool, np.ndarray]:
    bits, signed = draw(WIDTHS), draw(st.booleans())
    low = -(1 << (bits - 1)) if signed else 0
    high = low + (1 << bits) - 1
    shape = draw(st.sampled_from([(1,), (7,), (3, 5), (2, 3, 1, 3), (16, 4)]))
    count = int(np.prod(shape))
    codes = draw(st.lists(st.integers(low, high), min_size=count, max_size=count))
    return bits, signed, np.array(codes, dtype=np.int32).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(coded())
def test_what_is_packed_comes_back(case: tuple[int, bool, np.ndarray]) -> None:
    bits, signed, codes = case
    stream = pack_codes(codes, bits)
    assert len(stream) == packed_bytes(codes.size, bits)
    np.testing.assert_array_equal(unpack_codes(stream, bits, codes.shape, signed=signed), codes)


@settings(max_examples=30, deadline=None)
@given(coded())
def test_the_stream_is_the_documented_one(case: tuple[int, bool, np.ndarray]) -> None:
    """One big integer with code i shifted by i * bits, written little-endian."""
    bits, _, codes = case
    whole = 0
    for i, code in enumerate(codes.reshape(-1).tolist()):
        whole |= (code & ((1 << bits) - 1)) << (i * bits)
    expected = whole.to_bytes(packed_bytes(codes.size, bits), "little")
    assert pack_codes(codes, bits).tobytes() == expected


def test_a_stream_of_another_length_is_refused() -> None:
    with pytest.raises(UserInputError, match="3 bytes are needed"):
        unpack_codes(np.zeros(4, dtype=np.uint8), 3, (8,), signed=True)
