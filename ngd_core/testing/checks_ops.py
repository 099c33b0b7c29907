"""Level "ops": the array functions that the core calls, and the table of operations.

Each check is a function of a `BackendUnderTest` and plain numbers; its docstring states the law.
"""

from __future__ import annotations

import numpy as np

from ngd_core import _xp, inversion
from ngd_core.inversion import PURE
from ngd_core.testing.assertions import assert_close
from ngd_core.testing.problems import spd
from ngd_core.testing.protocol import BackendUnderTest

__all__ = ["CHECKS", "FUNCTIONS"]

FUNCTIONS = (
    *("abs", "all", "any", "arange", "argmax", "argsort", "asarray", "astype", "broadcast_to"),
    *("clip", "concat", "cos", "cumulative_sum", "exp", "eye", "finfo", "flip", "full"),
    *("isdtype", "isfinite", "isnan", "log", "log1p", "matrix_transpose", "max", "maximum", "mean"),
    *("min", "minimum", "ones", "ones_like", "permute_dims", "reshape", "result_type"),
    *("searchsorted", "sort", "sqrt", "square", "stack", "sum", "take", "tanh", "vecdot"),
    *("where", "zeros", "zeros_like", "__array_namespace_info__", "linalg.cholesky"),
    *("linalg.diagonal", "linalg.eigh", "linalg.eigvalsh", "linalg.inv", "linalg.qr"),
    *("linalg.svd", "linalg.trace", "linalg.vector_norm"),
)
"""Functions of the Array API standard that the core calls."""

ATTRIBUTES = ("device", "dtype", "mT", "ndim", "shape")
"""Attributes of arrays that it reads."""


def namespace_has_what_the_core_calls(backend: BackendUnderTest) -> None:
    """The namespace has every function of the Array API standard that the core calls.

    And arrays have the attributes that it reads; a library's own arrays are not wrapped.
    """
    missing = []
    for name in FUNCTIONS:
        found = backend.xp
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is None:
            missing.append(name)
    array = backend.array(np.eye(2))
    missing += [f"array.{name}" for name in ATTRIBUTES if not hasattr(array, name)]
    assert not missing, f"the namespace of {backend.name} lacks {', '.join(missing)}"


def arrays_follow_their_template(backend: BackendUnderTest, dtype: str, n: int) -> None:
    """Created arrays have dtype, device and library of a template, and the values asked for."""
    xp, like = backend.xp, backend.array(0.0, dtype)
    made = {
        "zeros": (_xp.zeros((n, n), like=like, xp=xp), np.zeros((n, n))),
        "ones": (_xp.ones((n,), like=like, xp=xp), np.ones(n)),
        "full": (_xp.full((n,), 2.5, like=like, xp=xp), np.full(n, 2.5)),
        "eye": (_xp.eye(n, like=like, xp=xp), np.eye(n)),
        "scalar": (_xp.scalar(0.5, like=like, xp=xp), np.asarray(0.5)),
    }
    for name, (got, want) in made.items():
        assert got.dtype == like.dtype, f"{name} has dtype {got.dtype}, not {like.dtype}"
        assert_close(backend.numpy(got), want, dtype=dtype)


def sums_and_products_are_numpys(
    backend: BackendUnderTest, dtype: str, n: int, stack: int, scale: float, seed: int
) -> None:
    """Matrix products, sums, reshapes, slices and choices of stacks are those of NumPy."""
    xp = backend.xp
    x = (scale * np.random.default_rng(seed).standard_normal((stack, n, n))).astype(dtype)
    y = backend.array(x, dtype)
    pairs = {
        "x @ x^T": (y @ xp.matrix_transpose(y), x @ np.swapaxes(x, -1, -2)),
        "sum over the last axis": (xp.sum(y, axis=-1), np.sum(x, axis=-1)),
        "mean over two axes": (xp.mean(y, axis=(0, 2)), np.mean(x, axis=(0, 2))),
        "permuted and flat": (
            xp.reshape(xp.permute_dims(y, (2, 0, 1)), (-1,)),
            np.transpose(x, (2, 0, 1)).reshape(-1),
        ),
        "every other column": (y[..., ::2], x[..., ::2]),
        "positive part": (xp.where(y > 0, y, xp.zeros_like(y)), np.where(x > 0, x, 0)),
        "new axis and broadcast": (y[..., None] * y[:, :, None, :], x[..., None] * x[:, :, None]),
    }
    for got, want in pairs.values():
        assert_close(backend.numpy(got), want, dtype=dtype, size=n)


