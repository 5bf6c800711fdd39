"""What modes fast and hessian cost and how well they rank modules, against the measured divergence.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/fast_cost.py zoo/glyph_swin zoo/glyph_resnet
    OMP_WAIT_POLICY=PASSIVE python benchmarks/fast_cost.py deit_t --checkpoint FILE --data FOLDER
    OMP_WAIT_POLICY=PASSIVE python benchmarks/fast_cost.py swin_t --weights random --modelopt

Printed for each model: the cost of one estimate of all modules at all widths, in F (a plain forward
of the same images), and the rank correlation (Spearman, 95 % interval of Bonett and Wright) of the
estimates with the measured divergence, for each width; with --seeds the means over other draws and
vectors, and the lowest and highest. Costs are process CPU time, which other
programs disturb least, between two plain passes; grids are made before. The cost of mode fast is
that of many images, of which a fifth is drawn; its ranks are of the 200 draws that a run of 1,000
images makes. Estimates of narrow formats are checked by a measurement on a few images,
which costs the same whatever the number of images: it counts as for 1,000. The row without checks
is of the same estimates before. The half-split column is the rank correlation of the measured
divergence of one half of the images with the other's: no estimate can be expected to rank better.
With --vectors the first-order estimate without the noise of random vectors is beside them.

With --modelopt, NVIDIA ModelOpt's gradient and kl_div methods (8 and 4 bits) see the first images
between the same plain passes; their scores and ours are compared on the modules that both have.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import peer_modelopt
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from vitsense.data import Draw, draw_images, open_source
from vitsense.discover import find_sites
from vitsense.models import load_model
from vitsense.provenance import versions
from vitsense.sensitivity.checked import (
    Checks,
    Found,
    combined,
    images_to_check,
    measure_checks,
    narrow_cells,
    passes_of_an_image,
    said_of,
)
from vitsense.sensitivity.doubt import doubts
from vitsense.sensitivity.draws import Draws, drawn
from vitsense.sensitivity.estimate import Estimated
from vitsense.sensitivity.fisher import estimate_fisher
from vitsense.sensitivity.hessian import IMAGES_OF_A_PROBE, estimate_hessian
from vitsense.sensitivity.ledger import Ledger, Span
from vitsense.sensitivity.meter import Batch
from vitsense.sensitivity.predictors import rank_correlation
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Cell
from vitsense.sensitivity.sweep import measure_exact
from vitsense.settings import ModelRequest, Part, QuantSettings, WeightSource
from vitsense.sites import SiteCatalog
from vitsense.statistics.collect import collect_statistics

CPU = torch.device("cpu")
MANY = 1000
"""Images of a run whose draws and costs are meant."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--weights", choices=["hub", "random"], default="hub")
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--every", type=int, default=1, help="measure every n-th module")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 4, 3, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1, help="estimates to rank, of other draws")
    parser.add_argument("--measured", type=Path, help="keep measured divergences there")
    parser.add_argument("--vectors", type=int, default=0, help="see every image with so many")
    parser.add_argument("--hessian", action="store_true", help="mode hessian as well")
    parser.add_argument("--modelopt", action="store_true", help="ModelOpt's two methods as well")
    parser.add_argument("--peer-images", type=int, default=8, help="images of ModelOpt")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = versions()
    print(
        f"# {platform.machine()}, {os.cpu_count()} processors, {options.threads} thread(s), torch "
        f"{found['torch']}, timm {found['timm']}, {options.images} images, batch {options.batch}, "
        f"bits {options.bits}, every {options.every}. module measured"
    )
    if options.modelopt:
        print(f"# nvidia-modelopt {peer_modelopt.version()}, {options.peer_images} images")
    print("| model | estimate | cost (F) | bits | modules | Spearman | 95 % | seeds | half split |")
    print("|---|---|--:|--:|--:|--:|---|---|--:|")
    for name in options.models:
        rows(name, options)


