"""From a run's tables to the document: what is shown, and in which order."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING, Any

from vitsense.compare import compare_models, findings
from vitsense.compare.groups import ADDITIVITY, group_label
from vitsense.compare.harder import HARDER, HEAD, plan_rows
from vitsense.decimals import listed
from vitsense.formats import Family, format_of
from vitsense.report.chapters import run_chapters
from vitsense.report.chapters.training import training_warnings
from vitsense.report.chapters.unfinished import COMPLETE, completing_command, ended_early
from vitsense.report.compose_model import compose_model
from vitsense.report.compose_words import glossary
from vitsense.report.document import Document, Profile
from vitsense.report.formatters import count, known, percent, short
from vitsense.report.section import Section, Table
from vitsense.report.source import Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from vitsense.compare import Comparison, Finding
    from vitsense.runfolder import RunFolder


def compose(run: RunFolder, trainings: Sequence[Path] = ()) -> Document:
    """Everything the report says about a run.

    Args:
        run: Its folder.
        trainings: Folders of more trainings and ablations of its models, which lie elsewhere.

    Raises:
        UserInputError: a file of the run is damaged, or a training is not finished.
        InputMissingError: the run holds no measurement yet, or a folder holds no training.
        SiteMismatchError: a training of other weights than the run's.
    """
    source = Source(run, trainings)
    record, entries, tables = source.record, source.entries, source.tables()
    comparison = compare_models(tables["modules"], tables["statistics"], tables["sensitivity"])
    families = {entry["key"]: entry["family"] for entry in entries}
    models = tuple(compose_model(source, entry) for entry in entries)
    names = " against ".join(entry["key"] for entry in entries)
    found = _findings(comparison, tables, families) if comparison else ()
    return Document(
        title=f"{names}: sensitivity to quantization",
        question=(
            f"Which modules of {listed([entry['key'] for entry in entries])} break when they are "
            "quantized, and how many bits does each need?"
        ),
        warnings=_warnings(source),
        images=int(record["data"]["evaluation"]),
        bits=comparison.format.bits if comparison else 0,
        at=comparison.format.words if comparison else "",
        models=models,
        findings=tuple((f.headline, f.sentence[:1].upper() + f.sentence[1:]) for f in found),
        told=sum(f.told or f.key.endswith(HARDER) for f in found),
        profiles=_profiles(comparison, families) if comparison else (),
        roles=_roles(comparison) if comparison else (),
        method=(*_as_kept(_method(record), tables["causes"]), *_completing(source)),
        commands=tuple(shlex.join(command) for command in record.get("commands", ())),
        files=_FILES,
        words=glossary(entries),
        chapters=run_chapters(source),
        compared=tuple(_compared(list(families), tables["joint"])) if comparison else (),
    )


def _compared(names: Sequence[str], joint: pd.DataFrame) -> Iterator[Section]:
    """Which of two models is harder with every plan."""
    for place, other in enumerate(names[1:]):
        rows = plan_rows(names[0], other, joint)
        if rows:
            title = f"{other} against {names[0]}, plan by plan"
            reading = (
                f"Numbers are of {other} against {names[0]}: above 1, {other} diverges more. "
                "Harder is decided by this ratio's interval, widened for the number of plans, "
                "unless the losses say the contrary."
            )
            table = Table(title=title, head=HEAD, rows=tuple(rows), reading=reading)
            yield Section(key=f"harder-{place}", title=title, blocks=(table,))


def _findings(
    comparison: Comparison, tables: Mapping[str, pd.DataFrame], families: Mapping[str, str]
) -> list[Finding]:
    found = findings(comparison, tables["groups"], tables["additivity"], families, tables["joint"])
    return [f for f in found if not f.key.endswith(ADDITIVITY)]  # a chapter of each model has it


def _warnings(source: Source) -> tuple[str, ...]:
    """The run's own, its trainings', that it is not finished; random weights before everything."""
    record = source.record
    found = [*record.get("warnings", ()), *training_warnings(source)]
    if record.get("status") != "complete":
        found.insert(0, f"This run is not finished ({record.get('status')}); results are partial.")
    return tuple(sorted(found, key=lambda warning: not warning.startswith("Random weights")))


_SERIES = (
    "kl",
    "activation_kurtosis",
    "activation_variance",
    "activation_outliers_6",
    "activation_sdam",
    "activation_channel_max_to_median",
)


def _profiles(comparison: Comparison, families: Mapping[str, str]) -> tuple[Profile, ...]:
    found = []
    for model, family in families.items():
        part = comparison.per_module[comparison.per_module["model"] == model]
        series = {
            name: tuple(None if math.isnan(v) else float(v) for v in part[name].astype(float))
            for name in _SERIES
        }
        found.append(
            Profile(
                model=model,
                family=family,
                modules=tuple(str(name) for name in part["module"]),
                depth=tuple(float(v) for v in part["depth"]),
                series=series,
            )
        )
    return tuple(found)


def _roles(comparison: Comparison) -> tuple[tuple[str, ...], ...]:
    head = (
        "Model",
        "Role",
        "Modules",
        "Weights",
        "Share of divergence",
        "Median divergence (nats)",
        "Variance",
        "Excess kurtosis",
        "Beyond 6 sigma",
        "SDAM",
    )
    rows = [
        (
            row["model"],
            group_label(row["role"]),
            str(row["modules"]),
            count(row["params"]),
            f"{row['kl_share']:.1f} %",
            short(row["kl_median"]),
            short(row["variance"]),
            short(row["kurtosis"]),
            percent(row["outliers_6"]),
            short(row["sdam"]) if known(row["sdam"]) else "\u2013",
        )
        for row in comparison.by_role.to_dict("records")
    ]
    return (head, *rows)


def _range_words(choice: str) -> str:
    words = {"mse": "least squared error", "minmax": "minimum and maximum"}
    return words.get(choice, choice)


MODE_WORDS = {
    "exact": "exact: every module at every width on every image, one module at a time",
    "adaptive": "adaptive: rounds of images, those first that the model is least sure of; a module "
    "at a width stops when the images it has not seen could change its loss by no more than the "
    "tolerance, or when its share of the images is used up; intervals allow for the repeated "
    "looking. Groups, remedies and whole plans are measured on all images; a module that is a "
    "group of its own, or had remedies tried, shows and is ranked by that measurement",
    "fast": "fast: the divergence of single modules is estimated from gradients (Fisher "
    "information of the class probabilities), one forward and one backward pass; their drop is "
    "not measured; whole plans are, on all images. For the estimates alone, images are drawn from "
    "these by how unsure the model is of them, and weighed by that; below 4 bits the estimate is "
    "combined with a measurement of every module on 8 to 32 of them",
    "hessian": "hessian: the divergence of single modules is estimated as HAWQ-V2 does, half the "
    "mean trace of the Hessian of the loss (Hutchinson's random vectors) times the squared "
    "rounding error; their drop is not measured; whole plans are",
}
"""What each mode of the sweep does, for the method."""


def _formats(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How formats other than plain integers hold their numbers, where some were measured."""
    found = []
    forms = [format_of(name) for name in settings.get("formats") or ()]
    if any(form.family is Family.FLOAT for form in forms):
        found.append(
            (
                "fp8",
                "OCP 8-bit floating point, to nearest even, saturating; scaled so that the largest "
                "magnitude (of a channel of a weight, or in calibration) is the largest element",
            )
        )
    blocks = [form for form in forms if form.block]
    if blocks:
        sizes = ", ".join(f"{f.name} {f.block} ({f.effective_bits:g} bits)" for f in blocks)
        found.append(
            (
                "Blocks",
                f"elements that share a stored scale: {sizes}; along the axis that is summed over; "
                "mx formats after OCP MX v1.0, shared exponent rounded down",
            )
        )
    if settings["quant"].get("attention_probs") == "log2":
        found.append(("Attention probabilities", "integers hold them as powers of two"))
    return found


