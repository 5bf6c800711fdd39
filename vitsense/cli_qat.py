"""``vitsense qat``: train the quantized model of a plan."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitsense.cli_output import (
    debug_option,
    emit,
    emit_json,
    find_run,
    free_folder,
    json_option,
    present,
    progress_options,
    session,
)
from vitsense.decimals import counted, difference, predicted, span
from vitsense.errors import GateFailedError, SiteMismatchError, UserInputError
from vitsense.formats import ALLOWED_BITS
from vitsense.plan.plan import Plan
from vitsense.progress import ProgressStyle, make_progress
from vitsense.runfolder import RunFolder
from vitsense.settings import ModelRequest
from vitsense.trainings import FOLDER, TrainingFolder, prediction_missed, training_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vitsense.qat.request import QatRequest

_PATH = click.Path(path_type=Path)
_TOLD = (
    "status", "fp", "ptq", "best", "last", "worth", "analysis", "calibration", "warnings", "notes",
    "steps", "seconds", "gradient_ratio",
)  # fmt: skip
"""Fields of the record that ``--json`` gives."""

_COMMON = ("epochs", "lr", "batch", "crops", "seed", "precision", "accumulate")
"""Recipe values with an option of their own."""


@click.command(
    short_help="Train the quantized model of a plan.", context_settings={"show_default": True}
)
@click.option("--plan", "plan_path", type=_PATH, help="plan.json of an analysis.")
@click.option("--bits", type=int, help="Instead of --plan: equal bits; first and last weight 8.")
@click.option("--run", metavar="RUN", help="Run of the plan. Default: the plan's folder.")
@click.option("--model", metavar="NAME", help="Model, where the plan has no run.")
@click.option("--checkpoint", type=_PATH, help="Weights of the model, if not as in the run.")
@click.option("--data", metavar="SPEC", help="Training images. Default: generated characters.")
@click.option("--images", type=int, help="At most so many training images.")
@click.option("--eval-data", metavar="SPEC", help="Evaluation images. Default: the run's.")
@click.option("--eval-images", type=int, help="How many. Default: the run's.")
@click.option("--recipe", default="demo", help="demo, vvtq, ofq, lsq+, lsq, dampen, freeze, gplq.")
@click.option(
    "--set",
    "changed",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another value of the recipe, as strength=0; an unknown KEY is answered with all of them.",
)
@click.option(
    "--epochs", metavar="NUMBER", help="Passes over the images. Default: the recipe's (demo: 6)."
)
@click.option(
    "--lr", metavar="NUMBER", help="Highest learning rate. Default: the recipe's (demo: 2e-4)."
)
@click.option(
    "--batch-size",
    "batch",
    metavar="NUMBER",
    help="Crops per step over all processes. Default: the recipe's (demo: 128).",
)
@click.option(
    "--crops", metavar="NUMBER", help="Crops of an image per step. Default: the recipe's."
)
@click.option(
    "--accumulate", metavar="NUMBER", help="Parts a step is computed in. Default: the recipe's."
)
@click.option("--precision", metavar="KIND", help="no, bf16 or fp16. Default: the recipe's.")
@click.option("--seed", metavar="NUMBER", help="Of crops, order and noise. Default: the recipe's.")
@click.option("--labels", type=_PATH, metavar="FILE", help="A bank of vitsense distill.")
@click.option("--teacher", metavar="NAME", help="A live teacher. Default: the model itself.")
@click.option("--teacher-checkpoint", type=_PATH, help="Weights of the teacher.")
@click.option("--name", help="Of the training. Default: RECIPE; of plan-2.5.json RECIPE-2.5.")
@click.option("--out", type=_PATH, metavar="DIR", help="Folder. Default: RUN/qat/NAME.")
@click.option("--resume", is_flag=True, help="There must be something to go on from.")
@click.option("--ablate", is_flag=True, help="The recipe, without each part, and its rivals.")
@click.option("--seeds", default="0,1,2", help="Seeds of --ablate.")
@click.option(
    "--variants", metavar="NAMES", help="Of --ablate, with commas: full,lsq+. Default: all."
)
@click.option(
    "--sensitivity-images",
    type=int,
    default=16,
    help="Images to measure every module alone on, before and after; 0: not at all.",
)
@click.option(
    "--fail-if-worse",
    is_flag=True,
    help="Exit with 1 where training clearly made the plan worse; otherwise that is a warning.",
)
@click.option("--workers", type=int, default=0, help="Processes that read images.")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's files as well.")
@progress_options
@json_option
@debug_option
def qat(
    *,
    plan_path: Path | None,
    bits: int | None,
    run: str | None,
    name: str | None,
    out: Path | None,
    resume: bool,
    ablate: bool,
    seeds: str,
    variants: str | None,
    progress_style: str,
    quiet: bool,
    as_json: bool,
    device: str,
    fail_if_worse: bool,
    **options: Any,
) -> None:
    """Train the model of a plan at the plan's bits, from full precision.

    \b
    The model, its weights and the evaluation images are those of the plan's run.
      vitsense qat --plan vitsense-runs/RUN/plan.json
      vitsense qat --plan plan.json --data imagenet/train --recipe vvtq --labels labels.bank
      vitsense qat --model deit_t --bits 4 --data train --eval-data val --out deit_t-w4a4
      torchrun --nproc-per-node 4 -m vitsense qat ...

    The same command continues an interrupted training; the result is bit for bit the same.
    """
    free_folder(out)
    present(options["data"], options["eval_data"])
    from vitsense.analyze import pick_device

    if (plan_path is None) == (bits is None):
        raise UserInputError("Give either --plan FILE, or --bits N with --model NAME.")
    found = _run_of(plan_path, run)
    plan = _uniform(bits, options) if plan_path is None else Plan.load(plan_path)
    request = _request(plan, found, options)
    progress = make_progress(ProgressStyle.NONE if quiet else ProgressStyle(progress_style))
    session().resumable = True
    if variants is not None and not ablate:
        raise UserInputError("--variants needs --ablate, whose trainings it chooses.")
    if fail_if_worse and ablate:
        raise UserInputError("--fail-if-worse is about one training; leave out --ablate.")
    if out is None and found is None:
        raise UserInputError("The plan lies in no run: say where to write with --out.")
    if out is not None:
        TrainingFolder(out).refuse_run()
    try:
        if ablate:
            from vitsense.qat.ablate import ablate as run_ablation

            where = out or training_path(_there(found), "ablation" if name is None else name)
            names = None if variants is None else [name.strip() for name in variants.split(",")]
            table = run_ablation(
                request, where, pick_device(device), _seeds(seeds), progress, names
            )
            if _first():
                emit(table.read_text(encoding="utf-8"))
                emit(f"Ablation: {table}\n\nNext:\n  {_showing(where, found)}")
            return
        from vitsense.qat.train import train

        usual = _usual_name(plan_path, request.recipe.name)
        where = out or training_path(_there(found), usual if name is None else name)
        folder = TrainingFolder(where)
        record = train(request, folder, pick_device(device), resume=resume, progress=progress)
    finally:
        progress.close()
    if _first():
        _emit(record, folder, found, as_json=as_json)
    if fail_if_worse and record.get("worth", {}).get("kind") == "worse":
        raise GateFailedError(f"{record['worth']['text']} {record['worth']['advice']}")


def _usual_name(plan_path: Path | None, recipe: str) -> str:
    """``demo``; of ``plan-2.5.json`` ``demo-2.5``, so that two plans do not meet in one folder."""
    stem = "plan" if plan_path is None else plan_path.stem
    kind = re.sub(r"[^A-Za-z0-9._+-]+", "-", stem.removeprefix("plan").removeprefix("-"))
    return f"{recipe}-{kind}" if kind else recipe


def _first() -> bool:
    """Whether this process speaks for all that torchrun started."""
    return session().place.rank == 0


def _there(run: RunFolder | None) -> Path:
    assert run is not None
    return run.path


def _uniform(bits: int | None, options: Mapping[str, Any]) -> Plan:
    from vitsense.analyze import pick_device
    from vitsense.models import load_model
    from vitsense.qat.uniform import uniform_plan

    if options["model"] is None:
        raise UserInputError("--bits needs --model, which says what to train.")
    if bits not in ALLOWED_BITS:
        allowed = ", ".join(map(str, ALLOWED_BITS))
        raise UserInputError(f"--bits is {bits}; allowed are {allowed}.")
    named = ModelRequest(name=options["model"], checkpoint=options["checkpoint"])
    return uniform_plan(load_model(named, pick_device("cpu")), bits)


def _run_of(plan_path: Path | None, run: str | None) -> RunFolder | None:
    if run is not None:
        return find_run(run)
    if plan_path is None:
        return None
    return RunFolder(plan_path.parent) if (plan_path.parent / "run.json").is_file() else None


def _request(plan: Plan, run: RunFolder | None, options: Mapping[str, Any]) -> QatRequest:
    from vitsense.qat.recipes import load_recipe
    from vitsense.qat.request import QatRequest, origin_of

    named = ModelRequest(name=options["model"] or "", checkpoint=options["checkpoint"])
    if options["model"] is not None:
        _check_same(plan, options["model"])
    origin = None
    if run is not None and options["model"] is None:
        origin = origin_of(plan, run, checkpoint=options["checkpoint"])
    elif options["model"] is None:
        raise UserInputError(
            "The plan lies in no run, so its model is not known: give --run, or --model (and "
            "--checkpoint)."
        )
    return QatRequest(
        plan=plan,
        model=named if origin is None else origin.model,
        recipe=load_recipe(options["recipe"], _changes(options)),
        data=options["data"],
        images=options["images"],
        eval_data=options["eval_data"] or (None if origin is None else origin.data),
        eval_images=options["eval_images"] or (1000 if origin is None else origin.images),
        **({} if origin is None else origin.drawing()),
        labels=options["labels"],
        teacher=_teacher(options),
        sensitivity_images=options["sensitivity_images"],
        workers=options["workers"],
        tensorboard=options["tensorboard"],
    )


def _check_same(plan: Plan, named: str) -> None:
    """Refuse a plan of another model before any weights are looked for.

    Tags of weights (``deit_tiny_patch16_224.fb_in1k``) do not count: modules are the same.
    """
    from vitsense.model_names import resolve_name

    planned, wanted = str(plan.model.get("name", "")), resolve_name(named).name
    if planned and planned.partition(".")[0] != wanted.partition(".")[0]:
        raise SiteMismatchError(
            f"The plan is of {planned}, and --model is {wanted}. Leave --model out to train the "
            "plan's model, or give a plan of this one."
        )


def _teacher(options: Mapping[str, Any]) -> ModelRequest | None:
    name, checkpoint = options["teacher"], options["teacher_checkpoint"]
    if name is None:
        if checkpoint is not None:
            raise UserInputError("--teacher-checkpoint needs --teacher, which says what it is of.")
        return None
    return ModelRequest(name=name, checkpoint=checkpoint)


def _changes(options: Mapping[str, Any]) -> dict[str, str]:
    """Values of the recipe from the command line."""
    found = {}
    for text in options["changed"]:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserInputError(f"--set is {text!r}: write KEY=VALUE, for example --set hard=0.5.")
        found[key.strip()] = value
    for key in _COMMON:
        if options[key] is not None:
            found[key] = str(options[key])
    return found


def _seeds(text: str) -> Sequence[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserInputError(f"--seeds is {text!r}: write whole numbers with commas.") from error


def _emit(
    record: Mapping[str, Any], folder: TrainingFolder, run: RunFolder | None, *, as_json: bool
) -> None:
    if as_json:
        emit_json(record["status"], {"path": str(folder.path), **{k: record.get(k) for k in _TOLD}})
        return
    best = record["best"]
    rows = [("Full precision", record["fp"]), ("Quantized, not trained", record["ptq"])]
    rows += [("Trained, last", record["last"]), (f"Trained, best (step {best['step']})", best)]
    for label, row in rows:
        if row is not None:
            emit(f"{label:32} {_shown(row)}")
    emit(f"{counted(record['evaluation']['images'], 'evaluation image')}; intervals are 95 %.")
    for line in _said(record):
        emit(line)
    emit(f"\nTraining: {folder.path}")
    emit(f"\nNext:\n  {_showing(folder.path, run)}")


def _showing(where: Path, run: RunFolder | None) -> str:
    """The command whose report holds the training: that of its run, or one of its own."""
    words = ["vitsense", "report", str(where if run is None else run.path)]
    if run is not None and where.resolve().parent != (run.path / FOLDER).resolve():
        words += ["--training", str(where)]
    return shlex.join(words)


def _said(record: Mapping[str, Any]) -> Iterator[str]:
    """What the numbers mean: where the untrained one comes from, and what training was worth."""
    if "worth" not in record:  # trained by an earlier version
        return
    analysis, worth = record["analysis"], record["worth"]
    if analysis is not None and analysis["equal"] and analysis["same_images"]:
        yield "Not trained: what the analysis measured of the plan."
    elif analysis is not None and analysis["drop"] is not None:
        ends = (float(analysis[f"drop{end}"]) for end in ("", "_low", "_high"))
        yield f"The analysis measured a drop of {difference(*ends)} of the plan. {analysis['said']}"
    yield from _missed(record)
    yield ""
    if worth["kind"] != "worse":  # else it is the first of the warnings
        yield " ".join(filter(None, (worth["text"], worth["advice"])))
    yield from (f"Warning: {warning}" for warning in record["warnings"])


def _missed(record: Mapping[str, Any]) -> Iterator[str]:
    """That the plan's predicted drop is not what was measured without training."""
    told = record["plan"].get("predicted")
    if prediction_missed(record):
        yield (
            f"The plan predicted a drop of {predicted(told['drop'], told['low'], told['high'])} "
            "without training: that was wrong here. vitsense plan --refine measures a plan."
        )


def _shown(row: Mapping[str, Any]) -> str:
    if row.get("top1") is not None:
        text = f"top-1 {row['top1']:6.2f} % ({span(row['top1_low'], row['top1_high'], 2)})"
        if row.get("drop") is not None:
            drop = difference(row["drop"], row["drop_low"], row["drop_high"])
            text += f", drop {drop}"
        return text
    if row.get("agreement") is None:
        return "no labels"
    low, high = row["agreement_low"], row["agreement_high"]
    return f"agreement {row['agreement']:6.2f} % ({span(low, high, 2)})"
