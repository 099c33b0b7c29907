"""CuPy's factorisations and their check, on stand-ins that fail as cuSOLVER does: in silence."""

import numpy as np
import pytest
from harness import GPU_BACKENDS, Backend, rng, spd
from ngd_cupy import KFAC, NATIVE, NaturalGradient, cholesky_ops
from scipy.linalg import lapack

import ngd_core
from ngd_core import inversion, nn
from ngd_core.inversion import PURE
from ngd_core.testing import assert_close


def each(f, *stacks):
    """A function of matrices over stacks of them."""
    shape, n = stacks[0].shape, stacks[0].shape[-1]
    rows = zip(*(stack.reshape(-1, n, n) for stack in stacks), strict=True)
    return np.stack([f(*row) for row in rows]).reshape(shape)


def lapack_of(name, x):
    return getattr(lapack, {"float32": "s", "float64": "d"}[x.dtype.name] + name)


def silent(m):
    """LAPACK's factor with its status dropped: what had been done when a pivot failed."""
    return each(lambda x: np.tril(lapack_of("potrf", x)(x, lower=True)[0]), m)


def untouched(m):
    """Where the factorisation fails, the triangle of m itself, whose pivots may be positive."""
    fails = each(lambda x: np.full_like(x, lapack_of("potrf", x)(x, lower=True)[1] != 0), m)
    return np.where(fails > 0, np.tril(m), silent(m))


def garbage(m):
    """Where it fails, a positive diagonal and nothing else."""
    return np.where(untouched(m) == silent(m), silent(m), np.eye(m.shape[-1], dtype=m.dtype))


def solve_lower(lower, b):
    assert lower.shape == b.shape
    return each(lambda x, y: lapack_of("trtrs", x)(x, y, lower=True)[0], lower, b)


STAND_INS = {f.__name__: cholesky_ops(f, solve_lower) for f in (silent, untouched, garbage)}
TABLES = [
    *(pytest.param(Backend("numpy"), ops, id=name) for name, ops in STAND_INS.items()),
    pytest.param(GPU_BACKENDS[0].values[0], NATIVE, id="cupy", marks=GPU_BACKENDS[0].marks),
]
over_tables = pytest.mark.parametrize(("backend", "ops"), TABLES)


@over_tables
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("condition", [1.0, 1e4])
@pytest.mark.parametrize("n", [1, 3, 130])
def test_the_inverse_is_that_of_the_pure_twin(backend, ops, n, condition, dtype):
    """Alone and in a stack with factors of other sizes."""
    m = np.stack([spd(rng(n), n, condition), 1e-6 * np.eye(n), 1e6 * spd(rng(1), n, condition)])
    array = backend.array(m, dtype)
    got, pure = (backend.numpy(each.spd_inverse(array, xp=backend.xp)) for each in (ops, PURE))
    one = backend.numpy(ops.spd_inverse(array[0, :, :], xp=backend.xp))
    assert got.dtype == np.dtype(dtype)
    for x, y in zip((*got, one), (*pure, pure[0]), strict=True):
        assert np.isfinite(x).all()
        largest = np.abs(y).max()
        assert_close(x / largest, y / largest, dtype=dtype, size=n, kappa=condition)


@over_tables
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [2, 5, 80])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_matrix_that_is_not_positive_definite_comes_back_non_finite(
    backend, ops, place, n, dtype
):
    """Whichever pivot fails, in a stack whose other matrices stay usable."""
    w = np.linspace(1.0, 2.0, n)
    w[{"first": 0, "middle": n // 2, "last": -1}[place]] = -0.01
    q, _ = np.linalg.qr(rng(n).standard_normal((n, n)))
    m = np.stack([spd(rng(0), n, 10.0), np.diag(w), (q * w) @ q.T, np.eye(n)])
    with np.errstate(all="ignore"):
        got = backend.numpy(ops.spd_inverse(backend.array(m, dtype), xp=backend.xp))
    assert np.isfinite(got).all(axis=(1, 2)).tolist() == [True, False, False, True]
    assert not np.isfinite(got[1:3]).any()


@over_tables
def test_the_chain_of_fallbacks_sees_a_silent_failure(backend, ops):
    """Codes and inverses are those of the pure twin where damping does not save a matrix."""
    n = 5
    m = np.stack([spd(rng(0), n, 10.0), np.full((n, n), np.nan), np.diag([1.0, 1, 1, 1, -3])])
    arguments = (
        backend.array(m, "float32"),
        backend.array(np.full(3, 0.1), "float32"),
        backend.array(np.stack([2 * np.eye(n)] * 3), "float32"),
        backend.array(np.asarray([False, True, True])),
    )
    with np.errstate(all="ignore"):
        got, pure = (
            backend.numpy(inversion.damped_inverse(*arguments, dtype="float32", ops=each))
            for each in (ops, PURE)
        )
    assert got[2].tolist() == pure[2].tolist() == [0, 3, 3]
    assert_close(got[0], pure[0], dtype="float32", size=n, kappa=10)


@over_tables
def test_a_training_takes_the_steps_of_the_pure_table(backend, ops):
    model = nn.Sequential(nn.Dense("a", 4, 6), nn.Tanh(), nn.Dense("b", 6, 3))
    r = rng(0)
    params = {name: r.standard_normal(shape) for name, shape in nn.shapes(model).items()}
    options = {"factor_every": 1, "inverse_every": 2, "kl_clip": 1e-3}
    pure = KFAC(model, backend.tree(params), 0.1, **options)
    native = NaturalGradient(model, backend.tree(params), ngd_core.KFAC(ops=ops), 0.1, **options)
    for _ in range(5):
        x, y = r.standard_normal((12, 4)), r.integers(0, 3, 12)
        for optimizer in (pure, native):
            optimizer.step(backend.array(x), backend.array(y))
    for name, p in pure.params.items():
        assert_close(backend.numpy(native.params[name]), backend.numpy(p), size=100, kappa=1e4)
