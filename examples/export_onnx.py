"""From a measurement to ONNX files that run, before and after training, with the package alone.

Run:  pip install '.[onnx]' && python examples/export_onnx.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from vitsense import (
    AnalyzeSettings,
    ModelRequest,
    OnnxOptions,
    Plan,
    RunFolder,
    export_onnx,
    run_analysis,
    source_of_run,
    source_of_training,
)
from vitsense.export.session import EXACT
from vitsense.qat.recipes import load_recipe
from vitsense.qat.request import QatRequest
from vitsense.qat.train import train
from vitsense.settings import SweepMode
from vitsense.trainings import TrainingFolder, training_path

MODEL = ModelRequest(name="zoo/glyph_resnet")


def main(folder: Path = Path("vitsense-runs/export-example"), images: int = 64) -> None:
    settings = AnalyzeSettings(
        model=MODEL,
        images=images,
        calibration=32,
        bits=(8, 4),
        budget="avg-bits=6",
        mode=SweepMode.FAST,
    )
    run = run_analysis(settings, out=folder)
    options = OnnxOptions(images=images, runs=10)
    show("quantized after training", export_onnx(source_of_run(run), options=options))

    trained = trained_model(run, settings)
    entry = export_onnx(source_of_training(trained), options=options)
    show("trained under quantization", entry)

    # from here on nothing of vitsense or torch is needed
    session = onnxruntime.InferenceSession(str(run.path / entry["file"]), session_options())
    logits = session.run(["logits"], {"images": np.zeros((3, 3, 32, 32), dtype=np.float32)})[0]
    print("logits of three black images:", logits.shape)


def trained_model(run: RunFolder, settings: AnalyzeSettings) -> TrainingFolder:
    """A few steps of training the run's plan; `vitsense qat` does it in earnest."""
    folder = TrainingFolder.at(training_path(run.path, "short"))
    request = QatRequest(
        plan=Plan.load(run.plan_path(None)),
        model=MODEL,
        recipe=replace(load_recipe("lsq+"), epochs=1.0, batch=32, calibration=32),
        images=96,
        eval_images=settings.images,
        eval_calibration=settings.calibration,
        eval_seed=settings.seed,
    )
    train(request, folder, torch.device("cpu"))
    return folder


def show(what: str, entry: dict) -> None:
    parity = entry["parity"]
    print(f"{what}: {parity['same_top1']} of {parity['images']} images get the class of torch")


def session_options() -> onnxruntime.SessionOptions:
    """As the file was compared; docs/onnx-export.md says why."""
    options = onnxruntime.SessionOptions()
    for key, value in EXACT.items():
        options.add_session_config_entry(key, value)
    return options


if __name__ == "__main__":
    main()
