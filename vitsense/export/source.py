"""What is exported: the models of a run with a plan, or a packed file, with images to check on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vitsense.data import GENERATED, Draw, ImageSet, draw_images, open_source
from vitsense.discover import find_sites
from vitsense.errors import InputMissingError, UserInputError
from vitsense.export.fixed import FixedModel, check_plan_of, fix_model
from vitsense.export.packed import PackedFile, read_packed
from vitsense.export.reopened import reopen
from vitsense.models import LoadedModel, load_model
from vitsense.plan.plan import Plan
from vitsense.preprocessing import Preprocessing
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.runfolder import RunFolder
from vitsense.settings import (
    ModelRequest,
    WeightSource,
)

_CPU = torch.device("cpu")
_BATCH = 16
"""Calibration images at once, where the run does not say."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExportSource:
    """A quantized model with everything that says where it comes from."""

    key: str
    about: Mapping[str, Any]
    """The model and how images are drawn, as a packed file stores it."""
    plan: Plan
    fixed: FixedModel
    preprocessing: Preprocessing
    held_back: ImageSet | None
    """Images that had no part in the calibration; None without data."""
    run: RunFolder | None

    def batches(self, count: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """At most ``count`` held-back images `(B, 3, H, W)` with labels `(B,)`.

        Raises:
            InputMissingError: there is no data.
        """
        if self.held_back is None:
            raise InputMissingError(
                f"{self.key}: there are no images to compare on; name some with --data."
            )
        few = ImageSet(
            source=self.held_back.source,
            numbers=self.held_back.numbers[:count],
            digest=self.held_back.digest,
        )
        return list(few.batches(self.preprocessing, size, _CPU))


def source_of_run(
    run: RunFolder,
    *,
    model: str | None = None,
    plan: Path | None = None,
    fallback: bool = False,
    trial: Callable[[FixedModel], object] | None = None,
    progress: Progress = NO_PROGRESS,
) -> ExportSource:
    """Load a model of a run again, calibrate it as the run did, and fix its grids.

    Args:
        run: A finished run.
        model: Its key; None is the first.
        plan: A plan file; None is the run's own.
        fallback: Leave sites in float whose format has no integer codes.
        trial: Refuses what cannot be exported; called on grids of a single image, because which
            formats a plan has does not depend on the images, and calibration takes minutes.
        progress: Told of what takes long.

    Raises:
        SiteMismatchError: no such model, or the plan is another model's.
        StaleResultError: weights or images are no longer those of the run.
        InputMissingError: weights, images or the plan are not there.
    """
    found = reopen(run, model=model, device=_CPU)
    loaded, key = found.loaded, found.loaded.key
    chosen = Plan.load(plan or run.plan_path(None if found.number == 0 else key))
    size = found.settings["batch"] or found.entry.get("batch") or _BATCH
    calibration = found.calibration
    example = next(calibration.batches(loaded.preprocessing, 1, _CPU))[0]
    catalog = find_sites(loaded.module, example)
    check_plan_of(chosen, loaded.digest, catalog, key)
    if trial is not None:
        trial(fix_model(loaded.module, catalog, chosen, [example], found.quant, fallback=fallback))
    progress.note(f"{key}: calibrating on {len(calibration)} images")
    batches = [images for images, _ in calibration.batches(loaded.preprocessing, size, _CPU)]
    fixed = fix_model(loaded.module, catalog, chosen, batches, found.quant, fallback=fallback)
    return ExportSource(
        key=key,
        about=about_of(loaded, found.settings, found.request.name),
        plan=chosen,
        fixed=fixed,
        preprocessing=loaded.preprocessing,
        held_back=found.evaluation,
        run=run,
    )


def source_of_file(
    path: Path, *, model: str | None = None, data: str | None = None
) -> ExportSource:
    """A packed file as a runnable model.

    Args:
        path: Written by `vitsense.export.packed.save_packed`.
        model: The architecture; needed where it is a factory of the user's own, because code is
            never run because a file names it.
        data: Images to compare on; None where the model reads the generated characters.

    Raises:
        UserInputError: the file is damaged, or does not say which architecture it needs.
        SiteMismatchError: the architecture is another one.
    """
    packed = read_packed(path)
    about = packed.about
    preprocessing = _preprocessing(about["preprocessing"])
    fixed = restored(packed, model)
    return ExportSource(
        key=about["key"],
        about=about,
        plan=packed.plan,
        fixed=fixed,
        preprocessing=preprocessing,
        held_back=drawn_again(about, data),
        run=None,
    )


def restored(packed: PackedFile, model: str | None = None) -> FixedModel:
    """The runnable torch model of a packed file.

    Raises:
        UserInputError: the file needs the user's own architecture and ``model`` is None.
        SiteMismatchError: the architecture is another one.
    """
    about = packed.about
    name = model or about["requested"]
    if about["source"] == "factory" and model is None:
        raise UserInputError(
            f"{packed.path} needs the architecture {name!r}, and code is never run because a file "
            f"names it: pass --model {name} if you trust it."
        )
    empty = load_model(
        ModelRequest(name=name, weights=WeightSource.RANDOM), _CPU, classes=about["num_classes"]
    )
    # any image finds the same sites: names come from the architecture
    image = torch.randn(
        1, *about["preprocessing"]["input_size"], generator=torch.Generator().manual_seed(0)
    )
    return packed.restore(empty.module, find_sites(empty.module, image))


def about_of(loaded: LoadedModel, settings: Mapping[str, Any], requested: str) -> dict[str, Any]:
    """What a packed file says about a model; ``settings`` say how its images were drawn."""
    return {
        "key": loaded.key,
        "requested": requested,
        "name": loaded.resolved.name,
        "source": loaded.resolved.source.value,
        "num_classes": loaded.num_classes,
        "params": loaded.params,
        "weights_digest": loaded.digest,
        "preprocessing": asdict(loaded.preprocessing),
        "draw": {key: settings[key] for key in ("images", "calibration", "seed")},
        "generated_images": settings["data"] is None,
    }


def _preprocessing(stored: Mapping[str, Any]) -> Preprocessing:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    return Preprocessing(**values)


def drawn_again(about: Mapping[str, Any], data: str | None) -> ImageSet | None:
    """The evaluation images of the run that a model comes from, if the same data is at hand."""
    if data is None and not about["generated_images"]:
        return None
    draw = about["draw"]
    source = open_source(data, at_most=draw["images"] + draw["calibration"])
    if source.kind == GENERATED and not about["generated_images"]:
        return None
    wanted = Draw(evaluation=draw["images"], calibration=draw["calibration"], seed=draw["seed"])
    return draw_images(source, wanted)[1]
