"""Layers with hand-written backward passes, against differences and two autograd libraries."""

from __future__ import annotations

from functools import partial

import numpy as np
from harness import dtypes, law, rng, seeds
from hypothesis import strategies as st

from ngd_core import Conv2dGeometry
from ngd_core.factors.patches import fold, patches
from ngd_core.testing.assertions import assert_close


@st.composite
def geometries(draw):
    """A kernel with every option, and an input at least as large as it."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(pair), draw(pair), draw(pair)
    edge = st.tuples(st.integers(0, 2), st.integers(0, 2))
    padding = draw(st.one_of(st.sampled_from(["valid", "same"]), st.tuples(edge, edge)))
    groups = draw(st.integers(1, 3))
    size = tuple(
        d * (k - 1) + 1 + draw(st.integers(0, 4)) for k, d in zip(kernel, dilation, strict=True)
    )
    return Conv2dGeometry(kernel, stride, dilation, padding, groups), size


def torch_conv(x, weight, bias, geometry):
    """The same convolution by torch; asymmetric padding as a step of its own."""
    import torch

    (top, bottom), (left, right) = geometry.pads(*x.shape[-2:])
    x = torch.nn.functional.pad(x, (left, right, top, bottom))
    return torch.nn.functional.conv2d(
        x, weight, bias, geometry.stride, 0, geometry.dilation, geometry.groups
    )


@law(case=geometries(), n=st.integers(1, 3), width=st.integers(1, 2), dtype=dtypes, seed=seeds)
def test_patches_times_the_flat_kernel_is_the_convolution(backend, case, n, width, dtype, seed):
    import torch

    geometry, size = case
    g, r = geometry.groups, rng(seed)
    x = r.standard_normal((n, g * width, *size))
    kernel = r.standard_normal((2 * g, width, *geometry.kernel_size))
    got = backend.call(partial(patches, geometry=geometry), backend.array(x, dtype))
    rows = np.asarray(backend.numpy(got), np.float64)
    flat = kernel.reshape(*((g, 2, -1) if g > 1 else (2, -1)))
    if g > 1:
        out = (rows @ flat[:, None].swapaxes(-1, -2)).transpose(1, 0, 3, 2)
    else:
        out = (rows @ flat.T).transpose(0, 2, 1)
    want = torch_conv(torch.tensor(x), torch.tensor(kernel), None, geometry).numpy()
    assert str(got.dtype).endswith(dtype)
    scale = np.abs(x).max() * np.abs(kernel).max()
    assert_close(out.reshape(want.shape), want, dtype=dtype, size=flat.shape[-1], scale=scale)


@law(
    case=geometries(),
    lead=st.lists(st.integers(1, 3), max_size=2),
    width=st.integers(1, 2),
    dtype=dtypes,
    seed=seeds,
)
def test_fold_is_the_adjoint_of_patches(backend, case, lead, width, dtype, seed):
    geometry, size = case
    r = rng(seed)
    shape = (2, geometry.groups * width, *size)
    x = r.standard_normal(shape)
    read = backend.call(partial(patches, geometry=geometry), backend.array(x, dtype))
    p = r.standard_normal((*lead, *read.shape))
    back = backend.call(
        partial(fold, geometry=geometry, height=size[0], width=size[1]), backend.array(p, dtype)
    )
    assert back.shape == (*lead, *shape)
    axes = tuple(range(len(lead), p.ndim))
    left = np.sum(backend.numpy(read).astype(np.float64) * p, axis=axes)
    right = np.sum(x * backend.numpy(back), axis=tuple(range(len(lead), len(lead) + 4)))
    scale = np.max(np.sqrt(np.sum(p**2, axis=axes)) * np.linalg.norm(backend.numpy(read)))
    assert_close(left, right, dtype=dtype, size=4, scale=max(scale, 1e-30))
