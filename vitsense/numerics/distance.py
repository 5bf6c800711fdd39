"""How far the output of a quantized model is from the full-precision one, per image."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_nats(reference: Tensor, logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the class probabilities, `(B,)`, nats, never negative.

    Args:
        reference: Full-precision logits, `(B, classes)`.
        logits: Quantized logits, `(B, classes)`.
    """
    p = torch.log_softmax(reference.double(), dim=-1)
    q = torch.log_softmax(logits.double(), dim=-1)
    return (p.exp() * (p - q)).sum(dim=-1).clamp(min=0.0)


def signal_noise(reference: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Energy of the reference and of the difference, `(B,)` each, in squared tensor units."""
    signal = reference.double().flatten(1).square().sum(dim=1)
    noise = (other.double() - reference.double()).flatten(1).square().sum(dim=1)
    return signal, noise


def sqnr_db(reference: Tensor, other: Tensor) -> float:
    """Signal-to-quantization-noise ratio of a whole batch, dB; infinite without noise."""
    signal, noise = signal_noise(reference, other)
    return float(10 * torch.log10(signal.sum() / noise.sum()))


def mse(reference: Tensor, other: Tensor) -> float:
    """Mean squared difference, squared tensor units."""
    return float((other.double() - reference.double()).square().mean())


def top1_agree(reference: Tensor, logits: Tensor) -> Tensor:
    """Whether both give the same class, `(B,)`, bool."""
    return reference.argmax(dim=-1) == logits.argmax(dim=-1)
