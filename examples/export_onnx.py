"""From a measurement to an ONNX file that runs, with nothing but the package.

Run:  pip install '.[onnx]' && python examples/export_onnx.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from vitsense import (
    AnalyzeSettings,
    ModelRequest,
    OnnxOptions,
    export_onnx,
    run_analysis,
    source_of_run,
)
from vitsense.settings import SweepMode


def main(folder: Path = Path("vitsense-runs/export-example"), images: int = 64) -> None:
    settings = AnalyzeSettings(
        model=ModelRequest(name="zoo/glyph_resnet"),
        images=images,
        calibration=32,
        bits=(8, 4),
        budget="avg-bits=6",
        mode=SweepMode.FAST,
    )
    run = run_analysis(settings, out=folder)
    entry = export_onnx(source_of_run(run), options=OnnxOptions(images=images, runs=10))
    parity = entry["parity"]
    print(f"{parity['same_top1']} of {parity['images']} images get the class of the torch model")

    # from here on nothing of vitsense or torch is needed
    session = onnxruntime.InferenceSession(str(run.path / entry["file"]))
    logits = session.run(["logits"], {"images": np.zeros((3, 3, 32, 32), dtype=np.float32)})[0]
    print("logits of three black images:", logits.shape)


if __name__ == "__main__":
    main()
