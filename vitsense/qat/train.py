"""One training from a plan to its result: the order of things, and what is written when."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vitsense import provenance
from vitsense.data import ImageSet
from vitsense.decimals import counted
from vitsense.errors import (
    InputMissingError,
    SiteMismatchError,
    UserInputError,
)
from vitsense.models import LoadedModel, load_model
from vitsense.plan.plan import FLOAT, Plan
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.qat.batches import StepSource
from vitsense.qat.engine import Engine
from vitsense.qat.evaluate import Answers, Evaluation, gain_row, outcome_row
from vitsense.qat.looks import WeightFacts, oscillation_row, scales_row, weight_facts
from vitsense.qat.prepare import QuantizedModel, part_of, prepare_qat
from vitsense.qat.processes import (
    Accelerator,
    answers_over_processes,
    make_accelerator,
    together_alone,
)
from vitsense.qat.ptq import ptq_answers
from vitsense.qat.request import QatRequest, refuse_changed
from vitsense.qat.result import TrainingLog, finished, first_record, told
from vitsense.qat.resume import load_state
from vitsense.qat.sensitivities import ModuleDivergence, module_divergences
from vitsense.qat.steadying import Steadying, qat_settings
from vitsense.qat.teacher import Teacher
from vitsense.qat.training_set import TrainingSet, open_training_set
from vitsense.qat.worth import prospects
from vitsense.settings import Part
from vitsense.trainings import TrainingFolder


@dataclass(slots=True, kw_only=True, eq=False)
class _Job:
    """The parts of a training that do not change."""

    request: QatRequest
    model: LoadedModel
    images: TrainingSet
    calibration: list[Tensor]
    evaluation: Evaluation
    accelerator: Accelerator
    log: TrainingLog
    progress: Progress
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)


def train(
    request: QatRequest,
    folder: TrainingFolder,
    device: torch.device,
    *,
    resume: bool = False,
    progress: Progress = NO_PROGRESS,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Train the quantized model of a plan; an unfinished equal training in ``folder`` goes on.

    An equal training that is complete is not done again: its record is given.

    Args:
        request: What to do.
        folder: Where everything is written.
        device: Where to train; Accelerate spreads over the processes of ``torchrun``.
        resume: Insist that there is something to go on from.
        progress: Told of every step.
        command: The command line, for the record.

    Returns:
        The record, as in ``qat.json``.

    Raises:
        StaleResultError: the folder holds another training.
        InUseError: another process trains in the folder.
        VitsenseError: see `vitsense.errors`.
    """
    folder.refuse_run()
    accelerator = make_accelerator(device, request.recipe.precision)
    if not accelerator.is_main_process:
        progress = NO_PROGRESS
    with together_alone(folder.path, accelerator, progress):
        return _trained(request, folder, accelerator, resume, progress, command)


def _trained(
    request: QatRequest,
    folder: TrainingFolder,
    accelerator: Accelerator,
    resume: bool,
    progress: Progress,
    command: list[str] | None,
) -> dict[str, Any]:
    device = accelerator.device
    model = load_model(request.model, device)
    images = _images_of(request, model, device, accelerator.num_processes)
    recipe = request.recipe
    steps = max(1, round(recipe.epochs * len(images.numbers) / recipe.batch))
    record = first_record(request, model, images, steps, command or provenance.command_line())
    state, done = _state_of(folder, record, resume)
    if done is not None:
        progress.note(f"The training in {folder.path} is complete: this is what it gave.")
        return done
    progress.note(_said_first(request, record, folder))
    if folder.started and state is None:
        progress.note("Nothing was kept of the training that began here: it starts at step 0.")
    torch.manual_seed(recipe.seed + accelerator.process_index)
    job = _Job(
        request=request,
        model=model,
        images=images,
        calibration=images.calibration(recipe.calibration, recipe.seed, device),
        evaluation=Evaluation(
            images=images.evaluation,
            preprocessing=model.preprocessing,
            device=device,
            batch=request.eval_batch,
            rank=accelerator.process_index,
            ranks=accelerator.num_processes,
        ),
        accelerator=accelerator,
        log=TrainingLog(folder, writes=accelerator.is_main_process, board=request.tensorboard),
        progress=progress,
        record=record,
    )
    with _status_kept(job, folder):
        _train(job, folder, steps, state)
    return job.record


