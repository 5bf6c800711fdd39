"""A made-up finished training in a run, for tests of what reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitsense.runfolder import RunFolder
from vitsense.trainings import TrainingFolder, training_path


def accuracy(top1: float, drop: float) -> dict[str, Any]:
    """An outcome's row with intervals of two points on both sides."""
    row: dict[str, Any] = {"n": 100, "top1": top1, "top1_low": top1 - 2, "top1_high": top1 + 2}
    row |= {"drop": drop, "drop_low": drop - 2, "drop_high": drop + 2, "kl": 0.1}
    return row | {"agreement": top1, "agreement_low": top1 - 2, "agreement_high": top1 + 2}


def add_training(run: Path, digest: str, name: str = "demo", **changes: Any) -> TrainingFolder:
    """Write a training of the weights ``digest`` with two modules, named ``a.<b>`` and ``c``."""
    folder = TrainingFolder.at(training_path(run, name))
    rows = [{"kind": "train", "step": s, "loss": 3.0 - s / 10, "lr": 0.1} for s in (1, 10, 15, 20)]
    for step in (0, 10, 20):
        rows.append({"kind": "evaluation", "step": step, **accuracy(70 + step, 25 - step)})
        share = {"a.<b>": step / 1000, "c": 0.0}
        rows.append(
            {"kind": "oscillation", "step": step, "threshold": 0.005, "all": 0.01, "share": share}
        )
        rows.append({"kind": "scales", "step": step, "scale": {"a.<b>:weight": 1.0 + step / 10}})
    for row in rows:
        folder.append_metric(row)
    edges = np.linspace(-9, 8, 137)
    arrays = {}
    for moment in ("begin", "end"):
        for module in ("a.<b>", "c"):
            arrays[f"{moment}|{module}|edges"] = edges
            arrays[f"{moment}|{module}|counts"] = np.arange(136)
    np.savez_compressed(folder.path / "weights.npz", **arrays)
    (folder.path / "movement.csv").write_text(
        "module,bits,change,codes_changed,oscillating,sqnr_before,sqnr_after,kurtosis_before,"
        "kurtosis_after\na.<b>,4,0.123,0.25,0.02,10,20,1,2\nc,8,0.01,0.5,0,30,31,0,0\n"
    )
    (folder.path / "sensitivities.csv").write_text(
        "module,bits,n,kl_before,kl_before_low,kl_before_high,kl_after,kl_after_low,kl_after_high\n"
        "a.<b>,4,16,0.5,0.4,0.7,0.2,0.1,0.3\nc,8,16,0.01,0.005,0.02,0.03,0.02,0.04\n"
    )
    record = {
        "status": "complete",
        "model": {"weights_digest": digest},
        "recipe": {
            "name": "demo", "version": 1, "about": "Short.", "source": "here", "seed": 0,
            "crops": 2, "batch": 64, "lr": 1e-3, "min_lr": 0.0, "regularizer": "obr",
            "strength": 0.01,
        },
        "plan": {
            "bits": {"a.<b>": 4, "c": 8}, "cost": None,
            "predicted": {"drop": 20.0, "low": 10.0, "high": 30.0},
        },
        "fp": accuracy(95, 0), "ptq": accuracy(72, 23), "best": accuracy(91, 4),
        "last": accuracy(90, 5), "steps": 20, "seconds": 61.5, "crops_per_second": 40.0,
        "device": "cpu", "gradient_ratio": 0.25, "teacher": {"live": "model"},
        "data": {"images": 320, "spec": "generated"},
    }  # fmt: skip
    folder.write_record(record | changes)
    return folder


def several_trainings(run: RunFolder, number: int = 4) -> None:
    """Trainings of the first model; the second made the plan of the run worse."""
    digest = run.read_run()["models"][0]["weights_digest"]
    for k in range(number):
        gain = {"gain": 18.0, "gain_low": 16.0, "gain_high": 20.0}
        changes: dict[str, Any] = {"last": accuracy(90 - k / 2, 5 + k / 2) | gain}
        if k == 1:
            lost = {"gain": -70.0, "gain_low": -72.0, "gain_high": -68.0}
            said = "Training made the plan worse, by 70.00 points (68.00 to 72.00)."
            changes = {"last": accuracy(2, 93) | lost, "warnings": [said]}
        folder = add_training(run.path, digest, f"training-{k}", **changes)
        record = {key: value for key, value in folder.read_record().items() if key != "schema"}
        record["recipe"] |= {"lr": (k + 1) / 1000}
        folder.write_record(record)
        if k < 2:
            (folder.path / "plan.json").write_bytes(run.plan_path().read_bytes())