_BESIDE_REMEDIES = ", or had remedies tried,"


def _as_kept(method: Sequence[tuple[str, str]], causes: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """The method, for older runs without what needs intervals of modules beside their remedies."""
    old = causes["kl_before"].notna().any() and causes["n_before"].isna().all()
    for name, text in method:
        yield name, text.replace(_BESIDE_REMEDIES, "") if old else text


def _method(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    settings, data = record["settings"], record["data"]
    quant = settings["quant"]
    versions = record["provenance"]["versions"]
    machine = record["provenance"]["machine"]
    seconds = sum(record.get("timings", {}).values())
    return (
        ("Measurement", MODE_WORDS[settings.get("mode", "exact")]),
        (
            "Drop",
            "full-precision minus quantized top-1 on the same images, percentage points; interval "
            "for paired proportions after Agresti and Min (2005), 95 %",
        ),
        (
            "Agreement",
            "share of images that keep the class of full precision; where there are no labels, "
            "100 % minus agreement takes the drop's place; Wilson interval, 95 %",
        ),
        (
            "Divergence",
            "Kullback-Leibler divergence of the quantized from the full-precision class "
            "probabilities, mean over images, nats; Student's t interval, 95 %",
        ),
        (
            "Weights",
            f"symmetric, {quant['weight_granularity'].replace('_', ' ')}, range by "
            f"{_range_words(quant['weight_range'])}; integers reach one step further below zero "
            "than above (\u22128 to 7 at 4 bits), so grids do, too",
        ),
        (
            "Activations",
            f"affine, per tensor, range by {_range_words(quant['activation_range'])} on the "
            "calibration images",
        ),
        *_formats(settings),
        (
            "Not quantized",
            "normalization, softmax, activation functions, residual sums; see coverage",
        ),
        (
            "Whole plans",
            "divergences of single modules are summed; for this, a format never counts as "
            "cheaper than a wider one of the same kind (where measurements say so, both get their "
            "average). Plans that were measured tell how much more the whole diverges and what "
            "that loses; the interval is the scatter of these plans",
        ),
        ("Images", _images(data)),
        ("Data", f"{data['spec']} (digest {data['evaluation_digest']})"),
        ("Seed", str(settings["seed"])),
        ("Time", f"{seconds:.0f} s on {machine['processors']} processors ({machine['machine']})"),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items() if v != "not installed")),
    )


