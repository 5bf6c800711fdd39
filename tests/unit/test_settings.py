"""Settings: checked when made, written as plain values, and compared by name."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from vitsense.errors import UserInputError
from vitsense.settings import (
    ALLOWED_BITS,
    AnalyzeSettings,
    By,
    Direction,
    Granule,
    ModelRequest,
    Part,
    QuantSettings,
    RangeChoice,
    SweepMode,
    WeightSource,
)

SETTINGS = AnalyzeSettings(model=ModelRequest(name="swin_t"))


@pytest.mark.parametrize("bits", ALLOWED_BITS)
def test_every_width_that_can_be_measured_is_allowed(bits: int) -> None:
    assert replace(SETTINGS, bits=(bits,)).bits == (bits,)


@pytest.mark.parametrize("bits", [(1,), (99,), (9,), (0,), (-4,), (8, 1), ()])
def test_other_widths_are_refused_with_those_allowed(bits: tuple[int, ...]) -> None:
    with pytest.raises(UserInputError, match="2, 3, 4, 5, 6, 7, 8, 16"):
        replace(SETTINGS, bits=bits)


def test_a_width_named_twice_is_refused() -> None:
    with pytest.raises(UserInputError, match="twice"):
        replace(SETTINGS, bits=(8, 4, 8))


@pytest.mark.parametrize(
    ("name", "value", "option"),
    [
        ("images", 0, "--images"),
        ("images", -5, "--images"),
        ("calibration", 0, "--calibration"),
        ("batch", 0, "--batch-size"),
        ("batch", -1, "--batch-size"),
        ("seed", -1, "--seed"),
        ("parts", (), "--parts"),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_option(
    name: str, value: Any, option: str
) -> None:
    with pytest.raises(UserInputError, match=option):
        replace(SETTINGS, **{name: value})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        SETTINGS.images = 5  # type: ignore[misc]


def test_a_checkpoint_means_weights_from_a_file() -> None:
    assert ModelRequest(name="x", checkpoint=Path("a.pt")).weights is WeightSource.FILE
    with pytest.raises(UserInputError, match="contradict"):
        ModelRequest(name="x", checkpoint=Path("a.pt"), weights=WeightSource.RANDOM)


def test_settings_are_written_as_plain_values() -> None:
    made = replace(
        SETTINGS,
        compares=(ModelRequest(name="resnet50", checkpoint=Path("r.pt")),),
        parts=(Part.BOTH, Part.WEIGHTS),
    )
    plain = json.loads(json.dumps(made.to_json()))
    assert plain == made.to_json()
    assert plain["compares"] == [{"name": "resnet50", "checkpoint": "r.pt", "weights": "file"}]
    assert plain["parts"] == ["both", "weights"]


def test_equal_settings_do_not_differ() -> None:
    assert SETTINGS.differing(json.loads(json.dumps(SETTINGS.to_json()))) == []


CHANGES: dict[str, Any] = {
    "model": ModelRequest(name="vit"),
    "compares": (ModelRequest(name="vit"),),
    "data": "folder",
    "calibration_data": "folder",
    "images": 7,
    "calibration": 7,
    "bits": (8,),
    "formats": ("mxfp4",),
    "by": (By.HEAD,),
    "directions": (Direction.ALONE,),
    "group_formats": ("int3",),
    "parts": (Part.WEIGHTS,),
    "quant": QuantSettings(weight_range=RangeChoice.MINMAX, weight_granularity=Granule.TENSOR),
    "mode": SweepMode.EXACT,
    "tolerance": 1.0,
    "confidence": 0.9,
    "batch": 4,
    "seed": 3,
    "strict": True,
    "hessian_probes": 9,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_is_named(name: str) -> None:
    changed = replace(SETTINGS, **{name: CHANGES[name]})
    assert changed.differing(SETTINGS.to_json()) == [name]


def test_every_setting_is_compared_or_known_to_change_no_number() -> None:
    """A new setting must be thought about here."""
    assert set(SETTINGS.to_json()) == set(CHANGES) | {
        "budget",
        "profile",
        "refine",
        "refine_images",
        "device",
        "estimates",
        "memory",
        "budget_time",
    }
    assert (
        replace(
            SETTINGS, budget="size-mb=5", device="cpu", memory=2**20, budget_time=5.0
        ).differing(SETTINGS.to_json())
        == []
    )


def test_settings_of_an_older_run_that_lack_a_value_differ_in_it() -> None:
    older = SETTINGS.to_json()
    del older["strict"]
    assert SETTINGS.differing(older) == ["strict"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tolerance": 0.0}, "--tolerance is 0.0"),
        ({"tolerance": 101.0}, "--tolerance is 101.0"),
        ({"confidence": 1.0}, "--confidence is 1.0"),
        ({"confidence": 0.2}, "--confidence is 0.2"),
    ],
)
def test_a_tolerance_or_confidence_that_means_nothing_is_refused(
    change: dict[str, float], message: str
) -> None:
    with pytest.raises(UserInputError, match=message):
        replace(SETTINGS, **change)
