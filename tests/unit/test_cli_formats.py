"""The options about formats, groups and directions: what they mean, and what they refuse."""

from __future__ import annotations

import click
import pytest

from vitsense.cli_plan import _pin
from vitsense.cli_settings import settings_from, settings_options
from vitsense.errors import UserInputError
from vitsense.settings import AnalyzeSettings, By, Direction, ProbsGrid


def given(*arguments: str) -> AnalyzeSettings:
    found = []

    @click.command()
    @settings_options
    def command(**values) -> None:
        found.append(settings_from(**values))

    command.main(["--model", "vit", *arguments], standalone_mode=False)
    return found[0]


def test_bits_are_the_short_form_of_integer_formats() -> None:
    assert given().format_names == ("int8", "int6", "int4", "int3", "int2")
    assert given("--bits", "8,4").format_names == given("--formats", "int8, 4").format_names
    mixed = given("--formats", "int8,fp8_e4m3,mxfp4", "--group-formats", "3,nvfp4")
    assert mixed.format_names == ("int8", "fp8_e4m3", "mxfp4")
    assert mixed.widths == (8,)
    assert mixed.group_format_names == ("int3", "nvfp4")
    assert given("--attention-probs", "log2").quant.attention_probs is ProbsGrid.LOG2


def test_groupings_and_directions() -> None:
    assert given().by is None
    assert given("--by", "none").groupings == ()
    assert given("--by", "head, block,head").groupings == (By.HEAD, By.BLOCK)
    assert given().directions == tuple(Direction)
    assert given("--direction", "leave-one-out").directions == (Direction.SPARED,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--formats", "int8,fp4"), "'fp4' is no number format.*mxfp4"),
        (("--formats", "int4,4"), "names a format twice"),
        (("--formats", "int4", "--bits", "4"), "--bits and --formats are given"),
        (("--group-formats", "int9"), "'int9' is no number format"),
        (("--by", "layer"), "--by is 'layer': use some of module, role"),
    ],
)
def test_what_is_not_understood_is_named_with_what_is_allowed(arguments, words: str) -> None:
    with pytest.raises(UserInputError, match=words):
        given(*arguments)


def test_a_module_is_pinned_at_bits_or_in_a_format() -> None:
    assert _pin("blocks.0.attn.proj=8") == ("blocks.0.attn.proj", 8)
    assert _pin("head= mxfp4") == ("head", "mxfp4")
    for text in ("head", "=8", "head=fp4", "head=eight"):
        with pytest.raises(UserInputError, match="write NAME=BITS"):
            _pin(text)