def _images(data: Mapping[str, Any]) -> str:
    """How many, and how they were drawn."""
    said = f"{data['evaluation']} evaluation, {data['calibration']} calibration, disjoint"
    total = int(data.get("images_total") or 0)
    if data.get("kind") == "generated":
        return f"{said}; each generated at random from the seed"
    drawn = (
        "; evaluation images were drawn at random, by the seed, not by what a model makes of them"
    )
    if total > data["evaluation"]:
        drawn += (
            f"; top-1 holds for these {data['evaluation']} of {total} images, and may lie above or "
            "below what is published for the whole set, more so where the folder is a choice itself"
        )
    return said + drawn


def _completing(source: Source) -> tuple[tuple[str, str], ...]:
    """The command that continues a run that is not complete."""
    return ((COMPLETE, completing_command(source)),) if ended_early(source) else ()


_FILES = (
    ("sensitivity.csv", "every cell with intervals"),
    ("statistics.csv", "moments, quantiles and outliers of every tensor"),
    ("modules.csv", "modules with role, size and operations"),
    ("causes.csv", "reasons of the most sensitive modules, and remedies measured"),
    ("predictors.csv, estimates.csv", "what ranks modules like the measurement, and estimates"),
    ("joint.csv", "whole plans, predicted and measured"),
    ("groups.csv", "groups quantized alone, and spared while all else is quantized"),
    ("additivity.csv", "sums over modules against whole plans"),
    ("pareto.csv, pareto_bits.csv", "the Pareto front and its bits"),
    ("coverage.csv", "what gets no quantizer"),
    ("channels.npz, histograms.npz", "per-channel moments and histograms"),
    ("report.json", "everything in this report, as data"),
)
