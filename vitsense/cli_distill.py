"""``vitsense distill``: a teacher's answers, stored once and read in every training."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitsense.cli_output import (
    debug_option,
    emit,
    emit_json,
    json_option,
    present,
    progress_options,
    session,
)
from vitsense.decimals import counted
from vitsense.errors import UserInputError
from vitsense.progress import ProgressStyle, make_progress
from vitsense.settings import ModelRequest, WeightSource

if TYPE_CHECKING:
    from vitsense.data import ImageSource


@click.command(
    short_help="Store a teacher's answers for many crops of every image.",
    context_settings={"show_default": True},
)
@click.option("--teacher", required=True, metavar="NAME", help="Model, as of vitsense analyze.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights of the teacher.")
@click.option("--weights", type=click.Choice(["hub", "random"]), help="Without --checkpoint.")
@click.option("--data", metavar="SPEC", help="Training images. Default: generated characters.")
@click.option("--images", type=int, help="How many characters, or of a stream how many images.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The bank, one file per shard."
)
@click.option("--crops", type=int, default=100, help="Crops of each image.")
@click.option("--top", type=int, default=5, help="Classes kept of each crop.")
@click.option("--crop-scale", metavar="LOW,HIGH", help="Share of the area. Default: as training.")
@click.option("--flip", type=float, help="Probability of mirroring. Default: as training.")
@click.option("--shard", metavar="I/N", help="Write part I of N. Default: torchrun's rank.")
@click.option("--batch-size", type=int, default=64, help="Crops at once.")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
@click.option("--seed", type=int, default=0, help="Decides the crops.")
@progress_options
@json_option
@debug_option
def distill(
    *,
    teacher: str,
    checkpoint: Path | None,
    weights: str | None,
    data: str | None,
    images: int | None,
    out: Path,
    crops: int,
    top: int,
    crop_scale: str | None,
    flip: float | None,
    shard: str | None,
    batch_size: int,
    device: str,
    seed: int,
    progress_style: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run the teacher once over random crops of every image, for vitsense qat --labels.

    About 29 bytes per crop at --top 5. The same command continues an interrupted bank. Under
    torchrun, or with --shard, every process writes its own file; --labels takes the common name.
    """
    present(data)
    from vitsense.analyze import pick_device
    from vitsense.models import load_model
    from vitsense.qat.bank_file import record_type
    from vitsense.qat.distill import DistillSettings, shard_of_environment
    from vitsense.qat.distill import distill as write_bank
    from vitsense.qat.policy import resolved_policy
    from vitsense.qat.training_images import training_source

    source = training_source(data, images)
    settings = DistillSettings(
        crops=crops,
        top=top,
        policy=resolved_policy(_pair(crop_scale), flip, source.kind),
        seed=seed,
        batch=batch_size,
        shard=shard_of_environment() if shard is None else _shard(shard),
    )
    chosen = pick_device(device)
    source_of = WeightSource.HUB if weights is None else WeightSource(weights)
    model = load_model(ModelRequest(name=teacher, checkpoint=checkpoint, weights=source_of), chosen)
    progress = make_progress(ProgressStyle.NONE if quiet else ProgressStyle(progress_style))
    session().resumable = True
    kept = min(top, model.num_classes)
    if kept < top:
        progress.note(f"{model.key} has {kept} classes; all of them are kept, not {top}.")
    try:
        path = write_bank(model, source, out, settings, chosen, progress)
    finally:
        progress.close()
    size = record_type(kept).itemsize
    if as_json:
        emit_json("complete", {"path": str(path), "images": len(source), "crops": crops})
        return
    emit(f"Labels: {path}")
    stored = f"{counted(len(source), 'image')}, {counted(crops, 'crop')} of each"
    emit(f"  {stored}, {size} bytes a crop, teacher {model.key}")
    emit(f"\nNext:\n  {_next(out, data, images, source)}")


def _next(out: Path, data: str | None, images: int | None, source: ImageSource) -> str:
    """The command that trains by the bank, on the images that it was made for."""
    words = ["--labels", str(out)]
    if data is not None:
        words += ["--data", data]
    if images is not None and images == len(source):  # a folder is always read whole
        words += ["--images", str(images)]
    return f"vitsense qat --plan PLAN {shlex.join(words)}"


def _pair(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserInputError(
            f"--crop-scale is {text!r}: write two numbers with a comma, for example 0.08,1."
        ) from error
    return (low, high)


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise UserInputError(f"--shard is {text!r}: write I/N, for example 0/4.")
    return int(number), int(count)
