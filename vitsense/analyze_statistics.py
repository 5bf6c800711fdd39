"""The statistics of one model of a run: kept while they are made, and made from where they were."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitsense import provenance
from vitsense.data import ImageSet
from vitsense.deadline import Deadline
from vitsense.errors import StaleResultError, UserInputError
from vitsense.models import LoadedModel
from vitsense.progress import Progress
from vitsense.runfolder import RunFolder
from vitsense.sites import SiteCatalog
from vitsense.statistics.collect import Collection, SiteStatistics
from vitsense.team import Team

_KEPT_EVERY = 20.0
"""Seconds of work that a killed process may lose."""

_ABOUT = "about"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibrated:
    """What calibration images said, all of them or those that there was time for."""

    statistics: dict[str, SiteStatistics]
    images: int
    whole: bool
    """Whether they are of all calibration images; else nothing that rests on them is kept."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibrating:
    """What the stage needs."""

    run: RunFolder
    model: LoadedModel
    catalog: SiteCatalog
    calibration: ImageSet
    batch: int
    device: torch.device
    deadline: Deadline
    team: Team
    progress: Progress

    @property
    def about(self) -> dict[str, str]:
        """What kept sums must have been made from to be used."""
        return {
            "model": self.model.key,
            "weights": self.model.digest,
            "calibration images": self.calibration.digest,
            "sites": self.catalog.digest,
            "vitsense version": provenance.versions()["vitsense"],
        }


def calibrate(stage: Calibrating) -> Calibrated:
    """Statistics of every site; what the run has kept of them is not computed again.

    Every process of a team computes them alike, and they end at the same image. One batch is
    looked at whatever the deadline.

    Raises:
        MeasurementError: see `vitsense.statistics.collect.Collection.finish`.
        StaleResultError: what is kept was made from something else.
        UserInputError: the file is damaged.
    """
    images, timed = len(stage.calibration), stage.deadline.at is not None
    collection = Collection(stage.catalog)
    known = _kept(stage)
    if known:
        collection.restore(known, stage.device)
    stage.progress.start(images, f"{stage.model.key} statistics")
    stage.progress.advance(collection.images)
    before, last, fresh = collection.images, time.monotonic(), False
    with collection.adding(stage.model.module) as add:
        while collection.images < images:
            if timed and collection.images > before and stage.team.any(stage.deadline.passed):
                stage.deadline.came = True
                break
            end = min(collection.images + stage.batch, images)
            places = range(collection.images, end)
            add(stage.calibration.read(stage.model.preprocessing, places, stage.device)[0])
            stage.progress.advance(len(places))
            fresh = True
            if time.monotonic() - last > _KEPT_EVERY and end < images:
                _keep(stage, collection)
                last, fresh = time.monotonic(), False
    if fresh:
        _keep(stage, collection)
    return Calibrated(
        statistics=collection.finish(),
        images=collection.images,
        whole=collection.images == images,
    )


def _keep(stage: Calibrating, collection: Collection) -> None:
    if stage.team.first:
        about = np.array(json.dumps(stage.about))
        arrays = {_ABOUT: about, **collection.arrays()}
        stage.run.write_arrays(stage.run.statistics_name(stage.model.key), arrays)


def _kept(stage: Calibrating) -> Mapping[str, NDArray[Any]]:
    """What the run has; nothing where not all processes see the same."""
    name = stage.run.statistics_name(stage.model.key)
    arrays = dict(stage.run.arrays(name))
    if arrays:
        _refuse_stale(stage, name, arrays)
    seen = provenance.digest([key.encode() + arrays[key].tobytes() for key in sorted(arrays)])
    return arrays if len(set(stage.team.gather(seen))) == 1 else {}


def _refuse_stale(stage: Calibrating, name: str, arrays: dict[str, NDArray[Any]]) -> None:
    path = stage.run.path / f"{name}.npz"
    try:
        about = dict(json.loads(str(arrays.pop(_ABOUT))))
        int(arrays["images"])
    except (KeyError, ValueError, TypeError) as error:
        raise UserInputError(f"{path} is damaged; move it away to measure again.") from error
    differing = [key for key, value in stage.about.items() if about.get(key) != value]
    if differing:
        raise StaleResultError(
            f"{path} holds statistics of another run; different are: {', '.join(differing)}. "
            "Use another --out, or move the file away."
        )
