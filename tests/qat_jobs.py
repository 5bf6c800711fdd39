"""Small trainings for the tests: a plan, a request, and what they need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitsense.discover import find_sites
from vitsense.models import LoadedModel, load_model
from vitsense.plan.plan import ModulePlan, Plan
from vitsense.qat.recipes import Recipe, load_recipe
from vitsense.qat.request import QatRequest
from vitsense.settings import ModelRequest
from vitsense.trainings import TrainingFolder

CPU = torch.device("cpu")
RESNET = ModelRequest(name="zoo/glyph_resnet")


def plan_of(model: LoadedModel, bits: int = 4) -> Plan:
    """Equal bits everywhere."""
    catalog = find_sites(model.module, torch.zeros(1, *model.preprocessing.input_size))
    about = {"key": model.key, "weights_digest": model.digest, "sites_digest": catalog.digest}
    modules = tuple(ModulePlan(name=m.name, bits=bits, role=m.role.value) for m in catalog)
    return Plan(modules=modules, model=about, budget=f"uniform-{bits}")


def recipe(**changes: Any) -> Recipe:
    """A few steps of 8 crops."""
    small = {"epochs": 1.5, "batch": 8, "crops": 2, "calibration": 8, "evaluate": 0.5, "lr": 1e-3}
    return replace(load_recipe("demo"), **small | {"warmup": 0.0} | changes)


def request(plan: Plan, model: ModelRequest = RESNET, **changes: Any) -> QatRequest:
    """Training on 32 characters, evaluated on 36."""
    about: dict[str, Any] = {"images": 32, "eval_images": 36, "eval_calibration": 8}
    about |= {"recipe": recipe(), "checkpoint_steps": 2} | changes
    return QatRequest(plan=plan, model=model, **about)


def resnet_plan(bits: int = 4) -> Plan:
    """A plan of the shipped ResNet."""
    return plan_of(load_model(RESNET, CPU), bits)


def folder(path: Path, name: str = "t") -> TrainingFolder:
    """A new training folder."""
    return TrainingFolder.at(path / name)
