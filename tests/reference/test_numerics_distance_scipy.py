"""Distances against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import kl_div, softmax

from vitsense.numerics import kl_nats, mse, signal_noise, sqnr_db, top1_agree


def test_divergence_equals_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 9, generator=generator) * 5 for _ in range(2))
    expected = kl_div(softmax(a.double().numpy(), axis=1), softmax(b.double().numpy(), axis=1)).sum(
        1
    )
    np.testing.assert_allclose(kl_nats(a, b).numpy(), expected, rtol=1e-9)
    assert (kl_nats(a, a) == 0).all()
    assert torch.isfinite(kl_nats(a * 1e4, b * 1e4)).all()


def test_distances_by_hand() -> None:
    a, b = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[3.0, 3.0], [1.0, 0.0]])
    signal, noise = signal_noise(a, b)
    assert signal.tolist() == [25.0, 1.0]
    assert noise.tolist() == [1.0, 2.0]
    assert sqnr_db(a, b) == pytest.approx(10 * np.log10(26 / 3))
    assert mse(a, b) == pytest.approx(0.75)
    assert top1_agree(a, b).tolist() == [False, False]
