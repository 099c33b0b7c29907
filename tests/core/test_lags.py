"""Second moments of convolution inputs by lags between rows equal those of unfolded patches."""

from __future__ import annotations

from functools import partial
from math import prod

import numpy as np
import pytest
from core.networks import NUMPY
from harness import EXAMPLES, Backend, dtypes, law, rng, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from ngd_core import Conv2dGeometry, LayerRecord, LayerSpec, factors, reference
from ngd_core.factors import lags
from ngd_core.testing import assert_close

quick = settings(max_examples=2 * EXAMPLES, deadline=None, derandomize=True, database=None)
over_eager = pytest.mark.parametrize("backend", [NUMPY, Backend("torch")], ids=str)


@st.composite
def images(draw):
    """Any convolution, and an image that with its border is no smaller than the kernel."""
    kernel, gap, pads, size = [], [], [], []
    for _ in range(2):
        k, d = draw(st.sampled_from([3, 2, 5, 1, 4])), draw(st.sampled_from([1, 2, 3]))
        before, after = draw(st.tuples(*[st.integers(0, 4)] * 2))
        least = max(1, d * (k - 1) + 1 - before - after)
        kernel, gap = [*kernel, k], [*gap, d]
        pads, size = [*pads, (before, after)], [*size, least + draw(st.integers(0, 5))]
    padding = draw(st.sampled_from([tuple(pads), "same", "valid"]))
    if padding == "valid":
        size = [s + before + after for s, (before, after) in zip(size, pads, strict=True)]
    geometry = Conv2dGeometry(
        tuple(kernel),
        stride=draw(st.tuples(st.sampled_from([1, 1, 2, 3]), st.sampled_from([1, 2, 3]))),
        dilation=tuple(gap),
        padding=padding,
        groups=draw(st.sampled_from([1, 2, 3])),
    )
    return geometry, tuple(size)


def layer(geometry, bias=True, sharing="expand", width=2):
    g = geometry.groups
    return LayerSpec("conv", "conv2d", width * g, g, bias, sharing, geometry)


def record_of(spec, a):
    shape = (len(a), spec.out_features, *spec.geometry.output_size(*a.shape[2:]))
    return LayerRecord(a, np.ones(shape, a.dtype))


def loops(spec, a):
    """A by the oracle's own patches, group by group, in float64."""
    geometry = spec.geometry
    x = reference.conv_patches(
        a,
        geometry.kernel_size,
        geometry.stride,
        geometry.dilation,
        geometry.pads(*a.shape[2:]),
        geometry.groups,
    )
    x = np.asarray(x, np.float64).reshape(geometry.groups, len(a), -1, spec.columns - spec.bias)
    if spec.sharing == "reduce":
        x = x.mean(axis=2, keepdims=True)
    if spec.bias:
        x = np.concatenate([x, np.ones((*x.shape[:3], 1))], axis=3)
    x = x.reshape(geometry.groups, -1, spec.columns)
    found = np.swapaxes(x, 1, 2) @ x / x.shape[1]
    return found if spec.stack else found[0]


@law(
    case=images(),
    n=st.sampled_from([2, 1, 5]),
    bias=st.booleans(),
    sharing=st.sampled_from(["expand", "expand", "reduce"]),
    dtype=dtypes,
    seed=seeds,
)
def test_moments_are_those_of_unfolded_patches(backend, case, n, bias, sharing, dtype, seed):
    geometry, size = case
    spec = layer(geometry, bias, sharing)
    a = rng(seed).standard_normal((n, spec.in_features, *size)).astype(dtype)
    got = backend.call(
        lambda r, *, xp: factors.input_moment(spec, r, xp=xp), backend.tree(record_of(spec, a))
    )
    assert str(got.dtype).endswith(dtype)
    want = loops(spec, a)
    assert_close(backend.numpy(got), want, dtype=dtype, size=a.size, scale=np.abs(want).max())


