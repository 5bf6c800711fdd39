"""What statistics cost: a pass with them over the plain pass, in process CPU time.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/statistics_cost.py deit_tiny_patch16_224 --threads 1

Plain and measured passes alternate over the same images. Printed are the median of the pairs'
ratios and the ratio of the shortest of each (other programs on the machine lengthen both kinds).
`OMP_WAIT_POLICY=PASSIVE` keeps waiting threads from being counted as work. Weights are random:
costs only, the statistics themselves mean nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import scipy.stats
import timm
import torch
from torch import Tensor, nn

from vitsense.discover import find_sites
from vitsense.observe import observing
from vitsense.provenance import versions
from vitsense.sites import Kind, SiteCatalog, SiteRole
from vitsense.statistics.collect import collect_statistics

Batches = tuple[Tensor, ...]


def main() -> None:
    """Print one line per variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="deit_tiny_patch16_224", help="a timm name")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--naive-images", type=int, default=16, help="0 leaves the comparison out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
        print("note: set OMP_WAIT_POLICY=PASSIVE, or waiting threads count as work")
    torch.manual_seed(0)
    model = timm.create_model(options.model, pretrained=False).eval()
    size = model.default_cfg["input_size"]
    images = torch.randn(options.images, *size)
    catalog = find_sites(model, images[:1])
    batches = images.split(options.batch)
    variants = {
        "inputs of linear and conv": inputs_only(catalog),
        "all sites (attention operands and weights too)": catalog,
    }
    found = versions()
    print(
        f"# {options.model}, {options.images} images, batch {options.batch}, {len(catalog)} "
        f"modules, {options.pairs} pairs, {options.threads} thread(s); {platform.machine()}, "
        f"{os.cpu_count()} processors, torch {found['torch']}, timm {found['timm']}\n"
    )
    print("| variant | ratio, median | range | least / least | plain, CPU-s | peak MiB |")
    print("|---|--:|--:|--:|--:|--:|")
    for label, sites in variants.items():
        compare(label, model, batches, options.pairs, lambda m, b, s=sites: streamed(m, s, b))
    if options.naive_images:
        few = images[: options.naive_images].split(options.batch)
        sites = variants["inputs of linear and conv"]
        label = f"naive concatenation of inputs, {options.naive_images} images"
        compare(label, model, few, min(options.pairs, 3), lambda m, b: naive(m, sites, b))


def inputs_only(catalog: SiteCatalog) -> SiteCatalog:
    """The inputs of linear and convolution layers, as the plain streaming version measured."""
    return SiteCatalog(
        modules=tuple(
            replace(m, sites=tuple(s for s in m.sites if s.role is SiteRole.INPUT))
            for m in catalog
            if m.kind is not Kind.PRODUCT
        )
    )


def compare(
    label: str,
    model: nn.Module,
    batches: Batches,
    pairs: int,
    measured: Callable[[nn.Module, Batches], object],
) -> None:
    """Alternate the plain and the measured pass, once to warm up; print the row of the table."""
    before = peak_mib()
    times = []
    for number in range(pairs + 1):
        pair = (
            cpu_seconds(lambda: plain(model, batches)),
            cpu_seconds(lambda: measured(model, batches)),
        )
        times += [pair] if number else []
    ratios = [second / first for first, second in times]
    least_plain, least_measured = (min(column) for column in zip(*times, strict=True))
    print(
        f"| {label} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} | "
        f"{least_measured / least_plain:.2f} | {least_plain:.2f} | +{peak_mib() - before} |",
        flush=True,
    )


def plain(model: nn.Module, batches: Batches) -> None:
    with torch.no_grad():
        for images in batches:
            model(images)


def streamed(model: nn.Module, catalog: SiteCatalog, batches: Batches) -> object:
    return collect_statistics(model, catalog, batches)


def naive(model: nn.Module, catalog: SiteCatalog, batches: Batches) -> object:
    """Keep everything, concatenate, let numpy and scipy do it."""
    kept: dict[str, list[Tensor]] = defaultdict(list)

    def keeping(key: str) -> Callable[[Tensor], None]:
        return lambda x: kept[key].append(x.clone())

    tensors = {site.tensor: site.id for site in reversed(catalog.sites)}
    with observing(model, catalog, {key: keeping(key) for key in tensors.values()}):
        plain(model, batches)
    found = {}
    for key, parts in kept.items():
        x = torch.cat(parts).numpy()
        mean, std = x.mean(), x.std()
        found[key] = (std**2, scipy.stats.kurtosis(x, axis=None), (abs(x - mean) > 6 * std).mean())
    return found


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
