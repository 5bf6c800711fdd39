"""What was exported from the run, and whether the files say what the torch model says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitsense.report.chapters.parity_sites import floor, site_by_site
from vitsense.report.formatters import short
from vitsense.report.section import Block, Finding, Section, Table, Words, without_dashes
from vitsense.report.source import Source
from vitsense.runfolder import read_json
from vitsense.schemas import EXPORT_SCHEMA

_HEAD = (
    "File",
    "Size",
    "Same class",
    "Largest difference of a logit",
    "Latency of the float model",
    "Latency of this file",
    "Speed, file by float",
)


def deployment(source: Source, model: str) -> Section | None:
    """The exports of one model; None where there are none.

    Raises:
        UserInputError: ``export.json`` is damaged.
    """
    path = source.run.path / "export.json"
    if not path.is_file():
        return None
    entries = [e for e in read_json(path, EXPORT_SCHEMA)["exports"] if e["model"] == model]
    if not entries:
        return None
    blocks: list[Block] = []
    compared = [e for e in entries if e.get("parity")]
    for entry in compared:
        blocks += _compared(entry)
    blocks.append(
        without_dashes(
            Table(
                title=f"{len(entries)} exported file{'s' * (len(entries) != 1)}",
                head=_HEAD,
                code=True,
                rows=tuple(_row(entry) for entry in entries),
                reading=(
                    "Files of ONNX were run by onnxruntime on images that had no part in the "
                    "calibration. A step is the range of the logits by 255. Latency: medians of "
                    "runs in turn (processor time), one image, one thread, quartiles in brackets; "
                    "speed above 1: the file is faster than the float model."
                ),
            )
        )
    )
    return Section(key=f"deployment-{_anchor(model)}", title="Exported files", blocks=tuple(blocks))


def _anchor(model: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in model)


def _compared(entry: Mapping[str, Any]) -> list[Block]:
    parity = entry["parity"]
    steps = parity["largest"] / parity["step"] if parity["step"] else 0.0
    same = f"{parity['same_top1']} of {parity['images']} images get the class of the torch model"
    blocks: list[Block] = [
        Finding(
            headline=(
                f"{entry['file']} gives the classes of the torch model"
                if parity["same_top1"] == parity["images"]
                else f"{entry['file']} gives other classes on some images"
            ),
            numbers=f"{same}; logits differ by at most {short(parity['largest'])} "
            f"({steps:.2g} steps)."
            if parity["largest"]
            else f"{same}; all logits are equal.",
        )
    ]
    trained = entry.get("trained")
    if trained:
        blocks.append(
            Words(
                text=f"{entry['file']} is the trained model {trained['name']} "
                f"({trained['checkpoint']}), on the grids that training found."
            )
        )
    first = entry["first_difference"]
    if first is not None:
        blocks.append(
            Words(text=f"The first difference is at {first['site']}: {first['explanation']}.")
        )
    blocks += site_by_site(entry) + floor(entry)
    wider = [site for site in entry["sites"] if site["note"]]
    if wider:
        notes = sorted({site["note"] for site in wider})
        held, whose = f"{len(wider)} tensors are held in wider types", "their"
        if len(wider) == 1:
            held, whose = "1 tensor is held in a wider type", "its"
        blocks.append(
            Words(
                text=f"{held}, as the file's operator set has none of {whose} width: "
                f"{'; '.join(notes)}."
            )
        )
    if entry.get("by_itself", 0.0) > parity["step"] / 100:
        settings = ", ".join(f"{key}={value}" for key, value in entry["session"].items())
        blocks.append(
            Words(
                text="By itself onnxruntime rounds some inputs to 8 bits once more, which changes "
                f"logits by up to {short(entry['by_itself'])}; with the session setting {settings} "
                "it computes what the file says, and so it was compared."
            )
        )
    blocks += _predicted(entry.get("latency") or {})
    return blocks


def _predicted(latency: Mapping[str, Any]) -> list[Block]:
    """What a latency profile predicted, beside what was measured."""
    said = latency.get("predicted")
    if not said:
        return []
    return [
        Words(
            text=f"Predicted latency: {said['ms']:.2f} ms for one image ({said['kind']}; "
            f"{said['profile']}); measured: {latency['quantized_ms']['median']:.2f} ms."
        )
    ]


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    parity, latency = entry.get("parity"), entry.get("latency")
    timed = ("", "", "")
    if latency is not None:
        fast, full = latency["quantized_ms"], latency["float_ms"]
        timed = (
            f"{full['median']:.2f} ms",
            f"{fast['median']:.2f} ms ({fast['low']:.2f} to {fast['high']:.2f})",
            f"{latency['speedup']:.2f}",
        )
    return (
        entry["file"],
        f"{entry['bytes'] / 1e6:.2f} MB",
        f"{parity['same_top1']} of {parity['images']}" if parity else "not compared",
        short(parity["largest"]) if parity else "",
        *timed,
    )
