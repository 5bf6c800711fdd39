"""A training: what it leaves behind, that it goes on exactly where it was, and what it refuses."""

from __future__ import annotations

import errno
import json
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from qat_jobs import CPU, RESNET, folder, plan_of, recipe, request, resnet_plan
from safetensors.torch import load_file

from vitsense.errors import (
    InputMissingError,
    MeasurementError,
    SiteMismatchError,
    StaleResultError,
    UserInputError,
)
from vitsense.models import load_model
from vitsense.plan.plan import ModulePlan, Plan
from vitsense.progress import NoProgress
from vitsense.qat import resume
from vitsense.qat.distill import DistillSettings, distill
from vitsense.qat.engine import Engine
from vitsense.qat.policy import resolved_policy
from vitsense.qat.result import TrainingLog
from vitsense.qat.stopping import stop_between_steps
from vitsense.qat.train import train
from vitsense.qat.training_images import training_source
from vitsense.trainings import TrainingFolder


@pytest.fixture(scope="module")
def plan() -> Plan:
    return resnet_plan()


# everything that has a state of its own at once: multi-crop, regularizer, freezing, average
_STATEFUL = {
    "regularizer": "obr", "strength": 0.1, "strength_start": 0.0, "ema": 0.9,
    "freeze": 0.0001, "freeze_start": 0.001, "oscillation_momentum": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def done(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> TrainingFolder:
    made = folder(tmp_path_factory.mktemp("qat"))
    train(request(plan, recipe=recipe(**_STATEFUL)), made, CPU)
    return made


def _timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "crops_per_second"} for row in rows]


def test_a_training_says_what_it_did_and_what_came_out(done: TrainingFolder) -> None:
    record = done.read_record()
    assert record["status"] == "complete"
    assert record["steps"] == 6
    assert record["recipe"]["strength"] == 0.1
    assert record["fp"]["top1"] > 90
    for moment in ("best", "last"):
        row = record[moment]
        assert row["drop"] == pytest.approx(record["fp"]["top1"] - row["top1"])
        assert row["drop_low"] <= row["drop"] <= row["drop_high"]
    assert record["last"]["step"] == 6
    assert record["best"]["top1"] >= record["last"]["top1"]
    assert record["ptq"]["n"] == 36
    for row in (record["start"], record["best"], record["last"]):
        assert row["gain"] == pytest.approx(record["ptq"]["drop"] - row["drop"])
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]
    assert record["worth"]["kind"] in ("gained", "same", "worse")
    assert record["analysis"] is None  # nobody measured the plan
    files = {path.name for path in done.path.iterdir()}
    assert files == {
        "qat.json", "plan.json", "metrics.jsonl", "movement.csv", "weights.npz", "best.safetensors",
        "last.safetensors",
    }  # fmt: skip
    assert [row["step"] for row in done.metrics("evaluation")] == [0, 2, 4, 6]
    assert [row["step"] for row in done.metrics("oscillation")] == [0, 2, 4, 6]
    train_rows = done.metrics("train")
    assert [row["step"] for row in train_rows] == [1, 2, 3, 4, 5, 6]  # so few steps: all of them
    assert train_rows[-1]["gradient_ratio"] > 0


def test_histograms_count_every_weight_before_and_after(done: TrainingFolder) -> None:
    model = load_model(RESNET, CPU).module
    with np.load(done.path / "weights.npz", allow_pickle=False) as arrays:
        for moment in ("begin", "end"):
            counts = arrays[f"{moment}|layer1.0.conv1|counts"]
            assert counts.sum() == model.get_parameter("layer1.0.conv1.weight").numel()


