"""What an exported file's logits differ by once torch has the file's codes, on many images.

    python benchmarks/export_codes.py RUN --model KEY --images 360 [--prefer speed]

The other direction of `vitsense.export.site_parity`: there the file gets torch's tensors, here
torch gets the codes of the unchanged file, which are read as outputs of it. What then differs at a
site arose at that site; what is left between the logits is not codes. For
`benchmarks/results/export.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitsense.export.fixed import FixedModel
from vitsense.export.onnx_graph import OUTPUT, quantized_graph, write_graph
from vitsense.export.onnx_types import DEFAULT_OPSET, Prefer, stored_types
from vitsense.export.session import Session
from vitsense.export.site_parity import TIE
from vitsense.export.source import source_of_run
from vitsense.numerics.fake_quant import dequantize
from vitsense.numerics.grid import Grid
from vitsense.observe import Visit, observing
from vitsense.runfolder import RunFolder

_AT_ONCE = 4
"""Images at once: the codes of all sites are in memory."""


@dataclass(slots=True, kw_only=True)
class SiteDifference:
    """One quantized activation in the file against the same in torch, over all images."""

    site: str
    values: int = 0
    freely: int = 0
    """Values with another code when file and torch each go on with their own."""
    differing: int = 0
    """Values with another code although everything before has the codes of the file."""
    steps: float = 0.0
    """Largest of these differences, in steps of the site's grid."""
    tie: float = 0.0
    """Largest distance, in steps, of such a value from the middle between two codes, before it was
    rounded in torch."""

    @property
    def is_tie(self) -> bool:
        """Whether all that arises here are values in the middle between two codes."""
        return self.steps <= 1.001 and self.tie <= TIE

    def add(self, before: Tensor, mine: Tensor, theirs: Tensor, grid: Grid) -> None:
        """Count what differs between two tensors on the grid.

        Args:
            before: What torch rounded.
            mine: What it became in torch.
            theirs: What it became in the file.
            grid: Of the site.
        """
        steps = ((mine - theirs) / grid.scale).abs()
        differing = steps > 0.5
        self.values += mine.numel()
        count = int(differing.sum())
        if not count:
            return
        self.differing += count
        self.steps = max(self.steps, float(steps.max()))
        shifted = before if grid.shift is None else before - grid.shift
        codes = (shifted / grid.scale)[differing]
        self.tie = max(self.tie, float((codes - codes.floor() - 0.5).abs().max()))


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteParity:
    """What the difference of logits is made of."""

    images: int
    sites: tuple[SiteDifference, ...]
    """In the order of execution."""
    logits: float
    """Largest difference of a logit when file and torch each go on with their own codes."""
    given: float
    """The same when torch goes on with the codes of the file: what is not codes."""
    watched: float
    """Largest difference of a logit between the file and the same file with its codes as outputs:
    0 where reading the codes changes nothing."""

    @property
    def explained(self) -> float:
        """Share of the largest difference that the codes explain, 0 to 1."""
        return max(0.0, 1 - self.given / self.logits) if self.logits else 1.0

    @property
    def only_ties(self) -> bool:
        """Whether every code that differs is a value in the middle between two codes."""
        return all(site.is_tie for site in self.sites)

    @property
    def summary(self) -> str:
        """The measured explanation in a sentence."""
        arising = [site for site in self.sites if site.differing]
        if not arising:
            return f"codes are equal at all {len(self.sites)} sites on {self.images} images"
        codes = sum(site.differing for site in arising)
        of = sum(site.values for site in self.sites)
        worst = max(arising, key=lambda site: (not site.is_tie, site.tie))
        kind = (
            f"all within {worst.tie:.1g} of a step of the middle between two codes, and rounded to "
            "the neighbouring one"
            if self.only_ties
            else f"not only in the middle between two codes: at {worst.site} up to "
            f"{worst.steps:.3g} steps"
        )
        return (
            f"given the file's codes before a site, torch gives others to {codes} of {of} values "
            f"at {len(arising)} of {len(self.sites)} sites on {self.images} images, {kind}; on the "
            f"file's codes its logits {self._rest}"
        )

    @property
    def _rest(self) -> str:
        if not self.given:
            return "are the file's, bit for bit"
        return (
            f"differ by at most {self.given:.2g} ({100 * self.explained:.4g} % of the difference "
            "are codes)"
        )


@dataclass(slots=True)
class _Run:
    """The codes of one batch in the file, on their way into torch."""

    fixed: FixedModel
    names: Mapping[str, str]
    """Site -> the site under whose name its codes stand in the file."""
    rows: dict[str, SiteDifference]
    values: dict[str, Tensor] = field(default_factory=dict)

    def freely(self, site: str, before: Tensor, mine: Tensor, theirs: Tensor) -> Tensor:
        """Count and go on with torch's own."""
        del before
        steps = ((mine - theirs) / self.fixed.activations[site].scale).abs()
        self.rows[site].freely += int((steps > 0.5).sum())
        return mine

    def given(self, site: str, before: Tensor, mine: Tensor, theirs: Tensor) -> Tensor:
        """Count and go on with the file's."""
        self.rows[site].add(before, mine, theirs, self.fixed.activations[site])
        return theirs

    def logits(self, images: Tensor, choose: Callable[..., Tensor]) -> Tensor:
        """One pass of torch; at every site of the file, ``choose`` says what goes on."""

        def at(site: str) -> Visit:
            def visit(tensor: Tensor) -> Tensor:
                mine = self.fixed.rounded(site, tensor)
                return choose(site, tensor, mine, self.values[self.names[site]])

            return visit

        visits = self.fixed.visits() | {site: at(site) for site in self.names}
        with torch.no_grad(), observing(self.fixed.model, self.fixed.catalog, visits):
            found: Tensor = self.fixed.model(images)
            return found


