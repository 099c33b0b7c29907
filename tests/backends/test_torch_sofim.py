"""SOFIM in PyTorch: its operations without float64 copies, and parameters as one vector."""

import numpy as np
import pytest
import torch
from harness import Backend, rng
from ngd_torch import NATIVE, SOFIM
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

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


class Made(TorchDispatchMode):
    """Notes arrays of so many numbers that are made where there were none before."""

    def __init__(self, least, known):
        super().__init__()
        self.least, self.found = least, []
        self.known = {x.untyped_storage().data_ptr() for x in known}

    def __torch_dispatch__(self, function, _, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for x in made if isinstance(made, (tuple, list)) else (made,):
            large = isinstance(x, torch.Tensor) and x.numel() >= self.least
            if large and x.untyped_storage().data_ptr() not in self.known:
                self.found.append(str(function))
        return made


def drawn(*shapes, dtype=torch.float32, scale=1.0):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    for p in params:
        p.grad = scale * torch.randn_like(p)
    return params


def test_a_step_makes_no_array_as_large_as_a_parameter():
    """Neither copies in float64 nor a direction: the momentum is one, over its divisor."""
    params = drawn((40, 30), (40,), (50, 40))
    optimizer = SOFIM(params, 0.1, rho=1.0, weight_decay=0.1)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    state = optimizer._state
    with Made(
        40 * 30, [*params, *(p.grad for p in params), *state.room.values(), *state.moments.values()]
    ) as made:
        optimizer.step()
    assert made.found == []
    assert all((p != old).any() for p, old in zip(params, before, strict=True))


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e18])
@pytest.mark.parametrize("rho", [1e-300, 1e-40, 1e-20, 1.0, 1e20, 1e40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_the_quotient_whatever_its_divisor(dtype, rho, scale):
    """``lr M / (rho + |M|^2)`` of float64 sums, in float32 too, where that is a number for it."""
    params = drawn((7, 5), (300,), (), dtype=dtype, scale=scale)
    ms = np.concatenate([p.grad.double().numpy().reshape(-1) for p in params])
    u = ms / (rho + ms @ ms)
    lr = min(float(1 / np.abs(u).max()), 1e15)
    for p in params:
        p.data.zero_()
    optimizer = SOFIM(params, lr, rho=rho, beta=0.5)
    optimizer.step()
    got = np.concatenate([p.detach().double().numpy().reshape(-1) for p in params])
    name = str(dtype).removeprefix("torch.")
    if optimizer.skipped:  # as documented, where the square of a norm is too large
        assert np.linalg.norm(u) > torch.finfo(dtype).max ** 0.5
        assert not got.any()
    else:
        assert_close(got, -lr * u, dtype=name, size=4, scale=max(lr * np.abs(u).max(), 1e-20))


def test_parameters_of_several_dtypes_have_one_norm():
    params = [*drawn((3, 2), (4,)), *drawn((5,), dtype=torch.float64), *drawn((2,), (2,))]
    params[-1].grad = None
    ms = np.concatenate([p.grad.double().numpy().reshape(-1) for p in params[:-1]])
    before = [p.detach().clone() for p in params]
    SOFIM(params, 0.3, rho=0.5).step()
    for p, old in zip(params, before, strict=True):
        step = torch.zeros_like(p) if p.grad is None else 0.3 * p.grad / (0.5 + ms @ ms)
        assert_close((old - p.detach()).numpy(), step.numpy(), dtype="float32", scale=4.0)


def test_a_refused_gradient_leaves_the_momentum_as_it_was():
    params = drawn((3, 2), (300,))
    optimizer = SOFIM(params, 0.3, rho=0.5)
    optimizer.step()
    before, kept = optimizer.moments, [p.detach().clone() for p in params]
    params[1].grad[7] = torch.nan
    optimizer.step()
    after = optimizer.moments
    for k, p in enumerate(params):
        assert torch.equal(p, kept[k])
        assert torch.equal(after.tensors[k].moment, before.tensors[k].moment)
        assert float(after.tensors[k].weight) == 1
        assert int(after.tensors[k].rejected) == 1
    assert optimizer.skipped == 1


def test_momentum_that_was_handed_out_stays():
    params = drawn((3, 2), (4,))
    optimizer = SOFIM(params, 0.3, rho=0.5, beta=0.5)
    optimizer.step()
    out = optimizer.moments
    optimizer.zero_grad()
    optimizer.step()
    for k, x in optimizer.moments.tensors.items():
        assert_close(x.moment.numpy(), out.tensors[k].moment.numpy() / 3, dtype="float32")


def test_a_group_that_did_not_come_by_add_param_group_is_told():
    params = drawn((3,), (4,))
    optimizer = SOFIM(params[:1], 0.3, rho=0.5)
    optimizer.step()
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": params[1:]})
    with pytest.raises(RuntimeError, match="make a new SOFIM with all groups"):
        optimizer.step()