def test_killed_and_resumed_equals_undisturbed_bit_for_bit(
    plan: Plan, done: TrainingFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, what = folder(tmp_path), request(plan, recipe=recipe(**_STATEFUL))
    step = Engine._step

    def killed(self: Engine, batch: Any) -> None:
        if self.position.step == 3:  # one step after a checkpoint
            raise KeyboardInterrupt
        step(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(what, made, CPU)
    assert made.read_record()["status"] == "interrupted"
    torch.manual_seed(999)  # whatever happened to the generators in between
    train(what, made, CPU, resume=True)
    one, other = (load_file(f.path / "last.safetensors") for f in (done, made))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert _timeless(made.metrics()) == _timeless(done.metrics())
    assert made.read_record()["best"] == done.read_record()["best"]


def test_ctrl_c_ends_the_step_keeps_it_and_goes_on_from_there(
    plan: Plan, done: TrainingFolder, tmp_path: Path
) -> None:
    class Interrupting(NoProgress):
        """Presses Ctrl-C in the third step."""

        def __init__(self) -> None:
            self.notes: list[str] = []
            self.steps = 0

        def advance(self, steps: int, label: str = "") -> None:
            self.steps += steps if label.startswith("loss") else 0
            if self.steps == 3:
                signal.raise_signal(signal.SIGINT)

        def note(self, text: str) -> None:
            self.notes.append(text)

    told = Interrupting()
    made = folder(tmp_path)
    what = replace(request(plan, recipe=recipe(**_STATEFUL)), checkpoint_steps=None)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(what, made, CPU, progress=told)
    assert signal.getsignal(signal.SIGINT) is handler
    assert "Ctrl-C again stops at once" in "".join(told.notes)
    assert resume.load_state(made.path / "resume.pt")["position"]["step"] == 3
    train(what, made, CPU)
    one, other = (load_file(f.path / "last.safetensors") for f in (done, made))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert _timeless(made.metrics()) == _timeless(done.metrics())


def test_a_second_ctrl_c_does_not_wait_for_the_step() -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt), stop_between_steps(said.append) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        assert len(said) == 1
        signal.raise_signal(signal.SIGTERM)


def test_training_recovers_what_quantization_lost(tmp_path: Path) -> None:
    what = request(resnet_plan(2), images=256, recipe=recipe(epochs=2, batch=32, lr=2e-3))
    record = train(what, folder(tmp_path), CPU)
    assert record["start"]["kl"] > 1.3 * record["last"]["kl"]
    assert record["last"]["top1"] > record["start"]["top1"] + 20


def test_resuming_with_other_settings_is_refused_by_name(plan: Plan, done: TrainingFolder) -> None:
    changed = recipe(**_STATEFUL | {"lr": 5e-4, "strength": 0.2})
    other = "different are: lr (0.001 then, 0.0005 now), strength (0.1 then, 0.2 now). "
    with pytest.raises(StaleResultError, match=re.escape(other)) as raised:
        train(request(plan, recipe=replace(changed, name="mine")), done, CPU, resume=True)
    assert "another --out" in str(raised.value)  # it lies in no run
    with pytest.raises(StaleResultError, match=r"different are: images \(32 then, 24 now\), train"):
        train(request(plan, images=24, recipe=recipe(**_STATEFUL)), done, CPU)


def test_a_training_that_is_complete_is_not_done_again(plan: Plan, done: TrainingFolder) -> None:
    before = (done.path / "qat.json").read_bytes()
    assert train(request(plan, recipe=recipe(**_STATEFUL)), done, CPU) == done.read_record()
    assert (done.path / "qat.json").read_bytes() == before


def test_there_must_be_something_to_resume(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="no training to resume"):
        train(request(plan), folder(tmp_path), CPU, resume=True)


def test_a_full_disk_while_saving_keeps_the_checkpoint_before(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, saves = folder(tmp_path), []
    save = torch.save

    def filling(state: Any, stream: Any) -> None:
        saves.append(None)
        if len(saves) == 2:
            stream.write(b"half a checkpoint")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, stream)

    monkeypatch.setattr(resume.torch, "save", filling)
    with pytest.raises(UserInputError, match="No space left"):
        train(request(plan), made, CPU)
    assert made.read_record()["status"] == "failed"
    assert resume.load_state(made.path / "resume.pt")["position"]["step"] == 2
    assert not list(made.path.glob(".tmp-*"))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resume.pt"
    path.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(UserInputError, match="damaged"):
        resume.load_state(path)


def test_a_learning_rate_that_diverges_stops_and_names_the_culprit(
    plan: Plan, tmp_path: Path
) -> None:
    wild = recipe(lr=1e30, epochs=3)
    with pytest.raises(MeasurementError, match=r"loss is (nan|inf).*(parameter|output).*--lr"):
        train(request(plan, recipe=wild), folder(tmp_path), CPU)


def test_a_loss_far_above_guessing_stops(plan: Plan, tmp_path: Path) -> None:
    wild = recipe(lr=3.0, epochs=8)
    with pytest.raises(MeasurementError, match="diverged"):
        train(request(plan, recipe=wild), folder(tmp_path), CPU)


def _other_weights(plan: Plan) -> Plan:
    return replace(plan, model={"weights_digest": "0" * 16})


def _missing_site(plan: Plan) -> Plan:
    return replace(plan, modules=(ModulePlan(name="layer9.0.conv1", bits=4),))


@pytest.mark.parametrize(
    ("change", "message"), [(_other_weights, "digest"), (_missing_site, "layer9.0.conv1")]
)
def test_a_plan_of_another_model_is_refused(
    plan: Plan, tmp_path: Path, change: Callable[[Plan], Plan], message: str
) -> None:
    with pytest.raises(SiteMismatchError, match=message):
        train(request(change(plan)), folder(tmp_path), CPU)


@pytest.mark.parametrize("bits", [1, 33])
def test_a_plan_with_bits_that_do_not_exist_is_refused(
    plan: Plan, tmp_path: Path, bits: int
) -> None:
    data = plan.to_json()
    data["modules"][0]["bits"] = bits
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UserInputError, match=f"bits is {bits}; allowed are"):
        Plan.load(path)


