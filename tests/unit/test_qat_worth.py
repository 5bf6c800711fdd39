"""What training is said to be worth: paired with the plan without training, and in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from qat_jobs import CPU, RESNET, request, resnet_plan
from torch import nn

from vitsense.decimals import counted
from vitsense.models import load_model
from vitsense.qat.evaluate import Answers, Evaluation, gained
from vitsense.qat.training_set import TrainingSet, open_training_set
from vitsense.qat.worth import analysis_of, decline, prospects, worth_of
from vitsense.sensitivity.interval import Interval, paired_drop


def _row(gain: tuple[float, float, float] | None, **more: Any) -> dict[str, Any]:
    values = (None, None, None) if gain is None else gain
    columns = ("gain", "gain_low", "gain_high")
    return {"top1": 90.0, "step": 20, **dict(zip(columns, values, strict=True)), **more}


def _record(
    last: tuple[float, float, float] | None,
    *,
    best: tuple[float, float, float] | None = None,
    drop: tuple[float, float, float] = (5.0, 3.0, 7.0),
) -> dict[str, Any]:
    return {
        "last": _row(last),
        "best": _row(best or last, step=10),
        "ptq": dict(zip(("drop", "drop_low", "drop_high"), drop, strict=True)),
        "recipe": {"lr": 2e-4},
    }


def test_a_gain_is_the_paired_difference_of_the_two_models() -> None:
    """Against full precision one loses 3 of 10 images, the other gains 1: 4 images lie between."""
    before = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 0, 0], dtype=torch.bool)
    after = torch.tensor([1, 1, 1, 1, 1, 1, 1, 0, 0, 0], dtype=torch.bool)
    found = gained(after, before)
    assert found.value == pytest.approx(100 * (after.float().mean() - before.float().mean()))
    loss = paired_drop(10, 1, 3).scaled(100)  # from before to after: 1 lost, 3 gained
    assert (found.value, found.low, found.high) == (-loss.value, -loss.high, -loss.low)
    assert gained(before, after).value == -found.value
    assert gained(after, after).value == 0.0


def test_which_images_are_right_adds_up_to_the_outcome() -> None:
    model = load_model(RESNET, CPU)
    images = open_training_set(request(resnet_plan()), model, CPU, 1).evaluation
    worse = nn.Sequential(model.module, nn.Linear(36, 36))

    images.numbers = images.numbers[:20]

    def answers(labelled: bool) -> Answers:
        shown = images if labelled else images.without_labels()
        seen = Evaluation(images=shown, preprocessing=model.preprocessing, device=CPU, batch=16)
        seen.remember(model.module)
        return seen.answers(worse)

    known, unknown = answers(labelled=True), answers(labelled=False)
    outcome = known.outcome
    assert int(known.right.sum()) == outcome.fp_correct - outcome.lost + outcome.gained
    assert int(unknown.right.sum()) == unknown.outcome.agree  # without labels: as full precision
    assert len(known.right) == 20


@pytest.mark.parametrize(
    ("last", "more", "kind", "words"),
    [
        ((33.19, 29.8, 36.53), {}, "gained", "Training gained 33.19 points (29.80 to 36.53)"),
        ((0.14, -0.5, 0.78), {}, "same", "can be told from zero: +0.14 points (−0.50"),
        ((0.14, -0.5, 0.78), {}, "same", "There were 5.00 points (3.00 to 7.00) to gain. Train"),
        ((-0.14, -0.8, 0.5), {"drop": (0.6, -0.3, 1.5)}, "same", "hardly anything to gain"),
        ((-1.25, -2.2, -0.3), {}, "worse", "made the plan worse, by 1.25 points (0.30 to 2.20)"),
        ((-1.25, -2.2, -0.3), {}, "worse", "lower --lr than 0.0002"),
        ((-9.0, -12.0, -6.0), {"best": (4.0, 2.0, 6.0)}, "worse", "best evaluation (step 10)"),
        ((1.0, 0.5, 1.5), {}, "gained", "gained 1.00 point (0.50"),
    ],
)
def test_the_verdict_follows_the_interval(
    last: tuple[float, float, float], more: dict[str, Any], kind: str, words: str
) -> None:
    found = worth_of(_record(last, **more))
    assert found["kind"] == kind
    assert words in f"{found['text']} {found['advice']}"


def test_where_accuracy_tells_nothing_the_divergence_is_said() -> None:
    record = _record((0.14, -0.5, 0.78))
    record["ptq"] |= {"kl": 0.061, "kl_low": 0.052, "kl_high": 0.073}
    record["last"] |= {"kl": 0.0334, "kl_low": 0.028, "kl_high": 0.0402}
    wanted = "went from 0.061 (0.052 to 0.073) to 0.033 (0.028 to 0.040) nats"
    assert wanted in worth_of(record)["text"]
    record["last"]["kl"] = None  # logits that are not finite
    assert "went from" not in worth_of(record)["text"]


def test_without_labels_the_gain_is_of_agreement() -> None:
    record = _record((3.0, 1.0, 5.0))
    record["last"]["top1"] = None
    assert "3.00 points (1.00 to 5.00) of agreement" in worth_of(record)["text"]


def test_that_there_is_nothing_to_gain_is_said_before() -> None:
    assert "drop of 0.56 points (−0.35 to 1.45)" in prospects(
        _record(None, drop=(0.56, -0.35, 1.45))["ptq"]
    )
    assert prospects(_record(None)["ptq"]) == ""
    assert prospects({"drop": None}) == ""


def test_a_last_step_clearly_below_the_best_is_a_warning() -> None:
    record = _record((-2.0, -3.0, -1.0), best=(5.0, 4.0, 6.0))
    assert "(20) is worse than step 10, by 7.00 points" in decline(Interval(-7, -9, -5), record)
    assert decline(Interval(-1, -3, 1), record) == ""
    assert decline(None, record) == ""


def test_what_the_analysis_measured_is_compared_by_counts() -> None:
    then = {"n": 36, "lost": 3, "gained": 1, "agreement": 90.0, "drop": 5.6}
    record = {"plan": {"measured": then}, "ptq": dict(then)}
    found = analysis_of(record, same_images=True, inside=True)
    assert found is not None
    assert (found["equal"], found["said"]) == (True, "")
    record["ptq"]["lost"] = 4
    for asked, words in (
        ({"same_images": True, "inside": True}, "Another machine"),
        ({"same_images": False, "inside": True}, "other evaluation images"),
        ({"same_images": False, "inside": False}, "not known"),
    ):
        found = analysis_of(record, **asked)
        assert found is not None
        assert not found["equal"]
        assert words in found["said"]
    assert (
        analysis_of({"plan": {"measured": None}, "ptq": None}, same_images=True, inside=True)
        is None
    )


def _opened(**changes: Any) -> TrainingSet:
    return open_training_set(request(resnet_plan(), **changes), load_model(RESNET, CPU), CPU, 1)


def test_first_grids_do_not_depend_on_how_many_images_are_trained_on(tmp_path: Path) -> None:
    for data in (None, _photos(tmp_path, 36, 1)):
        few, more = (_opened(data=data, images=number) for number in (16, 32))
        assert (len(few.numbers), len(more.numbers)) == (16, 32)
        for one, other in zip(few.calibration(8, 0, CPU), more.calibration(8, 0, CPU), strict=True):
            assert torch.equal(one, other)
        assert not torch.equal(few.calibration(8, 1, CPU)[0], one)  # they are shuffled


def _photos(path: Path, classes: int, each: int) -> str:
    for label in range(classes):
        where = path / str(classes) / f"c{label:02}"
        where.mkdir(parents=True)
        for i in range(each):
            pixels = np.random.default_rng([label, i]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(where / f"{i}.png")
    return str(path / str(classes))


def test_training_images_of_other_classes_are_noted_and_trained_on(tmp_path: Path) -> None:
    (note,) = _opened(data=_photos(tmp_path, 4, 5), images=None).notes
    assert "have 4 classes, glyph_resnet has 36" in note
    assert _opened(data=_photos(tmp_path, 36, 1), images=None).notes == ()
    assert _opened().notes == ()


def test_the_untrained_plan_is_calibrated_as_an_analysis_calibrates(tmp_path: Path) -> None:
    """By default on what the evaluation leaves; on other data where the analysis did."""
    generated = _opened()
    assert len(generated.untrained) == 8
    assert generated.untrained.source.spec == "generated"
    other = _photos(tmp_path, 2, 6)
    found = _opened(calibration_data=other)
    assert (found.untrained.source.spec, len(found.untrained)) == (other, 8)
    assert found.evaluation.digest == generated.evaluation.digest
    gone = _opened(calibration_data=str(tmp_path / "gone"))
    assert gone.untrained.digest == generated.untrained.digest
    assert "gone) are not there" in gone.notes[0]


def test_one_thing_is_not_said_in_the_plural() -> None:
    assert [counted(n, "step") for n in (0, 1, 3600)] == ["0 steps", "1 step", "3,600 steps"]