def _said_first(request: QatRequest, record: Mapping[str, Any], folder: TrainingFolder) -> str:
    """What is about to be trained."""
    cost, budget, recipe = request.plan.cost, request.plan.budget, request.recipe
    size = "" if cost is None else f"{cost['avg_bits']:.2f} bits on average, "
    return (
        f"{record['model']['key']}: {size}{budget or 'plan by hand'}; recipe {recipe.name}, lr "
        f"{recipe.lr:g}, {counted(record['data']['images'], 'training image')} of "
        f"{record['data']['spec']}; into {folder.path}"
    )


def _images_of(
    request: QatRequest, model: LoadedModel, device: torch.device, ranks: int
) -> TrainingSet:
    """The images; where they are refused and the plan is of other weights, both are said."""
    try:
        return open_training_set(request, model, device, ranks)
    except UserInputError as about_images:
        names = [module.name for module in request.plan.modules]  # sites are not known yet
        try:
            request.plan.check_against(names, weights_digest=model.digest, model=model.key)
        except SiteMismatchError as about_plan:
            raise SiteMismatchError(f"{about_plan} And: {about_images}") from about_images
        raise


def _state_of(
    folder: TrainingFolder, record: dict[str, Any], resume: bool
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What to go on from, and the record of a training that is complete; None: there is none."""
    if not folder.started:
        if resume:
            raise InputMissingError(
                f"{folder.path} holds no training to resume; start it without --resume."
            )
        return None, None
    earlier = folder.read_record()
    refuse_changed(earlier, record, folder)
    if earlier.get("status") == "complete":
        return None, earlier
    path = folder.path / "resume.pt"
    return load_state(path) if path.is_file() or resume else None, None


@contextmanager
def _status_kept(job: _Job, folder: TrainingFolder) -> Iterator[None]:
    """Write how the training ended, whatever ended it."""
    if job.main:
        folder.write_record(job.record)
        job.request.plan.save(folder.plan_path)
    try:
        yield
    except BaseException as error:
        job.record["status"] = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        if job.main:
            folder.write_record(job.record)
        raise
    finally:
        job.log.close()
    job.record["status"] = "complete"
    if job.main:
        folder.write_record(job.record)
        (folder.path / "resume.pt").unlink(missing_ok=True)


def _train(job: _Job, folder: TrainingFolder, steps: int, state: dict[str, Any] | None) -> None:
    request, recipe, model = job.request, job.request.recipe, job.model
    plan = _plan_in_training(request.plan, recipe.schedule)
    quantized = prepare_qat(
        model.module, plan, settings=qat_settings(recipe), calibration=job.calibration
    )
    before = weight_facts(quantized)
    alone = _alone(job, quantized)
    if state is not None:
        quantized.load_state_dict(state["model"], strict=True)
    job.evaluation.remember(model.module)
    untrained = _measure_untrained(job)
    engine = _engine(job, folder, quantized, steps, untrained)
    if state is None:
        job.log.cut(0)
        if job.main:
            job.log.histograms("begin", before)
    else:
        engine.restore(state)
        job.log.cut(engine.position.step)
        job.progress.note(f"Continuing at step {engine.position.step} of {steps}.")
    batches = _source(job).steps(engine.position.step, steps, request.workers)
    try:
        engine.run(batches)
    finally:
        engine.teacher.close()
    engine.write_last()
    if recipe.schedule == "activations_first":
        quantized, last = _weights_quantized(job, engine)
        engine.position.last = engine.position.best = {"step": steps, **last}
        engine.position.best_step = steps
    job.record |= finished(engine, folder)
    job.record |= told(job.record, engine.position.since_best, job.images, request)
    if job.main:
        _write_weights(job, engine, quantized, before)
        if alone is not None:
            job.progress.note("Every module alone, after training.")
            job.record |= job.log.sensitivities(alone, _alone(job, quantized) or {})


def _alone(job: _Job, quantized: QuantizedModel) -> dict[str, ModuleDivergence] | None:
    """What each module alone costs on a few evaluation images; None where that is not asked for.

    Not with ``activations_first``: before its weights are rounded there is nothing to compare.
    """
    number = min(job.request.sensitivity_images, len(job.images.evaluation))
    if number == 0 or not job.main or job.request.recipe.schedule != "both":
        return None
    source, numbers = job.images.evaluation.source, job.images.evaluation.numbers[:number]
    few = ImageSet(source=source, numbers=numbers)
    batches = few.batches(job.model.preprocessing, number, job.accelerator.device)
    return module_divergences(quantized, next(iter(batches))[0])


def _plan_in_training(plan: Plan, schedule: str) -> Plan:
    if schedule == "both":
        return plan
    if part_of(plan) is Part.WEIGHTS:
        raise UserInputError(
            "The plan leaves activations in full precision, and this recipe trains those first: "
            "use another --recipe, or a plan of weights and activations."
        )
    return replace(plan, modules=tuple(replace(m, weight=FLOAT) for m in plan.modules))


def _measure_untrained(job: _Job) -> Answers:
    """Full precision and the plan without training, on the evaluation images; gives the latter."""
    own = job.evaluation.answers(job.model.module)
    outcome = answers_over_processes(own, job.accelerator).outcome
    row = outcome_row(outcome)
    job.record["fp"] = {"n": outcome.n, **{k: row[k] for k in ("top1", "top1_low", "top1_high")}}
    seen, device = job.model.preprocessing, job.accelerator.device
    batches = job.images.untrained.batches(seen, job.request.eval_batch, device)
    shown_to = (images for images, _ in batches)
    found = ptq_answers(job.model, job.request.plan, shown_to, job.evaluation)
    untrained = answers_over_processes(found, job.accelerator)
    job.record["ptq"] = outcome_row(untrained.outcome)
    job.record["notes"] = [*job.images.notes, *filter(None, [prospects(job.record["ptq"])])]
    for note in job.record["notes"]:
        job.progress.note(note)
    return untrained


def _source(job: _Job) -> StepSource:
    images = job.images
    return StepSource(
        reader=images.reader,
        numbers=images.numbers,
        order=images.order,
        crops=job.request.recipe.crops,
        policy=images.policy,
        rank=job.accelerator.process_index,
        ranks=job.accelerator.num_processes,
        bank=images.bank,
        teacher_reader=images.teacher_reader,
    )


def _engine(
    job: _Job, folder: TrainingFolder, quantized: QuantizedModel, steps: int, untrained: Answers
) -> Engine:
    recipe = job.request.recipe
    per_epoch = len(job.images.numbers) / recipe.batch
    steadying = Steadying.of(quantized, recipe)

    def look(step: int) -> None:
        place = {"step": step, "epoch": step / per_epoch}
        if list(steadying.tracker):  # a training of activations has no rounded weight to watch
            job.log.write(oscillation_row(steadying.tracker) | place)
        job.log.write(scales_row(quantized) | place)

    engine = Engine(
        model=quantized,
        recipe=recipe,
        steps=steps,
        steps_per_epoch=per_epoch,
        classes=job.model.num_classes,
        teacher=_teacher(job),
        steadying=steadying,
        evaluation=job.evaluation,
        accelerator=job.accelerator,
        folder=folder,
        progress=job.progress,
        look=look,
        write=job.log.write,
        untrained=untrained,
        checkpoint_steps=job.request.checkpoint_steps,
    )
    if recipe.mimic:
        path = _classifier(job.model.module)
        engine.teacher.mimicking(engine.model.model, path, recipe.mimic, job.calibration)
    return engine


def _teacher(job: _Job) -> Teacher:
    live = job.images.teacher
    module = None
    if live is not None:
        # the student's own full precision must not be changed by hooks on the teacher
        module = copy.deepcopy(live.module).eval().requires_grad_(False)
    return Teacher(classes=job.model.num_classes, hard=job.request.recipe.hard, live=module)


def _classifier(model: nn.Module) -> str:
    """Path of the last linear layer.

    Raises:
        UserInputError: there is none.
    """
    paths: list[str] = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
    if not paths:
        raise UserInputError("mimic needs a model that ends in a linear layer; use mimic=0.")
    return paths[-1]


def _weights_quantized(job: _Job, engine: Engine) -> tuple[QuantizedModel, dict[str, Any]]:
    """The model with its weights quantized at last, by least squared error, and its outcome."""
    trained = engine.model.float_model().eval()
    free = {k: v for k, v in job.request.plan.model.items() if not k.endswith("digest")}
    plan = replace(job.request.plan, model=free)
    settings = qat_settings(job.request.recipe)
    made = prepare_qat(trained, plan, settings=settings, calibration=job.calibration)
    for site, quantizer in engine.model.quantizers.items():
        made.quantizers[site].load_state_dict(quantizer.state_dict())
    answers = answers_over_processes(job.evaluation.answers(made), job.accelerator)
    row = outcome_row(answers.outcome) | gain_row(answers, engine.untrained)
    epoch = engine.steps / engine.steps_per_epoch
    job.log.write({"kind": "evaluation", "step": engine.steps, "epoch": epoch, **row})
    engine.model = made
    engine.write_last()
    return made, row


def _write_weights(
    job: _Job, engine: Engine, quantized: QuantizedModel, before: dict[str, WeightFacts]
) -> None:
    after = weight_facts(quantized)
    job.log.histograms("end", after)
    if before.keys() == after.keys():
        job.log.movement(before, after, engine.steadying.tracker.share())
