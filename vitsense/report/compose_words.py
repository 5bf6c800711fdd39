"""The report's terms, and what a nat is worth in this run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vitsense.plan.predict import DropModel
from vitsense.report.formatters import short

_FEWEST = 2  # plans or modules from which a fit says what a nat is worth


def glossary(entries: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Every term with its meaning; nats with points of drop as this run's fits have them.

    Args:
        entries: Models of ``run.json``.
    """
    worth = "".join(filter(None, map(_worth, entries)))
    nats = f"how far the class probabilities move, in nats; 0 means unchanged{worth}"
    return (_WORDS[0], ("divergence, nats", nats), *_WORDS[1:])


def _worth(entry: Mapping[str, Any]) -> str:
    """``; for NAME a whole plan of 0.06 nats loses about 1 point, of 0.34 nats 10``."""
    if not entry.get("drop_model"):
        return ""
    model = DropModel(**entry["drop_model"])
    one, ten = model.whole_kl_at(1.0), model.whole_kl_at(10.0)
    if model.points < _FEWEST or not (math.isfinite(one) and math.isfinite(ten)):
        return ""
    return (
        f"; for {entry['key']} a whole plan of {short(one)} nats loses about 1 point, one of "
        f"{short(ten)} nats about 10"
    )


_WORDS = (
    (
        "module",
        "the unit of a measurement: a linear layer or convolution with its weight and input, the "
        "query, key or value part of a fused projection, or a product inside attention",
    ),
    (
        "drop",
        "full-precision minus quantized top-1 accuracy on the same images, in percentage points; "
        "what is lost, or below zero gained",
    ),
    (
        "bits, format",
        "how a number is held: an integer of so many bits, or another format by its name; a width "
        "is a number of bits",
    ),
    ("role", "what a module does in its block: Q, K, V, FFN, conv, patch embed (the first layer)"),
    (
        "interval",
        "where the number would lie in 95 of 100 runs like this one, on other images of the same "
        "kind; cannot be told: the interval allows both answers",
    ),
    (
        "tolerance",
        "mode adaptive measures a module until its drop on all evaluation images is known to so "
        "many points (--tolerance)",
    ),
    ("excess kurtosis", "how heavy the tails of a distribution are; 0 for a normal distribution"),
    ("SDAM", "standard deviation over channels of the mean absolute value"),
    ("Fisher estimate", "a module's divergence estimated from gradients, without measuring it"),
    ("qk product, pv product", "the two matrix products of attention: scores, and what they weigh"),
    ("powers of two", "probabilities rounded to 1, 1/2, 1/4, ...: fine where they are small"),
    ("Pareto front", "the plans that no other plan beats in both size and predicted loss"),
    ("random formats", "plans of random bits, measured to learn how errors of modules add up"),
    ("bit operations", "multiply-accumulates times the bits of both operands"),
    (
        "plan",
        "the bits of every module of a model, plan.json: more bits go where a kilobyte saves most "
        "divergence, until the budget is used up",
    ),
    (
        "budget",
        "what a plan may take (--budget); by default avg-bits=4, at most 4 bits on average over a "
        "model's weights: activations and bit operations are not counted",
    ),
    (
        "pinned",
        "kept at given bits whatever it costs: the first and the last weights at 8 bits, as is "
        "usual; vitsense plan --no-pin leaves them free, --pin NAME=BITS pins others",
    ),
)