@quick
@given(images(), st.sampled_from([5, 2, 8]), st.sampled_from([1, 40, 300]), seeds)
def test_a_batch_in_parts_has_the_moment_of_the_whole(case, n, most, seed):
    """However few elements are unfolded at once."""
    geometry, size = case
    x = rng(seed).standard_normal((n, 2 * geometry.groups, *size))
    whole, parts = (
        lags.image_moment(x, geometry, bias=True, most=bound) for bound in (10**9, most)
    )
    assert_close(parts, whole, size=x.size)


@pytest.mark.parametrize("name", ["strict", "torch:compile", "jax:jit"])
def test_batches_in_parts_compile(name):
    backend, geometry = Backend(name), Conv2dGeometry(3, padding=1)
    x = rng(0).standard_normal((5, 2, 4, 6))
    parts = backend.call(
        partial(lags.image_moment, geometry=geometry, bias=True, most=400), backend.array(x)
    )
    assert_close(backend.numpy(parts), loops(layer(geometry), x), size=x.size)


@pytest.mark.parametrize("most", [1, 1000, 5000])
def test_no_more_is_unfolded_at_once_than_allowed(monkeypatch, most):
    seen = []
    unfold = lags._unfolded

    def watched(*args, **kwargs):
        seen.append(unfold(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(lags, "_unfolded", watched)
    x = rng(0).standard_normal((8, 2, 6, 5))
    lags.image_moment(x, Conv2dGeometry(3, padding=1), bias=False, most=most, xp=np)
    one = 2 * 6 * 5 * 3
    assert sum(u.size for u in seen) == 8 * one
    assert max(u.size for u in seen) <= max(most, one)
    assert min(u.size for u in seen) >= min(most / 2 - one, 8 * one)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "times"),
    [(3, 1, 1, 3), (3, 1, "same", 3), ((3, 1), 1, "same", 3), ((1, 3), 1, "same", 3), (5, 1, 2, 5)],
)
def test_unfolding_is_along_one_axis(monkeypatch, kernel, stride, padding, times):
    """Memory is that of a kernel's row times the input, not of the whole kernel."""
    seen = []
    unfold = lags._unfolded
    monkeypatch.setattr(lags, "_unfolded", lambda *a, **k: seen.append(unfold(*a, **k)) or seen[-1])
    geometry = Conv2dGeometry(kernel, stride, padding=padding)
    x = rng(0).standard_normal((2, 4, 9, 9))
    lags.image_moment(x, geometry, bias=True, xp=np)
    taps = 1 if 1 in geometry.kernel_size else times
    assert [u.size for u in seen] == [taps * x.size]


@over_eager
@quick
@given(
    seed=seeds,
    size=st.sampled_from([(1, 40, 40), (6, 40, 40), (20, 12, 12)]),
    channels=st.sampled_from([1, 2, 8]),
    kind=st.sampled_from(["alike", "background", "one line"]),
    bias=st.booleans(),
)
def test_moment_of_alike_images_is_semidefinite_to_rounding(
    backend, seed, size, channels, kind, bias
):
    """In float32, to a fraction of the least damping that is ever used (10 eps tr)."""
    r, (n, height, width) = rng(seed), size
    a = np.broadcast_to(r.random((channels, 1, 1)) + 0.5, (n, channels, height, width))
    if kind == "background":
        a = np.where(r.random((n, 1, height, width)) < 0.7, a, r.random((channels, 1, 1)))
    elif kind == "one line":
        a = r.random((n, 1, height, width)) * a
    spec = layer(Conv2dGeometry(3, padding=1), bias, width=channels)
    a = a.astype(np.float32)
    moment = backend.numpy(
        backend.call(
            lambda r, *, xp: factors.input_moment(spec, r, xp=xp), backend.tree(record_of(spec, a))
        )
    ).astype(np.float64)
    assert_close(moment, loops(spec, a), dtype="float32")
    assert_close(moment, moment.T, dtype="float32")
    least = np.linalg.eigvalsh(moment)[0] / np.trace(moment)
    assert least > -5 * np.finfo(np.float32).eps


