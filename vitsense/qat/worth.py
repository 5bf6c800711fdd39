"""What training was worth, in words: what there was to gain, and what was gained."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from vitsense.decimals import difference, number, short_span
from vitsense.sensitivity.interval import Interval

Row = Mapping[str, Any]


class Worth(Enum):
    """What the last step is against the plan without training."""

    GAINED = "gained"
    SAME = "same"
    """The difference cannot be told from zero."""
    WORSE = "worse"


def prospects(ptq: Row) -> str:
    """That there is hardly anything to gain, before training; empty where there is, or may be."""
    loss = _loss(ptq)
    if loss is None or not loss.contains_zero:
        return ""
    return (
        f"Without training, the plan has a drop of {_points(loss)}, which cannot be told from "
        "zero: training can hardly show a gain. It pays where fewer bits cost more."
    )


def worth_of(record: Row) -> dict[str, str]:
    """The verdict on a finished training: its kind, a sentence, and what to do.

    Args:
        record: As in ``qat.json``.
    """
    gain = _gain(record["last"])
    what = "" if record["last"].get("top1") is not None else " of agreement with full precision"
    if gain.low > 0:
        text = f"Training gained {_points(gain)}{what}, against the plan without training."
        return {"kind": Worth.GAINED.value, "text": text, "advice": ""}
    if gain.high < 0:
        text = f"Training made the plan worse, by {_points(_turned(gain))}{what}."
        return {"kind": Worth.WORSE.value, "text": text, "advice": _if_worse(record)}
    sign = "+" if gain.value > 0 else ""
    text = (
        f"Training made no difference that can be told from zero: {sign}{_points(gain)}{what}, "
        f"against the plan without training.{_nearer(record)}"
    )
    return {"kind": Worth.SAME.value, "text": text, "advice": _if_same(record)}


def _nearer(record: Row) -> str:
    """The divergences from full precision, which tell more than the count of right answers."""
    before, after = (
        short_span(*(row[f"kl{end}"] for end in ("", "_low", "_high")))
        if row.get("kl") is not None
        else ""
        for row in (record["ptq"], record["last"])
    )
    if not before or not after:
        return ""
    went = f"the divergence from full precision went from {before} to {after} nats"
    if record["last"]["kl_high"] < record["ptq"]["kl_low"]:
        return f" But it is nearer to full precision: {went}."
    if record["last"]["kl_low"] > record["ptq"]["kl_high"]:
        return f" But it is farther from full precision: {went}."
    return f" {went[:1].upper()}{went[1:]}."


def _if_worse(record: Row) -> str:
    rate = record["recipe"]["lr"]
    best = _gain(record["best"])
    if best.low > 0:
        return (
            f"The best evaluation (step {record['best']['step']}) is better than the plan without "
            f"training, the last is not: use a lower --lr than {rate:g}."
        )
    return (
        "Use the plan without training (vitsense export takes it), or train with a lower --lr "
        f"than {rate:g} or longer (--epochs)."
    )


def _if_same(record: Row) -> str:
    loss = _loss(record["ptq"])
    if loss is not None and loss.contains_zero:
        return (
            "There was hardly anything to gain at these widths: on these images the plan without "
            "training does as well."
        )
    known = "" if loss is None else f"There were {_points(loss)} to gain. "
    return (
        f"{known}Train longer (--epochs), on more images, or with another --lr than "
        f"{record['recipe']['lr']:g} (few bits take a higher one); more evaluation images "
        "(--eval-images) tell smaller gains."
    )


def decline(since_best: Interval | None, record: Row) -> str:
    """Says so where the last step is clearly worse than the best one; else empty.

    Args:
        since_best: Last minus best, points, paired; None: they are the same.
        record: As in ``qat.json``.
    """
    if since_best is None or since_best.high >= 0:
        return ""
    best, last = record["best"]["step"], record["last"]["step"]
    return (
        f"The last step ({last}) is worse than step {best}, by {_points(_turned(since_best))}: "
        "training did not settle. Use a lower --lr; best.safetensors holds the better step, chosen "
        "on the evaluation images."
    )


def analysis_of(record: Row, *, same_images: bool, inside: bool) -> dict[str, Any] | None:
    """What the plan file says was measured of the plan, beside what was measured here.

    Args:
        record: As in ``qat.json``.
        same_images: Whether the evaluation images are those of the plan's run.
        inside: Whether the plan's run is known.
    """
    then, now = record["plan"]["measured"], record["ptq"]
    if not then:
        return None
    counts = ("n", "lost", "gained", "agreement")
    columns = ("drop", "drop_low", "drop_high", "agreement", "n", "lost", "gained")
    equal = all(then.get(key) == now.get(key) for key in counts)
    said = ""
    if not inside:
        said = "The run of the plan is not known, so its images and this training's may differ."
    elif not same_images:
        said = "The analysis measured it on other evaluation images."
    elif not equal and then.get("n") != now["n"]:
        said = f"The analysis measured it on {then.get('n')} of these images."
    elif not equal:
        said = (
            "Another machine, or another version of torch, rounds the last digits differently, "
            "which changes single images."
        )
    found = {key: then.get(key) for key in columns}
    return {**found, "same_images": same_images, "equal": equal, "said": said}


def _gain(row: Row) -> Interval:
    return Interval(float(row["gain"]), float(row["gain_low"]), float(row["gain_high"]))


def _loss(row: Row) -> Interval | None:
    """Of top-1 against full precision, points; None without labels."""
    if row.get("drop") is None:
        return None
    return Interval(float(row["drop"]), float(row["drop_low"]), float(row["drop_high"]))


def _turned(value: Interval) -> Interval:
    return Interval(-value.value, -value.high, -value.low)


def _points(value: Interval) -> str:
    """``0.56 points (−0.35 to 1.45)``."""
    shown, _, span = difference(value.value, value.low, value.high).partition(" ")
    unit = "point" if shown == number(1, 2) else "points"
    return f"{shown} {unit} {span}"
