"""Losses, rates, groups, averages, batches and looks: each against its definition."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import IMAGE_SIZE, tiny_vit
from torch import nn
from torch.nn import functional as F

from vitsense.observe.features import features_of
from vitsense.observe.finite import first_not_finite
from vitsense.preprocessing import Preprocessing
from vitsense.qat.ablate import FULL, ON_LABELS, Ablation, mean_interval, table, variants
from vitsense.qat.batches import StepSource
from vitsense.qat.crops import CropPolicy
from vitsense.qat.losses import mimic_loss, mixed_loss, principal_components, soft_cross_entropy
from vitsense.qat.optimize import Average, learning_rate
from vitsense.qat.recipes import load_recipe
from vitsense.qat.training_images import CropReader, StepOrder, training_source

_32 = Preprocessing(
    input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear", crop_pct=1.0
)


def test_the_soft_loss_is_torchs_cross_entropy_with_probabilities() -> None:
    logits = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(6, 9, dtype=torch.float64).softmax(1)
    labels = torch.arange(6)
    soft = F.cross_entropy(logits, targets)
    torch.testing.assert_close(
        soft_cross_entropy(logits, targets).double(), soft, rtol=1e-6, atol=0
    )
    hard = F.cross_entropy(logits, labels)
    mixed = mixed_loss(logits, targets, labels, 0.25).double()
    torch.testing.assert_close(mixed, 0.75 * soft + 0.25 * hard, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        mixed_loss(logits, None, labels, 1.0).double(), hard, rtol=1e-6, atol=0
    )


def test_features_are_compared_in_the_teachers_principal_components() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 5)) * np.array([10.0, 5.0, 1.0, 0.1, 0.01])
    directions = principal_components(torch.from_numpy(features))
    covariance = np.cov(features.T)
    values, vectors = np.linalg.eigh(covariance)
    share = np.cumsum(values[::-1]) / values.sum()
    assert directions.shape == (5, int(np.searchsorted(share, 0.95)) + 1)
    expected = vectors[:, ::-1][:, : directions.shape[1]]
    np.testing.assert_allclose(np.abs(directions.T.numpy() @ expected).diagonal(), 1, atol=1e-9)
    apart = torch.zeros(3, 5, dtype=torch.float64)
    apart[:, 4] = 7.0  # hardly a direction of the teacher
    assert mimic_loss(apart, torch.zeros_like(apart), directions) < 1e-3
    assert mimic_loss(apart.flip(1), torch.zeros_like(apart), directions) > 10


def test_the_rate_rises_and_falls_as_written() -> None:
    recipe = replace(load_recipe("demo"), lr=1.0, min_lr=0.1, warmup=0.2)
    rates = [learning_rate(recipe, step, 50) for step in range(50)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * i / 40)) for i in range(40)]
    assert rates[10:] == pytest.approx(expected)


def test_the_average_forgets_by_its_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    values = [1.0, 3.0, -2.0]
    nn.init.constant_(model.weight, values[0])
    average = Average(model, 0.9)
    for value in values[1:]:
        nn.init.constant_(model.weight, value)
        average.update(model)
    expected = 0.9 * (0.9 * 1.0 + 0.1 * 3.0) + 0.1 * -2.0
    assert float(average.state["weight"]) == pytest.approx(expected, rel=1e-6)


def _steps(rank: int = 0, ranks: int = 1) -> StepSource:
    source = training_source(None, 12)
    larger = replace(_32, input_size=(3, 48, 48))
    return StepSource(
        reader=CropReader(source, _32),
        numbers=tuple(range(2, 12)),
        order=StepOrder(images=10, per_step=4, seed=1),
        crops=2,
        policy=CropPolicy(scale=(0.5, 1.0)),
        rank=rank,
        ranks=ranks,
        teacher_reader=CropReader(source, larger),
    )


def test_processes_share_a_step_and_together_see_all_of_it() -> None:
    whole = _steps()[3]
    parts = [_steps(rank, 2)[3] for rank in (0, 1)]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    assert whole.images.shape == (8, 3, 32, 32)
    assert torch.equal(whole.labels[0::2], whole.labels[1::2])  # two crops of each image
    assert not torch.equal(whole.images[0], whole.images[1])


def test_a_teacher_of_another_size_sees_the_same_crops() -> None:
    batch = _steps()[0]
    assert batch.teacher_images is not None
    assert batch.teacher_images.shape == (8, 3, 48, 48)
    smaller = F.interpolate(batch.teacher_images, (32, 32), mode="bilinear", antialias=True)
    alike = F.cosine_similarity(smaller.flatten(1), batch.images.flatten(1))
    others = F.cosine_similarity(smaller.flatten(1), batch.images.roll(1, 0).flatten(1))
    assert alike.min() > 0.99
    assert others.mean() < alike.min()


def test_batches_read_ahead_are_the_same() -> None:
    direct = list(_steps().steps(1, 4, workers=0))
    ahead = list(_steps().steps(1, 4, workers=1))
    assert all(torch.equal(a.images, b.images) for a, b in zip(direct, ahead, strict=True))


def test_the_first_module_that_is_not_finite_is_named() -> None:
    model = tiny_vit()
    images = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert first_not_finite(model, images) is None
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight[0, 0] = float("nan")  # type: ignore[index,union-attr]
    assert first_not_finite(model, images) == "blocks.1.mlp.fc2"
    assert not any(module._forward_hooks for module in model.modules())


def test_features_are_what_the_classifier_is_given() -> None:
    model = tiny_vit()
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    with features_of(model, "head") as features, torch.no_grad():
        logits = model(images)
        assert features.tensor is not None
        torch.testing.assert_close(model.get_submodule("head")(features.tensor), logits)
    assert features.tensor is None


def test_an_ablation_changes_one_thing_at_a_time_and_keeps_the_budget() -> None:
    full = load_recipe("demo", {"crops": "2"})
    found = variants(full)
    assert found[FULL] == full
    assert full.differing(found["without several crops"].to_json()) == ["crops"]
    assert full.differing(found["without regularizer"].to_json()) == ["regularizer", "strength"]
    for rival in ("lsq+", "lsq", "dampen", "freeze", "ofq", "gplq"):
        assert found[rival].epochs == full.epochs
        assert found[rival].batch == full.batch
    assert found["lsq+"].lr == full.lr
    assert found["lsq+"].differing(found[ON_LABELS].to_json()) == ["hard", "teacher"]
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert mean == pytest.approx(2.0)
    assert high - mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)  # t table, 2 degrees
    assert mean - low == pytest.approx(high - mean)


def test_an_ablation_compares_seed_by_seed() -> None:
    def ablation(name: str, *results: tuple[float, float]) -> Ablation:
        rows = [{"top1": top1, "kl": kl} for top1, kl in results]
        return Ablation(
            variant=name, records=tuple({"last": r, "best": r, "seconds": 1.0} for r in rows)
        )

    full = ablation(FULL, (70.0, 0.50), (80.0, 0.30))
    rows = table([full, ablation("other", (71.0, 0.45), (82.0, 0.26))]).set_index("variant")
    assert math.isnan(rows.loc[FULL, "against_full"])
    assert rows.loc["other", "against_full"] == pytest.approx(1.5)
    assert rows.loc["other", "kl"] == pytest.approx(0.355)
    assert rows.loc["other", "kl_against_full"] == pytest.approx(-0.045)
    # paired, so the spread between seeds does not count: t of one degree is 12.7062
    half = 12.7062 * 0.005  # half the distance of the two gaps, over their deviation's root of two
    assert rows.loc["other", "kl_against_high"] == pytest.approx(-0.045 + half, rel=1e-4)
