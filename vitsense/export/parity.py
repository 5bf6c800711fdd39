"""Does the file say what the torch model says? Logits on held-back images, then site by site."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitsense.export.fixed import FixedModel
from vitsense.export.onnx_graph import write_graph
from vitsense.export.session import Session
from vitsense.numerics.grid import Grid
from vitsense.observe import Visit, observing
from vitsense.progress import NO_PROGRESS, Progress

Batch = tuple[Tensor, Tensor]
Floats = NDArray[np.float32]

TIE = 1e-3
"""Below this distance from the middle between two codes, in steps, rounding noise decides."""

WORST = 4
"""Images that are compared site by site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The file against the torch model on the same images."""

    images: int
    same_top1: int
    """Images that get the same class."""
    within_step: int
    """Images of which every logit is within one step."""
    largest: float
    """Largest difference of a logit."""
    mean: float
    """Mean difference of a logit."""
    step: float
    """One step of the logits at 8 bits: their range over the images by 255."""
    top1_torch: float | None
    """Accuracy of the torch model, percent; None without labels."""
    top1_file: float | None
    worst: tuple[int, ...]
    """Numbers of the images whose logits differ most, the worst first."""

    @property
    def identical(self) -> bool:
        """Whether the goal is reached: every class the same, every logit within one step."""
        return self.same_top1 == self.images and self.largest <= self.step


def compare(
    fixed: FixedModel,
    session: Session,
    batches: Sequence[Batch],
    progress: Progress = NO_PROGRESS,
) -> Parity:
    """Run both on every image.

    Args:
        fixed: The torch model.
        session: The file.
        batches: Images and labels; -1 without label.
        progress: Told of every batch.
    """
    mine, theirs = [], []
    for images, _ in batches:
        with torch.no_grad():
            mine.append(fixed(images).numpy())
        theirs.append(session.logits(images.numpy()))
        progress.advance(len(images))
    labels = torch.cat([labels for _, labels in batches]).numpy()
    return parity_of(np.concatenate(mine), np.concatenate(theirs), labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """The torch model against itself in double precision: what rounding of sums alone changes.

    Where values are rounded to few levels, one that lies between two of them is moved by a whole
    step when the last bit of a sum changes, and the layers behind amplify it. A file cannot be
    expected to agree better with the model than the model with itself.
    """

    images: int
    same_top1: int
    within_step: int
    """Images of which every logit is within one step of the logits at 8 bits."""
    largest: float
    """Largest difference of a logit."""


def arithmetic_of(fixed: FixedModel, batches: Sequence[Batch]) -> Arithmetic:
    """Run the torch model in both precisions on every image."""
    wide = FixedModel(
        copy.deepcopy(fixed.model).double(),
        fixed.catalog,
        fixed.weights,
        fixed.activations,
        trained=fixed.trained,
    )
    with torch.no_grad():
        single = np.concatenate([fixed(images).numpy() for images, _ in batches])
        double = np.concatenate([wide(images.double()).float().numpy() for images, _ in batches])
    found = parity_of(single, double, np.full(len(single), -1))
    return Arithmetic(
        images=found.images,
        same_top1=found.same_top1,
        within_step=found.within_step,
        largest=found.largest,
    )


def parity_of(torch_logits: Floats, file_logits: Floats, labels: NDArray[Any]) -> Parity:
    """The comparison of logits `(N, classes)` with labels `(N,)`; -1 without label."""
    difference = np.abs(torch_logits - file_logits)
    step = float(torch_logits.max() - torch_logits.min()) / 255
    mine, theirs = torch_logits.argmax(1), file_logits.argmax(1)
    known = bool((labels >= 0).all())
    return Parity(
        images=len(labels),
        same_top1=int((mine == theirs).sum()),
        within_step=int((difference.max(1) <= step).sum()),
        largest=float(difference.max()),
        mean=float(difference.mean()),
        step=step,
        top1_torch=100 * float((mine == labels).mean()) if known else None,
        top1_file=100 * float((theirs == labels).mean()) if known else None,
        worst=tuple(np.argsort(-difference.max(1), kind="stable")[:WORST].tolist()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteDifference:
    """One activation in the file against the same in torch."""

    site: str
    values: int
    differing: int
    """Values with another code."""
    steps: float
    """Largest difference, in steps of the site's grid."""
    tie: float
    """Largest distance, in steps, of a differing value from the middle between two codes, before
    it was rounded in torch."""

    @property
    def explanation(self) -> str:
        """Why the first site that differs does."""
        if not self.differing:
            return ""
        if self.steps <= 1.001 and self.tie <= TIE:
            return (
                f"{self.differing} of {self.values} values lie within {self.tie:.1g} of a step of "
                "the middle between two codes, where the last bit of a float sum decides; they "
                "are rounded to the neighbouring code"
            )
        return (
            f"{self.differing} of {self.values} values differ, by up to {self.steps:.3g} steps, "
            "and rounding does not explain it"
        )


def compare_sites(fixed: FixedModel, graph: Any, images: Tensor) -> list[SiteDifference]:
    """Every quantized activation of the file against torch, in the order of execution.

    Args:
        fixed: The torch model.
        graph: The ``onnx_ir.Model`` the file was written from; it is left as it was.
        images: `(B, 3, H, W)`.
    """
    expected = _seen_by_torch(fixed, images)
    values = {v.name: v for node in graph.graph for v in node.outputs}
    # sites that share a tensor and a range share one value
    names = [site for site in expected if site in values]
    kept = list(graph.graph.outputs)
    try:
        graph.graph.outputs.extend(values[name] for name in names)
        session = Session(write_graph(graph), names)
    finally:
        del graph.graph.outputs[len(kept) :]
    found = dict(zip(names, session.run(images.numpy()), strict=True))
    return [
        _difference(site, expected[site], fixed.rounded(site, expected[site]), grid, theirs)
        for site, grid, theirs in ((site, fixed.activations[site], found[site]) for site in names)
    ]


def _seen_by_torch(fixed: FixedModel, images: Tensor) -> dict[str, Tensor]:
    """The tensor of every activation site before rounding, from a quantized pass."""
    seen: dict[str, Tensor] = {}

    def keeping(site: str) -> Visit:
        def visit(tensor: Tensor) -> Tensor:
            seen[site] = tensor.clone()
            return fixed.rounded(site, tensor)

        return visit

    visits: Mapping[str, Visit] = fixed.visits() | {
        site: keeping(site) for site in fixed.activations
    }
    with torch.no_grad(), observing(fixed.model, fixed.catalog, visits):
        fixed.model(images)
    return seen


def _difference(
    site: str, before: Tensor, mine: Tensor, grid: Grid, theirs: Floats
) -> SiteDifference:
    scale = grid.scale.expand(before.shape) if grid.scale.numel() > 1 else grid.scale
    steps = ((mine - torch.from_numpy(theirs)) / scale).abs()
    differing = steps > 0.5
    shifted = before if grid.shift is None else before - grid.shift
    codes = (shifted / scale)[differing]
    return SiteDifference(
        site=site,
        values=mine.numel(),
        differing=int(differing.sum()),
        steps=float(steps.max()),
        tie=float((codes - codes.floor() - 0.5).abs().max()) if codes.numel() else 0.0,
    )
