"""Distances at their borders; `tests/reference` compares them with scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vitsense.numerics import cosine, kl_nats, mse, signal_noise, sqnr_db, top1_agree
from vitsense.numerics.distance import nats_to_flip


def test_divergence_is_per_image_and_in_float64() -> None:
    reference = torch.randn(5, 7)
    found = kl_nats(reference, reference + torch.randn(5, 7))
    assert found.shape == (5,)
    assert found.dtype is torch.float64
    assert (found > 0).all()


def test_divergence_ignores_a_shift_of_all_logits() -> None:
    reference = torch.randn(4, 9)
    # adding 1000 costs the float32 logits 1000 * 2^-24 each
    torch.testing.assert_close(
        kl_nats(reference, reference + 1000), torch.zeros(4).double(), rtol=0, atol=1e-8
    )


def test_an_impossible_class_adds_nothing_and_a_lost_class_is_infinite() -> None:
    masked = torch.tensor([[0.0, 1.0, -math.inf]])
    assert float(kl_nats(masked, masked)) == 0
    assert float(kl_nats(torch.tensor([[0.0, 1.0, 1.0]]), masked)) == math.inf


def test_nan_is_never_hidden() -> None:
    good, bad = torch.zeros(1, 3), torch.tensor([[0.0, math.nan, 0.0]])
    for a, b in ((good, bad), (bad, good)):
        assert torch.isnan(kl_nats(a, b)).all()
        assert math.isnan(mse(a, b))
        assert torch.isnan(signal_noise(a, b)[1]).all()
        assert torch.isnan(cosine(a, b)).all()
        assert math.isnan(sqnr_db(a, b))


def test_no_noise_is_an_infinite_ratio_also_without_signal() -> None:
    assert sqnr_db(torch.ones(2, 3), torch.ones(2, 3)) == math.inf
    assert sqnr_db(torch.zeros(2, 3), torch.zeros(2, 3)) == math.inf
    assert sqnr_db(torch.zeros(2, 3), torch.ones(2, 3)) == -math.inf


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_cosine_by_hand_at_every_size(size: float) -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [3.0, 4.0]]) * size
    b = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-5.0, 0.0], [4.0, 3.0]]) * size
    found = cosine(a, b)
    torch.testing.assert_close(
        found, torch.tensor([1.0, 0.0, -1.0, 0.96], dtype=torch.float64), rtol=0, atol=1e-7
    )


def test_cosine_of_nothing_is_zero() -> None:
    assert cosine(torch.zeros(2, 3), torch.ones(2, 3)).tolist() == [0, 0]


def test_maps_are_compared_whole() -> None:
    a, b = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    signal, noise = signal_noise(a, b)
    assert signal.shape == noise.shape == cosine(a, b).shape == (3,)
    torch.testing.assert_close(noise.sum() / a.numel(), torch.tensor(mse(a, b)).double())


def test_agreement_is_per_image() -> None:
    a = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert top1_agree(a, a.flip(1)).tolist() == [False, False]
    assert top1_agree(a, a * 2).tolist() == [True, True]


def test_the_nats_to_flip_are_the_least_that_change_the_class() -> None:
    """Against a general solver, and against many random outputs of another class."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    for _ in range(6):
        logits = rng.normal(scale=2, size=5)
        p = np.exp(logits) / np.exp(logits).sum()
        found = float(nats_to_flip(torch.tensor(logits)[None])[0])
        top = int(p.argmax())
        best = min(
            minimize(
                lambda z, p=p: float((p * (np.log(p) - (z - np.log(np.exp(z).sum())))).sum()),
                logits,
                constraints={"type": "ineq", "fun": lambda z, j=j, top=top: z[j] - z[top]},
            ).fun
            for j in range(5)
            if j != top
        )
        assert found == pytest.approx(best, rel=2e-3, abs=1e-6)
        others = torch.tensor(rng.normal(scale=3, size=(4000, 5)))
        flipped = others.argmax(1) != top
        divergence = kl_nats(torch.tensor(logits).expand(4000, 5), others)
        assert bool((divergence[flipped] >= found).all())


def test_an_output_on_the_boundary_needs_no_nats_and_a_sure_one_at_most_ln_2() -> None:
    found = nats_to_flip(torch.tensor([[3.0, 3.0, 0.0], [1000.0, 0.0, 0.0]]))
    assert found.tolist() == pytest.approx([0.0, np.log(2)])
