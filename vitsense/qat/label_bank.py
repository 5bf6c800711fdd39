"""The label bank as the training reads it: one file, or all shards of one, checked against use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitsense.errors import InputMissingError, UserInputError
from vitsense.qat.bank_file import BankFile, differing, open_file
from vitsense.qat.crops import Crop, CropPolicy


class LabelBank:
    """A whole bank, for reading: one file, or all of its shards."""

    def __init__(self, files: Sequence[BankFile]) -> None:
        self._files = list(files)
        self.header = files[0].header

    @classmethod
    def open(cls, path: Path) -> LabelBank:
        """Open a bank, or all shards of one.

        Raises:
            InputMissingError: the file, or a shard of it, is not there.
            UserInputError: damaged, unfinished, or shards that do not belong together.
        """
        files = [open_file(found) for found in _parts(path)]
        for file in files[1:]:
            wrong = differing(files[0].header, file.header)
            if wrong:
                raise UserInputError(
                    f"{file.path} and {files[0].path} differ in their {', '.join(wrong)}: they "
                    "are not shards of one bank."
                )
        for file in files:
            missing = int((file.index["image"] == 0).sum())
            if missing:
                raise UserInputError(
                    f"{file.path} is not finished: {missing} of {file.header.images} images have "
                    "no labels yet. Run the same vitsense distill command again; it continues."
                )
        return cls(files)

    def check(
        self,
        *,
        data_digest: str,
        images: int,
        classes: int,
        where: str,
        remedy: str = "make one for these with vitsense distill",
    ) -> None:
        """Refuse a bank that does not belong to the images or the model.

        Args:
            data_digest: Of the training images.
            images: How many they are.
            classes: Of the model.
            where: What the images are called.
            remedy: What makes bank and images fit.

        Raises:
            UserInputError: naming both sides.
        """
        header = self.header
        name = self._files[0].path
        if header.total != images or header.data_digest != data_digest:
            raise UserInputError(
                f"The label bank {name} was made for another data set ({header.total} images, "
                f"digest {header.data_digest}) than {where} ({images} images, digest "
                f"{data_digest}): {remedy}."
            )
        if header.classes != classes:
            raise UserInputError(
                f"The label bank {name} has {header.classes} classes, the model {classes}: use a "
                "teacher of the same classes."
            )

    def check_policy(self, policy: CropPolicy) -> None:
        """Refuse a bank of another crop policy than the training asks for.

        Raises:
            UserInputError: naming both.
        """
        if policy != self.header.policy:
            raise UserInputError(
                f"The label bank {self._files[0].path} has crops of another policy "
                f"({_policy_text(self.header.policy)}) than the training asks for "
                f"({_policy_text(policy)}): leave crop_scale and flip to the bank, or make another."
            )

    def __len__(self) -> int:
        return self.header.total

    def read(
        self, number: int, chosen: Sequence[int], image: int
    ) -> tuple[list[Crop], NDArray[np.int64], NDArray[np.float32]]:
        """Crops of an image and what the teacher said.

        Args:
            number: The image.
            chosen: Which of its crops.
            image: Checksum of the image's bytes, so that labels never meet another picture.

        Returns:
            The crops, classes `(M, k)` and probabilities `(M, k)`.

        Raises:
            UserInputError: the image is another one, or its records are damaged.
        """
        file = self._file(number)
        place = number - file.header.first
        if not file.has(number):
            raise UserInputError(
                f"{file.path} is damaged at image {number}; make it again with vitsense distill."
            )
        if int(file.index[place]["image"]) != image:
            raise UserInputError(
                f"Image {number} is not the picture that {file.path} holds labels for: the bank "
                "belongs to another data set."
            )
        rows = file.records[place][list(chosen)]
        crops = [
            Crop(int(top), int(left), int(height), int(width), bool(flip))
            for (top, left, height, width), flip in zip(rows["box"], rows["flip"], strict=True)
        ]
        return crops, rows["classes"].astype(np.int64), rows["probabilities"].astype(np.float32)

    def _file(self, number: int) -> BankFile:
        for file in self._files:
            if file.header.first <= number < file.header.first + file.header.images:
                return file
        raise UserInputError(f"The label bank has no image {number}; it has {len(self)} images.")


def _policy_text(policy: CropPolicy) -> str:
    low, high = policy.scale
    return f"crop_scale {low:g},{high:g}, flip {policy.flip:g}, version {policy.version}"


def _parts(path: Path) -> list[Path]:
    if path.exists():
        return [path]
    pattern = re.compile(re.escape(path.name) + r"\.(\d+)-of-(\d+)")
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    found = {int(m[1]): (p, int(m[2])) for p in siblings if (m := pattern.fullmatch(p.name))}
    if not found:
        raise InputMissingError(f"There is no label bank {path}; make one with vitsense distill.")
    shards = next(iter(found.values()))[1]
    missing = [i for i in range(shards) if i not in found]
    if missing:
        raise InputMissingError(
            f"Of the label bank {path} the shards {', '.join(map(str, missing))} of {shards} are "
            "missing; run vitsense distill for each."
        )
    return [found[i][0] for i in range(shards)]


def dense_targets(classes: Tensor, probabilities: Tensor, count: int) -> Tensor:
    """Probabilities of all classes, `(B, C)`, from the `(B, k)` that were kept.

    The mass that is left is spread evenly over the classes that were not kept.

    Source: Shen and Xing 2022, "A Fast Knowledge Distillation Framework" (marginal smoothing).
    """
    kept = probabilities.sum(1, keepdim=True)
    rest = (1 - kept).clamp_min(0) / max(count - classes.shape[1], 1)
    dense = rest.expand(-1, count).clone()
    return dense.scatter_(1, classes, probabilities) / (kept + (1 - kept).clamp_min(0))
