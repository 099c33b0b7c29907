"""SOFIM in PyTorch: its operations without float64 copies, and parameters as one vector."""

import numpy as np
import pytest
import torch
from harness import Backend, rng
from ngd_torch import NATIVE

from ngd_core.inversion import PURE
from ngd_core.testing import assert_close

XP = Backend("torch").xp


@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-25, 1.0, 1e18, 3e38])
@pytest.mark.parametrize("n", [1, 255, 256, 1000, 100_001])
def test_squares_are_those_in_float64(n, scale):
    """Whatever the length, and where squares of float32 numbers overflow or vanish."""
    r = rng(n)
    for x in (r.uniform(-1, 1, n), r.uniform(-1, 1, n) * 10.0 ** r.uniform(-4, 0, n)):
        narrow = torch.from_numpy(scale * x).float()
        got, wide = NATIVE.square(narrow, xp=XP), narrow.double().numpy()
        assert got.dtype == torch.float64
        assert got.shape == ()
        want = float(wide @ wide)
        assert_close(float(got) / (want or 1.0), float(want > 0), dtype="float32")


def test_a_long_sum_of_squares_keeps_its_digits():
    """Behind a large number each block loses what float32 loses, the sum nothing."""
    x = torch.full((4_000_000,), 1.1)
    x[0] = 1e4
    want = float(x.double().square().sum())
    assert_close(float(NATIVE.square(x, xp=XP)) / want, 1.0, dtype="float32")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_sum_of_squares_shows_what_is_not_finite(bad):
    for place in (3, -1):
        x = torch.ones(1000)
        x[place] = bad
        assert not NATIVE.square(x, xp=XP).isfinite()


@pytest.mark.parametrize("by", [3.0, -7e-5, 5e-324, 1e-310, 1e-40, 1e-31, 1e31, 1e70, np.inf])
def test_quotients_are_those_in_float64(by):
    """Also by what float32 has no number for, or no reciprocal."""
    x = np.asarray([0.0, 1.0, -3.0, 1e-44, 1e-30, 1e30], np.float32)
    with np.errstate(over="ignore"):
        want = (x.astype(float) / by).astype(np.float32)
    for ops in (NATIVE, PURE):
        got = ops.divide(torch.from_numpy(x), torch.tensor(by, dtype=torch.float64), xp=XP)
        assert got.dtype == torch.float32
        for number, wanted in zip(got.tolist(), want.tolist(), strict=True):
            if np.isfinite(wanted) and abs(wanted) > 1e-37:
                assert_close(number / wanted, 1.0, dtype="float32")
            elif np.isfinite(wanted):
                assert_close(number, wanted, dtype="float32", scale=1e-37)
            else:
                assert number == wanted


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_averages_equal_the_pure_twin(share):
    """Also where a difference would overflow, or cancel; a share of 1 forgets to the last bit."""
    x = torch.tensor([1.0, 3e38, -3e38, 1e30, 0.3])
    y = torch.tensor([-2.0, -3e38, 3e38, 1e-30, 0.7])
    got, pure = (ops.mix(x, y, torch.tensor(share), xp=XP) for ops in (NATIVE, PURE))
    larger = torch.maximum(x.abs(), y.abs())
    assert_close((got / larger).numpy(), (pure / larger).numpy(), dtype="float32", scale=1.0)
    if share == 1.0:
        assert torch.equal(got, y)
    if share == 0.0:
        assert torch.equal(got, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_are_finite_whatever_their_sum(dtype):
    largest = torch.finfo(dtype).max
    x = torch.full((1000,), largest, dtype=dtype)
    assert bool(NATIVE.within(x, largest, xp=XP))
    for bad in (torch.nan, torch.inf, -torch.inf):
        x = torch.ones(1000, dtype=dtype)
        x[7] = bad
        assert not bool(NATIVE.within(x, largest, xp=XP))
    x[8] = torch.inf
    assert not bool(NATIVE.within(x, largest, xp=XP))
