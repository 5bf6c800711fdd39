"""How far the output of a quantized model is from the full-precision one, per image."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kl_nats(reference: Tensor, logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the class probabilities, `(B,)`, nats, never negative.

    NaN where a logit is NaN; infinite where the quantized model rules a possible class out.

    Args:
        reference: Full-precision logits, `(B, classes)`.
        logits: Quantized logits, `(B, classes)`.

    Source: Kullback and Leibler 1951, eq. 2.4. Deviation: none.
    """
    p = torch.log_softmax(reference.double(), dim=-1)
    q = torch.log_softmax(logits.double(), dim=-1)
    share = p.exp()
    # an impossible class adds nothing, also where both logarithms are infinite
    terms = torch.where(share == 0, 0.0, share * (p - q))
    return terms.sum(dim=-1).clamp(min=0.0)


def nats_to_flip(logits: Tensor) -> Tensor:
    """The least divergence from these outputs of any output with another top class, `(B,)`, nats.

    A quantized model whose `kl_nats` on an image is smaller gives the image the same class.

    Args:
        logits: Full-precision logits, `(B, classes)`, at least two classes.

    Source: the output q nearest to p (in KL(p || q)) whose class j is at least as likely as p's
    top class moves both to their mean m and leaves the others (Lagrange multipliers on the simplex;
    the projection of Csiszar 1975); its divergence is p1 ln(p1/m) + pj ln(pj/m), least for the
    runner-up.
    """
    top = torch.log_softmax(logits.double(), dim=-1).topk(2, dim=-1).values
    middle = torch.logsumexp(top, dim=-1, keepdim=True) - math.log(2)
    share = top.exp()
    terms = torch.where(share == 0, 0.0, share * (top - middle))
    return terms.sum(dim=-1).clamp(min=0.0)


def signal_noise(reference: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Energy of the reference and of the difference, `(B,)` each, in squared tensor units."""
    signal = reference.double().flatten(1).square().sum(dim=1)
    noise = (other.double() - reference.double()).flatten(1).square().sum(dim=1)
    return signal, noise


def sqnr_db(reference: Tensor, other: Tensor) -> float:
    """Signal-to-quantization-noise ratio of a whole batch, dB; infinite without noise."""
    signal, noise = (energies.sum() for energies in signal_noise(reference, other))
    if float(noise) == 0:
        return float("inf")
    return float(10 * torch.log10(signal / noise))


def mse(reference: Tensor, other: Tensor) -> float:
    """Mean squared difference, squared tensor units."""
    return float((other.double() - reference.double()).square().mean())


def cosine(reference: Tensor, other: Tensor) -> Tensor:
    """Cosine of the angle between both, `(B,)`, -1 to 1; 0 where one of them is all zero."""
    a, b = (side.double().flatten(1) for side in (reference, other))
    # each is brought to length 1 by itself: a product of two small lengths could underflow
    a, b = (torch.nn.functional.normalize(side, dim=1, eps=1e-300) for side in (a, b))
    return (a * b).sum(dim=1).clamp(-1.0, 1.0)


def top1_agree(reference: Tensor, logits: Tensor) -> Tensor:
    """Whether both give the same class, `(B,)`, bool."""
    return reference.argmax(dim=-1) == logits.argmax(dim=-1)
