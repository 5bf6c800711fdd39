"""A model that was trained under quantization, as what exports start from: on its trained grids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitsense.discover import find_sites
from vitsense.errors import InputMissingError, SiteMismatchError, StaleResultError, UserInputError
from vitsense.export.fixed import FixedModel, FixedWeight, weight_tensors
from vitsense.export.source import ExportSource, about_of, drawn_again
from vitsense.models import load_model
from vitsense.numerics.grid import Grid
from vitsense.plan.plan import Plan
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.qat.prepare import QuantizedModel, convert, part_of, restore_qat, rounded_sites
from vitsense.qat.recipes import recipe_from_json
from vitsense.qat.request import origin_of
from vitsense.qat.steadying import qat_settings
from vitsense.runfolder import RunFolder
from vitsense.settings import ModelRequest, WeightSource
from vitsense.trainings import TrainingFolder

_CPU = torch.device("cpu")
BEST, LAST = "best.safetensors", "last.safetensors"


def training_of(path: Path) -> tuple[TrainingFolder, Path | None] | None:
    """The training that ``path`` means (its folder, or one of its two checkpoints), if any."""
    folder = path if path.is_dir() else path.parent
    if not (folder / "qat.json").is_file():
        return None
    if path.is_dir():
        return TrainingFolder(path), None
    return (TrainingFolder(folder), path) if path.name in (BEST, LAST) else None


def source_of_training(
    folder: TrainingFolder,
    checkpoint: Path | None = None,
    *,
    plan: Path | None = None,
    data: str | None = None,
    progress: Progress = NO_PROGRESS,
) -> ExportSource:
    """Restore a trained model and fix its grids; nothing is calibrated.

    Args:
        folder: A finished training.
        checkpoint: Which weights; None: the best (where weights were rounded after the training of
            activations, the last).
        plan: The plan it was trained for; None: the one in the folder.
        data: Images to compare on; None: those the training was evaluated on.
        progress: Told of what takes long.

    Raises:
        InputMissingError: weights, plan or checkpoint are not there.
        StaleResultError: the training is not complete, or the float weights are others now.
        SiteMismatchError: the plan is another one than was trained for.
        UserInputError: a file is damaged.
    """
    record = folder.read_record()
    if record["status"] != "complete":
        raise StaleResultError(
            f"The training in {folder.path} is {record['status']}; finish it first, with the same "
            "vitsense qat command."
        )
    recipe = recipe_from_json(record["recipe"], str(folder.path))
    run = None if folder.run_path is None else RunFolder.open(folder.run_path)
    chosen = Plan.load(plan or _plan_path(folder, run))
    if chosen.bits != record["plan"]["bits"]:
        raise SiteMismatchError(_other_plan(folder, chosen.bits, record["plan"]["bits"]))
    loaded = load_model(_request(record, chosen, run), _CPU, key=record["model"]["key"])
    if loaded.digest != record["model"]["weights_digest"]:
        raise StaleResultError(
            f"The float weights of {loaded.key} are not those the training began with (digest "
            f"{loaded.digest}, then {record['model']['weights_digest']}): bring the old file back."
        )
    path = checkpoint or _checkpoint(folder, recipe.schedule)
    progress.note(f"{loaded.key}: restoring {path}")
    settings = qat_settings(recipe)
    image = torch.randn(
        1, *loaded.preprocessing.input_size, generator=torch.Generator().manual_seed(0)
    )
    model = restore_qat(loaded.module, chosen, _state(path), settings=settings, image=image)
    _check_widths(model, chosen, path)
    about = about_of(loaded, _drawing(record), record["settings"]["model"])
    said = {
        "name": folder.name,
        "checkpoint": path.name,
        "share_inputs": settings.share_inputs,
        "measured": record["best" if path.name == BEST else "last"],
    }
    return ExportSource(
        key=loaded.key,
        about=about,
        plan=chosen,
        fixed=fixed_of(model, image, said),
        preprocessing=loaded.preprocessing,
        held_back=drawn_again(about, data or record["settings"]["eval_data"]),
        run=run,
    )


def fixed_of(model: QuantizedModel, image: Tensor, said: dict[str, Any]) -> FixedModel:
    """A trained model with its weights as integers; its logits are those of `convert`, bit for bit.

    Args:
        model: Trained.
        image: One image, `(1, 3, H, W)`, to find the sites with.
        said: What its training was; must name ``share_inputs``.
    """
    model = model.eval()
    converted = convert(model)
    plain = converted.float_model().eval()
    catalog = find_sites(plain, image)
    latent = weight_tensors(model.float_model().eval(), catalog, image)
    # the very tensors that are rounded, where the model does not compute them first
    for module, _, weight in model.quantized_weights():
        latent[f"{module.name}:weight"] = weight.detach()
    weights: dict[str, FixedWeight] = {}
    activations: dict[str, Grid] = {}
    for site in (site for module in model.planned for site in module.sites):
        quantizer = model.quantizers.get(site.id)
        if quantizer is None:
            continue  # the plan leaves it in float
        tensor = latent[site.id] if site.is_weight else None
        step, shift = quantizer.fixed_grid(tensor)
        grid = Grid(quantizer.format, step.clone(), torch.zeros_like(step), shift)
        if tensor is None:
            activations[site.id] = grid
        else:
            weights[site.id] = FixedWeight(quantizer.codes(tensor), grid)
    return FixedModel(plain, catalog, weights, activations, trained=said, runner=converted)


def _plan_path(folder: TrainingFolder, run: RunFolder | None) -> Path:
    if folder.plan_path.is_file():
        return folder.plan_path
    if run is None:
        raise InputMissingError(
            f"{folder.path} holds no plan.json: name the plan it was trained for with --plan."
        )
    return run.plan_path(None)


def _other_plan(folder: TrainingFolder, given: dict[str, int], trained: dict[str, int]) -> str:
    names = [n for n in {**given, **trained} if given.get(n) != trained.get(n)]
    first = names[0]
    return (
        f"The training in {folder.path} was for another plan: {len(names)} modules differ, first "
        f"{first} ({trained.get(first, 'no')} bits trained, {given.get(first, 'no')} in this "
        "plan). Name the plan it was trained for with --plan."
    )


def _request(record: dict[str, Any], plan: Plan, run: RunFolder | None) -> ModelRequest:
    origin = record.get("origin")
    if origin is None and run is not None:
        return origin_of(plan, run).model
    if origin is None:
        return ModelRequest(name=record["settings"]["model"])
    checkpoint = origin["checkpoint"]
    return ModelRequest(
        name=origin["name"],
        checkpoint=None if checkpoint is None else Path(checkpoint),
        weights=WeightSource(origin["weights"]),
    )


def _drawing(record: dict[str, Any]) -> dict[str, Any]:
    """How the evaluation images were drawn, as a run's settings say it."""
    settings = record["settings"]
    return {
        "images": settings["eval_images"],
        "calibration": record.get("origin", {}).get("eval_calibration", 128),
        "seed": settings["eval_seed"],
        "data": settings["eval_data"],
    }


def _checkpoint(folder: TrainingFolder, schedule: str) -> Path:
    names = (LAST,) if schedule == "activations_first" else (BEST, LAST)
    found = [folder.path / name for name in names if (folder.path / name).is_file()]
    if not found:
        raise InputMissingError(f"{folder.path} holds no trained weights ({' or '.join(names)}).")
    return found[0]


def _state(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputMissingError(f"There is no file {path}; check its name.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserInputError(
            f"{path} is not a whole safetensors file ({error}); train again."
        ) from error


def _check_widths(model: QuantizedModel, plan: Plan, path: Path) -> None:
    """Activations take their width from the checkpoint, so it is compared with the plan's."""
    planned, part = {entry.name: entry for entry in plan.modules}, part_of(plan)
    for module in model.planned:
        for site, bits in rounded_sites(module, planned[module.name], part):
            found = model.quantizers[site.id].bits
            if found != bits:
                raise SiteMismatchError(
                    f"{path} has {found} bits at {site.id}, the plan {bits}: it belongs to another "
                    "plan; name its own with --plan."
                )
