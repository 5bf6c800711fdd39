"""The paper's experiments on ImageNet, for those who have it: exact commands, and a way to run one.

    python examples/imagenet_qat.py                                    # prints all commands
    python examples/imagenet_qat.py --run deit_t 4 --train imagenet/train --val imagenet/val

Every experiment is two commands: `vitsense distill` stores a teacher's answers once, `vitsense qat`
trains with four stored crops of an image per step. Start the second one with ``torchrun`` on a
machine with several GPUs. ``EXPECTED`` are the numbers the authors report, not ours: nobody has run
these commands to the end with vitsense yet.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

EXPECTED = {
    ("deit_t", 4): 74.71,
    ("deit_t", 3): 71.22,
    ("deit_t", 2): 59.73,
    ("swin_t", 4): 82.42,
    ("swin_t", 3): 81.37,
    ("swin_t", 2): 77.66,
}
"""Top-1 on the ImageNet validation images, percent.

Source: README of the published code of Huang et al. 2024 (arXiv 2307.00331), whose full-precision
models have 73.75 % (DeiT-T, better than the official one) and 81.0 % (Swin-T), and whose teacher is
an EfficientNet-L2. First and last layers have 8 bits; some numbers are the best of all evaluations.
"""

TEACHER = "tf_efficientnet_l2.ns_jft_in1k_475"
CROPS = 500  # stored for each image: 19 GB of labels for ImageNet at 29 bytes a crop
EPOCHS, BATCH, CROPS_PER_STEP = 150, 512, 4


def commands(
    model: str, bits: int, train: str, val: str, out: Path, extra: list[str] | None = None
) -> list[list[str]]:
    """The two commands of one experiment; ``extra`` is added to the second."""
    bank = str(out / "labels.bank")
    distill = ["vitsense", "distill", "--teacher", TEACHER, "--data", train, "--out", bank]
    distill += ["--crops", str(CROPS), "--top", "5"]
    qat = ["vitsense", "qat", "--model", model, "--bits", str(bits), "--recipe", "vvtq"]
    qat += ["--data", train, "--eval-data", val, "--eval-images", "50000", "--labels", bank]
    qat += ["--epochs", str(EPOCHS), "--batch-size", str(BATCH), "--crops", str(CROPS_PER_STEP)]
    qat += ["--out", str(out / f"{model}-w{bits}a{bits}"), "--workers", "8"]
    return [distill, [*qat, *(extra or [])]]


def main() -> None:
    options = parse()
    if options.run is None:
        for (model, bits), top1 in EXPECTED.items():
            print(f"# {model} W{bits}A{bits}: the authors report {top1} %")
            for command in commands(model, bits, options.train, options.val, options.out):
                print(shlex.join(command))
        return
    model, bits = options.run[0], int(options.run[1])
    for command in commands(model, bits, options.train, options.val, options.out):
        subprocess.run([sys.executable, "-m", *command], check=True)  # noqa: S603  our own words


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", nargs=2, metavar=("MODEL", "BITS"))
    parser.add_argument("--train", default="imagenet/train")
    parser.add_argument("--val", default="imagenet/val")
    parser.add_argument("--out", type=Path, default=Path("vitsense-imagenet"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
