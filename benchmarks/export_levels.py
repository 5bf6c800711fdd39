"""Does onnxruntime's graph optimization, or a translation, change what an exported file computes?

    python benchmarks/export_levels.py FILE.onnx --source RUN [--model KEY] --images 64

Runs the file at every optimization level on held-back images and compares the logits with torch,
with torch in double precision, and with each other. For `benchmarks/results/export.md`.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from vitsense.export.fixed import FixedModel
from vitsense.export.session import EXACT
from vitsense.export.source import source_of_run
from vitsense.runfolder import RunFolder

LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")


def main() -> None:
    """Print a row for each level."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--images", type=int, default=64)
    args = parser.parse_args()
    source = source_of_run(RunFolder.open(args.source), model=args.model)
    fixed = source.fixed
    batches = [images for images, _ in source.batches(args.images, 4)]
    wide = FixedModel(
        copy.deepcopy(fixed.model).double(), fixed.catalog, fixed.weights, fixed.activations
    )
    found = {}
    with torch.no_grad():
        found["torch"] = np.concatenate([fixed(x).numpy() for x in batches])
        found["torch, double"] = np.concatenate([wide(x.double()).float().numpy() for x in batches])
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, f"ORT_{level}"
        )
        for key, value in EXACT.items():
            options.add_session_config_entry(key, value)
        session = onnxruntime.InferenceSession(
            args.file.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
        found[level] = np.concatenate(
            [session.run(None, {"images": x.numpy()})[0] for x in batches]
        )
    step = np.ptp(found["torch"]) / 255
    names = list(found)
    print(f"{len(found['torch'])} images, one step {step:.4f}; same class, largest difference")
    for a in names[1:]:
        cells = []
        for b in names[: names.index(a)]:
            same = int((found[a].argmax(1) == found[b].argmax(1)).sum())
            largest = np.abs(found[a] - found[b]).max()
            cells.append(f"{b}: {same}, {largest:.3g}")
        print(f"{a}  against  {'; '.join(cells)}")


if __name__ == "__main__":
    main()