def cholesky_factorises_stacks(
    backend: BackendUnderTest, dtype: str, n: int, stack: int, condition: float, seed: int
) -> None:
    """``L L^T = M`` for each matrix of a stack, to rounding and whatever the condition number."""
    m = _stack(n, stack, condition, seed)
    lower = backend.numpy(backend.xp.linalg.cholesky(backend.array(m, dtype)))
    assert_close(np.triu(lower, 1), np.zeros_like(m), dtype=dtype)
    lower = lower.astype(np.float64)
    assert_close(lower @ np.swapaxes(lower, -1, -2), m, dtype=dtype, size=n)


def eigh_diagonalises_stacks(
    backend: BackendUnderTest, dtype: str, n: int, stack: int, condition: float, seed: int
) -> None:
    """``Q diag(w) Q^T = M`` and ``Q^T Q = I`` for each matrix, w ascending, to rounding."""
    m = _stack(n, stack, condition, seed)
    w, q = (
        backend.numpy(part).astype(np.float64)
        for part in backend.xp.linalg.eigh(backend.array(m, dtype))
    )
    assert np.all(np.diff(w, axis=-1) >= 0), f"eigenvalues do not ascend: {w}"
    assert_close((q * w[:, None, :]) @ np.swapaxes(q, -1, -2), m, dtype=dtype, size=n)
    assert_close(np.swapaxes(q, -1, -2) @ q, _eyes(n, stack), dtype=dtype, size=n)


def spd_inverse_inverts(
    backend: BackendUnderTest, dtype: str, n: int, stack: int, condition: float, seed: int
) -> None:
    """``|M X - I| <= c n eps cond(M)`` for `Ops.spd_inverse`, each matrix of a stack."""
    m = _stack(n, stack, condition, seed)
    x = backend.numpy(backend.table.spd_inverse(backend.array(m, dtype), xp=backend.xp))
    assert str(x.dtype) == dtype, f"the inverse has dtype {x.dtype}, not {dtype}"
    assert_close(m @ x, _eyes(n, stack), dtype=dtype, size=n, kappa=_kappa(n, condition))


def spd_inverse_is_the_pure_twin(
    backend: BackendUnderTest, dtype: str, n: int, stack: int, condition: float, seed: int
) -> None:
    """`Ops.spd_inverse` equals the standard's own, which may only be slower."""
    m = backend.array(_stack(n, stack, condition, seed), dtype)
    own, pure = (backend.numpy(t.spd_inverse(m, xp=backend.xp)) for t in (backend.table, PURE))
    assert_close(own, pure, dtype=dtype, size=n, kappa=_kappa(n, condition))


def a_stack_is_inverted_as_its_matrices(
    backend: BackendUnderTest, dtype: str, n: int, condition: float, seed: int
) -> None:
    """The inverse of a stack is the stack of the inverses."""
    m = _stack(n, 3, condition, seed)
    together = backend.numpy(backend.table.spd_inverse(backend.array(m, dtype), xp=backend.xp))
    for k in range(3):
        alone = backend.table.spd_inverse(backend.array(m[k], dtype), xp=backend.xp)
        kappa = _kappa(n, condition)
        assert_close(together[k], backend.numpy(alone), dtype=dtype, size=n, kappa=kappa)


