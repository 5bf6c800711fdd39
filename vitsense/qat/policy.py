"""Which crops are right for which images, where nobody says."""

from __future__ import annotations

from vitsense.data import GENERATED
from vitsense.qat.crops import CropPolicy

_PHOTOS = CropPolicy()
_GLYPHS = CropPolicy(scale=(0.7, 1.0), flip=0.0)
"""A mirrored or half-cut character is another character."""


def resolved_policy(scale: tuple[float, float] | None, flip: float | None, kind: str) -> CropPolicy:
    """The policy with what is None filled in for images of ``kind`` (`ImageSource.kind`).

    Raises:
        UserInputError: a value is not allowed.
    """
    usual = _GLYPHS if kind == GENERATED else _PHOTOS
    return CropPolicy(
        scale=usual.scale if scale is None else scale, flip=usual.flip if flip is None else flip
    )