@quick
@given(images(), st.sampled_from([np.nan, np.inf]), seeds)
def test_a_number_that_is_not_finite_is_seen_where_it_is_read(case, bad, seed):
    geometry, size = case
    r = rng(seed)
    spec = layer(geometry)
    a = r.standard_normal((2, spec.in_features, *size))
    a[(*(r.integers(s) for s in a.shape),)] = bad
    with np.errstate(invalid="ignore"):
        got = factors.input_moment(spec, record_of(spec, a))
        want = loops(spec, a)
    assert np.isfinite(got).all() == np.isfinite(want).all()


@pytest.mark.parametrize("seed", range(40))
def test_products_are_as_many_as_counted(monkeypatch, seed):
    """Multiply-adds of all products, for kernels of every kind; never more than unfolded."""
    r = rng(seed)
    kernel = tuple(int(k) for k in r.integers(1, 6, 2))
    geometry = Conv2dGeometry(
        kernel,
        stride=tuple(int(s) for s in r.choice([1, 1, 2], 2)),
        dilation=tuple(int(d) for d in r.integers(1, 3, 2)),
        padding=["same", "valid", 2][r.integers(3)],
        groups=int(r.integers(1, 3)),
    )
    size = tuple(int(s) for s in 9 + r.integers(0, 4, 2))
    spec = layer(geometry)
    made = []
    cross = lags.cross_moment

    def watched(x, y, count, **options):
        made.append(prod(x.shape) * y.shape[-1])
        return cross(x, y, count, **options)

    monkeypatch.setattr(lags, "cross_moment", watched)
    a = r.standard_normal((3, spec.in_features, *size))
    factors.input_moment(spec, record_of(spec, a))
    out = geometry.output_size(*size)
    counted = 3 * spec.groups * lags.image_moment_products(geometry, 2, *out)
    assert sum(made) == counted
    assert counted <= 3 * spec.groups * prod(out) * (spec.columns - 1) ** 2


def test_a_kernel_of_three_rows_takes_a_third():
    geometry = Conv2dGeometry(3, padding=1)
    direct = 32 * 32 * (9 * 16) ** 2
    assert lags.image_moment_products(geometry, 16, 32, 32) / direct == pytest.approx(93 / 288)


def test_kernels_of_many_rows_are_unfolded():
    """As their many short products would cost more than they save."""
    geometry = Conv2dGeometry(11, padding=5)
    x = rng(0).standard_normal((2, 1, 30, 30))
    spec = layer(geometry, width=1)
    assert_close(factors.input_moment(spec, record_of(spec, x)), loops(spec, x), size=x.size)
    assert lags.image_moment_products(geometry, 1, 30, 30) == 900 * 121**2


def test_rows_that_no_tap_reads_are_left_out():
    """Two tap rows five apart over one output row read two rows of six, 6 products of rows less."""
    geometry = Conv2dGeometry((2, 1), dilation=(5, 1))
    assert lags.image_moment_products(geometry, 1, 1, 1) == 3


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(0, 0), (2, 2), (0, 3), (4, 0)])
def test_signals_are_images_of_one_row(sides, stride, bias):
    """Lags are along their one axis; so are those of signals that lie along the other."""
    flat = Conv2dGeometry((1, 4), (1, stride), (1, 2), ((0, 0), sides))
    tall = Conv2dGeometry((4, 1), (stride, 1), (2, 1), (sides, (0, 0)))
    a = rng(0).standard_normal((3, 2, 1, 9))
    want = loops(layer(flat, bias), a)
    for geometry, x in ((flat, a), (tall, np.swapaxes(a, 2, 3))):
        spec = layer(geometry, bias)
        assert_close(factors.input_moment(spec, record_of(spec, x)), want, size=a.size)
