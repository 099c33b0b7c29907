"""Patches and their adjoint."""

from __future__ import annotations

from functools import partial

import numpy as np
from core.networks import NUMPY, geometries, some, torch_conv
from harness import dtypes, law, rng, seeds

from ngd_core.factors.patches import fold, patches
from ngd_core.testing.assertions import assert_close


@law(case=geometries(), n=some(3, 2, 1), width=some(2, 1), dtype=dtypes, seed=seeds)
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
    lead=some((2,), (), (1, 3)),
    width=some(2, 1),
    dtype=dtypes,
    seed=seeds,
)
def test_fold_is_the_adjoint_of_patches(backend, case, lead, width, dtype, seed):
    geometry, size = case
    r = rng(seed)
    shape = (2, geometry.groups * width, *size)
    x = r.standard_normal(shape)
    read = patches(x, geometry, xp=NUMPY.xp)
    p = r.standard_normal((*lead, *read.shape))
    back = backend.call(
        partial(fold, geometry=geometry, height=size[0], width=size[1]), backend.array(p, dtype)
    )
    assert back.shape == (*lead, *shape)
    left = np.sum(read * p, axis=tuple(range(len(lead), p.ndim)))
    right = np.sum(x * backend.numpy(back), axis=tuple(range(len(lead), len(lead) + 4)))
    scale = max(np.linalg.norm(p) * np.linalg.norm(read), 1e-30)
    assert_close(right, left, dtype=dtype, size=4, scale=scale)