def test_fewer_images_than_one_batch_are_refused(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="3 training images are fewer than the 4"):
        train(request(plan, images=3), folder(tmp_path), CPU)


def test_a_foreign_plan_and_too_few_images_are_said_together(plan: Plan, tmp_path: Path) -> None:
    wanted = "digest 0000000000000000.* And: 3 training images are fewer than the 4"
    with pytest.raises(SiteMismatchError, match=wanted):
        train(request(_other_weights(plan), images=3), folder(tmp_path), CPU)


def _photos(path: Path, classes: int) -> str:
    for label in range(classes):
        (path / f"c{label}").mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng([label, i]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / f"c{label}" / f"{i}.png")
    return str(path)


def test_labels_of_other_classes_are_refused(plan: Plan, tmp_path: Path) -> None:
    spec = _photos(tmp_path / "data", 4)
    what = request(plan, data=spec, images=None, recipe=recipe(hard=0.5))
    with pytest.raises(UserInputError, match="4 classes .* has 36"):
        train(what, folder(tmp_path), CPU)


def test_generated_images_do_not_suit_a_model_of_something_else(tmp_path: Path) -> None:
    other = load_model(replace(RESNET, name="small_models:tiny_resnet"), CPU)
    what = request(plan_of(other), replace(RESNET, name="small_models:tiny_resnet"))
    with pytest.raises(UserInputError, match="No training images"):
        train(what, folder(tmp_path), CPU)


def test_a_bank_gives_the_loss_of_the_live_teacher(plan: Plan, tmp_path: Path) -> None:
    """All classes kept, so that nothing but half precision lies between the two."""
    source, model = training_source(None, 32), load_model(RESNET, CPU)
    policy = resolved_policy(None, None, source.kind)
    bank = tmp_path / "bank"
    distill(model, source, bank, DistillSettings(crops=2, top=36, policy=policy), CPU)
    # one look at every image: the first step's loss depends on the labels alone
    short = recipe(epochs=0.25, regularizer="none", strength=0.0)
    stored = folder(tmp_path, "bank-run")
    train(request(plan, labels=bank, recipe=short), stored, CPU)
    logged = stored.metrics("train")[0]["loss"]
    assert 0 < logged < 3
    wrong = DistillSettings(crops=2, top=36, policy=replace(policy, flip=1.0))
    other = tmp_path / "other"
    distill(model, source, other, wrong, CPU)
    mirrored = recipe(epochs=0.25, flip=0.0)
    with pytest.raises(UserInputError, match="crops of another policy"):
        train(request(plan, labels=other, recipe=mirrored), folder(tmp_path, "x"), CPU)
    with pytest.raises(UserInputError, match="another data set"):
        train(request(plan, labels=bank, images=31), folder(tmp_path, "y"), CPU)
    whole = bank.read_bytes()
    bank.write_bytes(whole[:-1])
    with pytest.raises(UserInputError, match="cut short"):
        train(request(plan, labels=bank), folder(tmp_path, "z"), CPU)


def test_activations_first_leaves_weights_in_float_until_the_end(
    plan: Plan, tmp_path: Path
) -> None:
    first = recipe(schedule="activations_first", mimic=1.0, lr=5e-6, evaluate=0, epochs=0.5)
    made = folder(tmp_path)
    record = train(request(plan, recipe=first), made, CPU)
    assert record["best"] == record["last"]
    state = load_file(made.path / "last.safetensors")
    assert any(key.endswith("conv1:weight.scale") for key in state)
    assert record["last"]["top1"] > 50
    assert made.metrics("oscillation") == []  # no weight was rounded while it trained
    TrainingLog(made, writes=True).movement({}, {}, {})
    assert not (made.path / "movement.csv").exists()


def test_accumulation_in_parts_gives_the_same_training(plan: Plan, tmp_path: Path) -> None:
    losses = []
    for parts in (1, 2):
        # frozen norms: batch statistics would be those of the parts
        what = recipe(accumulate=parts, norms="frozen", epochs=0.5)
        made = folder(tmp_path, f"parts{parts}")
        train(request(plan, recipe=what), made, CPU)
        losses.append([row["loss"] for row in made.metrics("train")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_mixed_precision_in_parts_follows_single_precision(plan: Plan, tmp_path: Path) -> None:
    losses = []
    for precision in ("no", "bf16"):
        what = recipe(precision=precision, accumulate=2, norms="frozen", epochs=0.5)
        made = folder(tmp_path, precision)
        record = train(request(plan, recipe=what), made, CPU)
        losses.append([row["loss"] for row in made.metrics("train")])
    assert record["recipe"]["precision"] == "bf16"
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_without_a_checkpoint_the_message_says_to_leave_out_resume(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="same command without --resume"):
        resume.load_state(tmp_path / "resume.pt")