def compare_sites(
    fixed: FixedModel,
    graph: Any,
    images: Iterable[Tensor],
) -> SiteParity:
    """Every quantized activation of the file against torch, over all images.

    Args:
        fixed: The torch model.
        graph: The ``onnx_ir.Model`` the file was written from; it is left as it was.
        images: Batches `(B, 3, H, W)`.
    """
    made = {v.name: v for node in graph.graph for v in node.outputs}
    names = _names(fixed, made.keys())
    wanted = sorted(set(names.values()))
    grids = {name: _grid_of_file(made[name], fixed.activations[name]) for name in wanted}
    plain = Session(write_graph(graph))
    watching = _watching(graph, [made[_codes(name)] for name in wanted])
    order = [site.id for site in fixed.catalog.sites if site.id in names]
    run = _Run(fixed, names, {site: SiteDifference(site=site) for site in order})
    count, logits, given, watched = 0, 0.0, 0.0, 0.0
    for batch in _chunks(images):
        theirs, *codes = watching.run(batch.numpy())
        run.values = {
            name: dequantize(torch.from_numpy(found.astype("int32")), grids[name])
            for name, found in zip(wanted, codes, strict=True)
        }
        file = torch.from_numpy(theirs)
        logits = max(logits, float((run.logits(batch, run.freely) - file).abs().max()))
        given = max(given, float((run.logits(batch, run.given) - file).abs().max()))
        watched = max(watched, float(abs(plain.logits(batch.numpy()) - theirs).max()))
        count += len(batch)
    rows = tuple(run.rows[site] for site in order)
    return SiteParity(images=count, sites=rows, logits=logits, given=given, watched=watched)


def _chunks(images: Iterable[Tensor]) -> Iterator[Tensor]:
    for batch in images:
        yield from torch.split(batch, _AT_ONCE)


def _codes(site: str) -> str:
    return f"{site}.codes"


def _names(fixed: FixedModel, made: Iterable[str]) -> dict[str, str]:
    """Site -> site that names its codes; sites of one tensor and one range share theirs."""
    there = set(made)
    tensors = {site.id: site.tensor for site in fixed.catalog.sites}
    named = [site for site in fixed.activations if _codes(site) in there]
    found: dict[str, str] = {}
    for site, grid in fixed.activations.items():
        same = (
            other
            for other in named
            if tensors[other] == tensors[site] and _equal(fixed.activations[other], grid)
        )
        name = site if site in named else next(same, None)
        if name is not None:
            found[site] = name
    return found


def _grid_of_file(value: Any, like: Grid) -> Grid:
    """The grid of a site as the file has it, in the shape that torch's has.

    Args:
        value: The dequantized tensor in the graph.
        like: Torch's grid.
    """
    import onnx_ir as ir

    def read(tensor: Any) -> Tensor:
        found = ir.convenience.get_const_tensor(tensor)
        assert found is not None, tensor
        array = found.numpy()
        return torch.from_numpy(array.astype("float32")).reshape(like.scale.shape)

    node, shift = value.producer(), None
    if node.op_type == "Add":  # of a shifted grid
        shift = read(node.inputs[1])
        node = node.inputs[0].producer()
    return Grid(like.format, read(node.inputs[1]), read(node.inputs[2]), shift)


def _equal(a: Grid, b: Grid) -> bool:
    if a.format != b.format or (a.shift is None) != (b.shift is None):
        return False
    pairs = [(a.scale, b.scale), (a.zero_point, b.zero_point)]
    if a.shift is not None and b.shift is not None:
        pairs.append((a.shift, b.shift))
    return all(torch.equal(x, y) for x, y in pairs)


def _watching(graph: Any, values: Sequence[Any]) -> Session:
    """A session that gives the codes as well: integers, so that onnxruntime's kernels stay."""
    kept = list(graph.graph.outputs)
    try:
        graph.graph.outputs.extend(values)
        return Session(write_graph(graph), [OUTPUT, *(value.name for value in values)])
    finally:
        del graph.graph.outputs[len(kept) :]


def main() -> None:
    """Print the sum, and the sites at which codes arise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--prefer", choices=["size", "speed"], default="size")
    args = parser.parse_args()
    source = source_of_run(RunFolder.open(args.run), model=args.model, plan=args.plan)
    stored = stored_types(source.fixed, DEFAULT_OPSET, fallback=False, prefer=Prefer(args.prefer))
    batches = [images for images, _ in source.batches(args.images, _AT_ONCE)]
    graph = quantized_graph(source.fixed, batches[0][:1], stored, DEFAULT_OPSET)
    found = compare_sites(source.fixed, graph, batches)
    print(f"freely, logits differ by at most {found.logits:.4g}; {found.summary}")
    print(f"reading the codes changes logits by {found.watched:.4g}")
    for site in found.sites:
        if site.differing:
            print(
                f"{site.site}: {site.differing} of {site.values}, {site.steps:.3g} steps, ", end=""
            )
            print(f"{site.tie:.2g} from the middle; {site.freely} in two free runs")


if __name__ == "__main__":
    main()
