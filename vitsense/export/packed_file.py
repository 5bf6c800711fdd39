"""The export of packed weights, and what is recorded of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vitsense.export.packed import read_packed, save_packed, size_json
from vitsense.export.record import entry_of, export_path, keep_export, record_path
from vitsense.export.source import ExportSource, restored


def export_packed(source: ExportSource, out: Path | None = None) -> dict[str, Any]:
    """Write packed integers, read them back, and record what the file consists of.

    Returns:
        The entry of ``export.json``.

    Raises:
        UserInputError: the file cannot be written.
    """
    path = export_path(source, ".safetensors", out)
    size = save_packed(path, source.fixed, source.plan, source.about)
    entry = {**entry_of(source, "safetensors", path), "size": size_json(size)}
    entry["restored"] = _agrees(source, path)
    keep_export(record_path(source.run, path), entry)
    return entry


def _agrees(source: ExportSource, path: Path) -> dict[str, Any]:
    """Whether the file, read back, gives the very logits of the model it was written from."""
    image = torch.randn(
        2, *source.preprocessing.input_size, generator=torch.Generator().manual_seed(0)
    )
    own = source.about["requested"] if source.about["source"] == "factory" else None
    with torch.no_grad():
        difference = (restored(read_packed(path), own)(image) - source.fixed(image)).abs().max()
    return {"images": len(image), "largest_difference": float(difference)}
