"""What is learned from: a teacher's probabilities, labels, and a teacher's features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

KEPT_VARIANCE = 0.95
"""Share of the features' variance that the principal components keep (vitsense's choice)."""


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over images of ``-sum_c p_c log softmax(z)_c``; logits and targets `(B, C)`.

    Source: Hinton et al. 2015 (arXiv 1503.02531) at temperature 1; Shen and Xing 2022, FKD.
    """
    return -(targets * F.log_softmax(logits.float(), dim=1)).sum(1).mean()


def mixed_loss(logits: Tensor, soft: Tensor | None, labels: Tensor, hard: float) -> Tensor:
    """``(1 - hard)`` of the soft loss and ``hard`` of the cross-entropy with labels `(B,)`."""
    if soft is None or hard == 1:
        return F.cross_entropy(logits.float(), labels)
    loss = soft_cross_entropy(logits, soft)
    if hard == 0:
        return loss
    return (1 - hard) * loss + hard * F.cross_entropy(logits.float(), labels)


def principal_components(features: Tensor) -> Tensor:
    """Directions `(D, K)` that hold `KEPT_VARIANCE` of the variance of features `(N, D)`."""
    centred = (features - features.mean(0)).double()
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    share = values.square().cumsum(0) / values.square().sum().clamp_min(1e-30)
    count = int((share < KEPT_VARIANCE).sum()) + 1
    kept: Tensor = directions[:count].T.to(features.dtype)
    return kept


def mimic_loss(student: Tensor, teacher: Tensor, directions: Tensor) -> Tensor:
    """Mean squared distance of features `(B, D)` in the teacher's principal components.

    Source: Liang et al. 2025, GPLQ (arXiv 2506.11784): features are mimicked after PCA.
    """
    return ((student - teacher) @ directions).square().mean()
