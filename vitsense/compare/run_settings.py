"""What differs between two runs of one model: weights, data, settings, versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Kind(str, Enum):
    """What a difference is about; in the order in which readers want to know."""

    WEIGHTS = "weights"
    DATA = "data"
    SETTINGS = "settings"
    VERSIONS = "versions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Something that the two runs do not have in common."""

    kind: Kind
    name: str
    first: str
    second: str


_MODEL = {
    "weights": "origin of the weights",
    "checkpoint": "checkpoint",
    "weights_digest": "digest of the weights",
    "params": "parameters",
    "num_classes": "classes",
}
_PREPARED = {
    "input_size": "input size",
    "mean": "mean of the preprocessing",
    "std": "deviation of the preprocessing",
    "interpolation": "interpolation",
    "crop_pct": "share that is cropped",
}
_DATA = {
    "spec": "images",
    "kind": "kind of images",
    "evaluation": "evaluation images",
    "calibration": "calibration images",
    "evaluation_digest": "digest of the evaluation images",
    "calibration_digest": "digest of the calibration images",
    "labelled": "labels",
}
_ASKED_ELSEWHERE = {"model", "compares", "data", "images", "calibration", "calibration_data"}
"""Settings that the model's entry and the data's say better."""


def differing(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    entries: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> list[Setting]:
    """What the records of two runs do not have in common.

    Args:
        first: ``run.json``.
        second: The other one.
        entries: The model in each.
    """
    found = list(_compared(Kind.WEIGHTS, _named(entries[0], _MODEL), _named(entries[1], _MODEL)))
    data = [
        {**_named(record.get("data", {}), _DATA), **_named(entry, _PREPARED)}
        for record, entry in zip((first, second), entries, strict=True)
    ]
    found += _compared(Kind.DATA, *data)
    asked = [dict(_flat(record.get("settings", {}))) for record in (first, second)]
    found += _compared(Kind.SETTINGS, *asked)
    made = [_environment(record) for record in (first, second)]
    found += _compared(Kind.VERSIONS, *made)
    return found


def same_images(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether both runs were evaluated on the same images."""
    digests = [record.get("data", {}).get("evaluation_digest") for record in (first, second)]
    return digests[0] is not None and digests[0] == digests[1]


def _named(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {words: values[key] for key, words in names.items() if key in values}


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if not above and key in _ASKED_ELSEWHERE:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield (f"{above}{key}").replace("_", " "), value


def _environment(record: Mapping[str, Any]) -> dict[str, Any]:
    provenance = record.get("provenance", {})
    machine = {f"machine: {key}": value for key, value in provenance.get("machine", {}).items()}
    return {**provenance.get("versions", {}), **machine}


def _compared(kind: Kind, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Setting]:
    for name in dict.fromkeys((*first, *second)):
        values = [_text(side.get(name)) for side in (first, second)]
        if values[0] != values[1]:
            yield Setting(kind=kind, name=name, first=values[0], second=values[1])


def _text(value: Any) -> str:
    if value is None or value == []:
        return "not given"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