def damped_inverse_survives_anything(
    backend: BackendUnderTest, dtype: str, n: int, seed: int
) -> None:
    """A singular, a non-finite and a good matrix together: finite inverses, the right codes.

    The singular one is damped more (code 1), the non-finite one keeps its last good inverse
    (code 3), the good one is inverted as asked (code 0) as if the others were not there.
    """
    good = spd(n + 1, 10.0, seed=seed)
    n = len(good)
    m = np.stack([good, np.ones((n, n)), np.full((n, n), np.nan)])
    x, kept, codes = inversion.damped_inverse(
        backend.array(m, dtype),
        backend.array([0.1, 0.0, 0.1], dtype),
        backend.array(np.stack([np.eye(n)] * 3), dtype),
        backend.array(np.asarray([False, False, True])),
        dtype=dtype,
        ops=backend.table,
        xp=backend.xp,
    )
    x, codes = backend.numpy(x), backend.numpy(codes)
    assert np.all(np.isfinite(x)), f"the inverses are not finite: {x}"
    assert codes.tolist() == [0, 1, 3], f"codes are {codes.tolist()} instead of [0, 1, 3]"
    assert np.all(backend.numpy(kept))
    assert_close(x[0] @ (good + 0.1 * np.eye(n)), np.eye(n), dtype=dtype, size=n, kappa=10)
    assert_close(x[2], np.eye(n), dtype=dtype)


def cond_takes_the_branch(backend: BackendUnderTest, dtype: str) -> None:
    """`Ops.cond` gives the tuple of the branch that its condition names."""
    x = backend.array(2.0, dtype)
    for flag in (True, False):
        got = backend.table.cond(
            backend.array(np.asarray(flag)),
            lambda: (x, x + 1),
            lambda: (-x, x - 1),
            xp=backend.xp,
        )
        want = [2.0, 3.0] if flag else [-2.0, 1.0]
        assert [float(backend.numpy(y)) for y in got] == want


def roots_square_to_the_matrix(
    backend: BackendUnderTest, dtype: str, n: int, condition: float, scale: float, seed: int
) -> None:
    """``R R = M + damping I`` and ``R X = I`` for the root R and its inverse X."""
    m, damping = scale * spd(n, condition, seed=seed), 0.1 * scale
    start = backend.array(np.eye(n), dtype)
    roots, good, code = inversion.damped_roots(
        backend.array(m, dtype),
        damping,
        inversion.Roots(start, start),
        backend.array(np.asarray(False)),
        dtype=dtype,
        ops=backend.table,
        xp=backend.xp,
    )
    assert bool(backend.numpy(good))
    assert int(backend.numpy(code)) == 0
    root, inverse = (backend.numpy(part).astype(np.float64) for part in roots)
    assert_close(root @ root, m + damping * np.eye(n), dtype=dtype, size=n)
    assert_close(root @ inverse, np.eye(n), dtype=dtype, size=n, kappa=11)


def _stack(n: int, stack: int, condition: float, seed: int) -> np.ndarray:
    kinds = ("geometric", "cluster")
    return np.stack(
        [spd(n, condition, seed=seed + k, spectrum=kinds[k % 2]) for k in range(stack)]  # type: ignore[arg-type]
    )


def _eyes(n: int, stack: int) -> np.ndarray:
    return np.broadcast_to(np.eye(n), (stack, n, n))


def _kappa(n: int, condition: float) -> float:
    return condition if n > 1 else 1.0


CHECKS = (
    namespace_has_what_the_core_calls,
    arrays_follow_their_template,
    sums_and_products_are_numpys,
    cholesky_factorises_stacks,
    eigh_diagonalises_stacks,
    spd_inverse_inverts,
    spd_inverse_is_the_pure_twin,
    a_stack_is_inverted_as_its_matrices,
    damped_inverse_survives_anything,
    cond_takes_the_branch,
    roots_square_to_the_matrix,
)
"""The checks of this level, in order of what needs what."""