class Bench:
    """One model with its grids and images."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        weights = WeightSource(options.weights)
        request = ModelRequest(name=name, checkpoint=options.checkpoint, weights=weights)
        loaded = load_model(request, CPU)
        self.model, shape = loaded.module, loaded.preprocessing
        source = open_source(options.data, at_most=options.images + 64)
        calibration, evaluation = draw_images(
            source, Draw(evaluation=options.images, calibration=64, seed=0)
        )
        batches = [batch for batch, _ in calibration.batches(shape, options.batch, CPU)]
        self.catalog = find_sites(self.model, batches[0][:1])
        table = collect_statistics(self.model, self.catalog, batches)
        self.quantizers = Quantizers(self.catalog, table, QuantSettings(), "cpu")
        self.bits, self.size, self.count = options.bits, options.batch, options.images
        whole = list(evaluation.batches(shape, options.batch, CPU))
        self.images = torch.cat([images for images, _ in whole])
        labels = torch.cat([labels for _, labels in whole])
        fits = int(labels.max()) < loaded.num_classes
        self.labels = labels if fits else torch.full_like(labels, -1)
        self.untouched = copy.deepcopy(self.model)
        self.fast(Draws.every(2))  # makes the grids

    def read(self, numbers: Sequence[int]) -> Batch:
        """Images and labels by number."""
        return self.images[list(numbers)], self.labels[list(numbers)]

    def batches(self) -> list[Batch]:
        """All images."""
        spans = Span(0, self.count).steps(self.size)
        return [self.read(range(span.start, span.stop)) for span in spans]

    def plain(self, count: int) -> float:
        """CPU seconds of a forward pass of the first images."""
        spans = Span(0, count).steps(self.size)

        def work() -> None:
            with torch.no_grad():
                for span in spans:
                    self.untouched(self.images[span.start : span.stop])

        return cpu(work)

    def fast(self, draws: Draws, seed: int = 0) -> list[Estimated]:
        """Estimates of mode fast from some draws."""
        return estimate_fisher(
            self.model,
            self.catalog,
            self.quantizers,
            self.read,
            draws,
            bits=self.bits,
            largest=self.size,
            seed=seed,
        )

    def checks(self, doubt: NDArray[np.float64], seed: int = 0) -> Found:
        """Narrow formats on a few images."""
        cells = narrow_cells(self.catalog, self.bits, [Part.BOTH])
        count = images_to_check(passes_of_an_image(self.catalog, cells), self.count)
        if not count:
            return {}
        draws = Draws.by_doubt(doubt, seed, count=count)
        few = Checks(cells=cells, draws=draws, read=self.read, largest=self.size)
        return measure_checks(self.model, self.catalog, self.quantizers, few)

    def doubt(self) -> NDArray[np.float64]:
        """Nats to flip, from a plain pass."""
        return doubts(self.model, self.read, self.count, largest=self.size).nats

    def hessian(self) -> list[Estimated]:
        """Estimates of mode hessian."""
        return estimate_hessian(
            self.model,
            self.catalog,
            self.quantizers,
            Span(0, self.count).steps(IMAGES_OF_A_PROBE),
            self.read,
            bits=self.bits,
        )


def timed(bench: Bench, count: int, work: Callable[[], object], repeats: int = 1) -> float:
    """Cost in plain passes of ``count`` images, the median of some repetitions."""
    found = []
    for _ in range(repeats):
        before = bench.plain(count)
        ours = cpu(work)
        found.append(2 * ours / (before + bench.plain(count)))
    return statistics.median(found)


def rows(name: str, options: argparse.Namespace) -> None:
    bench = Bench(name, options)
    scores: dict[str, tuple[float, list[Scores]]] = {}

    def fast() -> None:
        bench.fast(Draws.by_doubt(bench.doubt(), 0, least=2))

    cost = timed(bench, bench.count, fast, repeats=3)
    doubt = bench.doubt()
    checking = timed(bench, bench.count, lambda: bench.checks(doubt), repeats=3)
    estimates = [
        bench.fast(Draws.by_doubt(doubt, n, count=drawn(MANY)), n) for n in range(options.seeds)
    ]
    both = [combined(one, bench.checks(doubt, n)) for n, one in enumerate(estimates)]
    whole = cost + checking * bench.count / MANY
    scores["fast"] = whole, [_scores(one) for one in both]
    scores["fast without checks"] = cost, [_scores(one) for one in estimates]
    if text := said_of(both[0]):
        print(f"# {name}: {text}", flush=True)
    if options.vectors:
        every = [_scores(bench.fast(Draws.every(bench.count), n)) for n in range(options.vectors)]
        table = {key: statistics.mean(one[key] for one in every) for key in every[0]}
        scores[f"first order, {options.vectors} vectors an image"] = float("nan"), [table]
    if options.hessian:
        kept: list[Estimated] = []
        cost = timed(bench, bench.count, lambda: kept.extend(bench.hessian()))
        scores["hessian"] = cost, [_scores(kept)]
    if options.modelopt:
        scores |= modelopt(bench, options)
    some = SiteCatalog(modules=bench.catalog.modules[:: options.every])
    measured = measured_or_kept(bench, some, options.measured)
    for method, (cost, tables) in scores.items():
        for width in options.bits:
            _row(f"{name} | {method} | {cost:.2f}", width, tables, measured)
    if options.modelopt:  # the same modules for all
        shared = set.intersection(*(set(some[0]) for _, some in scores.values()))
        table = {key: value for key, value in scores["fast"][1][0].items() if key in shared}
        for width in (8, 4):
            _row(f"{name} | fast, modules of both | ", width, [table], measured)


Scores = dict[tuple[str, int], float]


def _scores(found: list[Estimated]) -> Scores:
    return {(e.cell.module, e.cell.bits): e.estimate.kl_nats.value for e in found if e.estimate}


def modelopt(bench: Bench, options: argparse.Namespace) -> dict[str, tuple[float, list[Scores]]]:
    count = options.peer_images
    images, labels = bench.read(range(count))
    if (labels < 0).any():
        with torch.no_grad():
            labels = bench.untouched(images).argmax(dim=1)
    found = {}
    for method in peer_modelopt.METHODS:
        before = bench.plain(count)
        seconds, table = peer_modelopt.scores(bench.untouched, [(images, labels)], method)
        found[f"modelopt {method}"] = 2 * seconds / (before + bench.plain(count)), [table]
        # a row of the table needs five modules that were measured
        print(f"# modelopt {method} costs {found[f'modelopt {method}'][0]:.2f} F", flush=True)
    return found


def _row(head: str, bits: int, tables: Sequence[Scores], measured: list[dict[Cell, float]]) -> None:
    cells = [c for c in measured[0] if c.bits == bits and (c.module, bits) in tables[0]]
    if len(cells) < 5:
        return
    whole = [sum(half[cell] for half in measured) for cell in cells]
    found = [rank_correlation([t[c.module, bits] for c in cells], whole)[:3] for t in tables]
    r, low, high = (statistics.mean(some) for some in zip(*found, strict=True))
    ends = f"{min(found)[0]:.3f} to {max(found)[0]:.3f}" if len(found) > 1 else ""
    split = spearmanr(*[[half[cell] for cell in cells] for half in measured]).statistic
    print(
        f"| {head} | {bits} | {len(cells)} | {r:.3f} | {low:.3f} to {high:.3f} | {ends} "
        f"| {split:.3f} |",
        flush=True,
    )


def measured_or_kept(
    bench: Bench, catalog: SiteCatalog, path: Path | None
) -> list[dict[Cell, float]]:
    """Measured divergence, from a file where it is there."""
    if path is not None and path.exists():
        return [
            {Cell.of(module, bits, Part.BOTH): kl for module, bits, kl in half}
            for half in json.loads(path.read_text())
        ]
    found = measure(bench, catalog)
    if path is not None:
        plain = [[[c.module, c.bits, kl] for c, kl in half.items()] for half in found]
        path.write_text(json.dumps(plain))
    return found


def measure(bench: Bench, catalog: SiteCatalog) -> list[dict[Cell, float]]:
    """Measured divergence of every cell on each half of the batches."""
    images = bench.batches()
    middle = max(1, len(images) // 2)
    found = []
    for half in (images[:middle], images[middle:]):
        if half:
            cells = measure_exact(
                bench.model, catalog, bench.quantizers, half, bits=bench.bits, ledger=Ledger()
            )
            found.append({m.cell: m.outcome.kl for m in cells if m.outcome})
    return found if len(found) == 2 else found * 2


def cpu(work: Callable[[], object]) -> float:
    """Process CPU seconds of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
