"""Numbers as text: one rule for each kind, no false precision, no minus zero."""

from __future__ import annotations

import math

import pytest

from vitsense.report.formatters import (
    count,
    difference,
    number,
    percent,
    short,
    shortened,
    signs,
    span,
    spelled,
    visible,
)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1.25, 2, "1.25"),
        (-3.14159, 1, "\u22123.1"),
        (-0.04, 1, "0.0"),
        (0.0, 1, "0.0"),
        (-0.05, 2, "\u22120.05"),
    ],
)
def test_a_number_has_a_real_minus_and_no_negative_zero(value, digits, text) -> None:
    assert number(value, digits) == text


def test_a_span_names_both_ends() -> None:
    assert span(-0.44, 2) == "\u22120.4 to 2.0"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00123, "0.0012"),
        (0.000012345, "1.2e\u22125"),
        (12.3, "12"),
        (123456, "123456"),
        (1234567, "1.2e6"),
        (-0.25, "\u22120.25"),
        (math.inf, "infinite"),
        (math.nan, "unknown"),
    ],
)
def test_short_shows_two_digits_over_many_magnitudes(value, text) -> None:
    assert short(value) == text


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (36_864, "36.9 k"), (5_717_416, "5.7 M")])
def test_counts_are_rounded_with_a_unit(value, text) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0.00 %"), (1e-6, "< 0.01 %"), (0.0012, "0.12 %"), (0.5, "50.0 %")]
)
def test_a_share_that_is_not_zero_is_not_shown_as_zero(share, text) -> None:
    assert percent(share) == text


def test_characters_that_turn_a_sentence_are_written_out() -> None:
    assert visible("a\u202eb\nc") == "a\\u202eb\\u000ac"


@pytest.mark.parametrize(
    "text", ["\u05e9\u05dc\u05d5\u05dd", "\U0001f469\u200d\U0001f52c", "a b <i>"]
)
def test_ordinary_text_of_any_script_stays(text) -> None:
    assert visible(text) == text


def test_a_small_number_of_a_plan_is_written_as_in_the_tables() -> None:
    assert (
        spelled("1.4e-05 nats at 8 bits; 1e-11, int8-e4")
        == "1.4e\u22125 nats at 8 bits; 1e\u221211, int8-e4"
    )


def test_a_difference_has_one_decimal_more_than_its_numbers() -> None:
    """1.25 and 0.69 are shown as 1.2 and 0.7: neither 0.5 nor 0.6 would look right beside them."""
    assert difference(1.25 - 0.694, -0.71, 1.82) == "0.56 (\u22120.71 to 1.82)"
    assert difference(0.0304, 0.01, 0.05, digits=2) == "0.030 (0.010 to 0.050)"


def test_signs_of_numbers_in_a_text_are_real_and_hyphens_stay() -> None:
    assert signs("from -0.17, a one-sided int8-e4 -x") == "from \u22120.17, a one-sided int8-e4 -x"


def test_a_long_name_in_a_sentence_keeps_both_ends() -> None:
    name = "blocks." + "x" * 80 + ".mlp.fc1"
    assert shortened("a" * 60) == "a" * 60
    assert len(shortened(name)) <= 60
    assert shortened(name).startswith("blocks.xx")
    assert shortened(name).endswith("x.mlp.fc1")
