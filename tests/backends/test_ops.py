"""Native operations equal their pure twins, also where a matrix cannot be factorised."""

import jax
import jax.numpy as jnp
import ngd_jax
import ngd_torch
import numpy as np
import pytest
import torch
from harness import Backend, rng, spd

from ngd_core import inversion
from ngd_core.inversion import PURE
from ngd_core.testing import assert_close

TABLES = {
    "torch": (Backend("torch"), ngd_torch.NATIVE),
    "jax": (Backend("jax"), ngd_jax.NATIVE),
}
pytestmark = pytest.mark.parametrize("library", sorted(TABLES))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 3, 100])
def test_spd_inverse_equals_the_pure_twin(library, n, dtype):
    backend, native = TABLES[library]
    m = np.stack([spd(rng(n), n, 100.0), 3.0 * np.eye(n)])
    array = backend.array(m, dtype)
    got, pure = (ops.spd_inverse(array, xp=backend.xp) for ops in (native, PURE))
    assert str(got.dtype).endswith(dtype)
    assert_close(backend.numpy(got), backend.numpy(pure), dtype=dtype, size=n, kappa=100)


def test_a_matrix_that_cannot_be_factorised_comes_back_non_finite(library):
    backend, native = TABLES[library]
    m = np.stack([np.eye(2), np.diag([1.0, -1.0])])
    got = backend.numpy(native.spd_inverse(backend.array(m), xp=backend.xp))
    assert_close(got[0], np.eye(2))
    assert not np.isfinite(got[1]).any()


def test_cond_computes_one_branch_and_equals_the_pure_twin(library):
    backend, native = TABLES[library]
    two = backend.array(np.asarray(2.0))
    for pred in (True, False):
        flag = backend.array(np.asarray(pred))
        branches = (lambda: (two, two + 1), lambda: (-two, two - 1))
        got = native.cond(flag, *branches, xp=backend.xp)
        pure = PURE.cond(flag, *branches, xp=backend.xp)
        assert [float(x) for x in got] == [float(x) for x in pure]


def test_select_and_within_equal_their_pure_twins(library):
    backend, native = TABLES[library]
    x = np.asarray([[1.0, -3.0], [2.0, 0.5]])
    for flag in (True, False, [[True], [False]]):
        pred = backend.array(np.asarray(flag))
        for other in (np.zeros(()), -x):
            arguments = pred, backend.array(x), backend.array(other)
            got, pure = (
                backend.numpy(ops.select(*arguments, xp=backend.xp)) for ops in (native, PURE)
            )
            assert got.tolist() == pure.tolist()
    for empty in ((0,), (2, 0)):
        array = backend.array(np.zeros(empty))
        assert all(bool(ops.within(array, 3.0, xp=backend.xp)) for ops in (native, PURE))
    assert not bool(native.within(backend.array(np.asarray(4.0)), 3.0, xp=backend.xp))
    for bad in (0.5, 3.0, -3.5, np.nan, np.inf, -np.inf):
        array = backend.array(np.where(x == 0.5, bad, x))
        for axis in (None, (-1,), (-2, -1)):
            got, pure = (
                backend.numpy(ops.within(array, 3.0, axis=axis, xp=backend.xp))
                for ops in (native, PURE)
            )
            assert got.tolist() == pure.tolist()


def test_clear_equals_its_pure_twin(library):
    """Magnitudes below a bound, or below those of the matrices of a stack, and no others."""
    backend, native = TABLES[library]
    x = backend.array(np.asarray([[[1.0, -3.0], [np.nan, 0.5]], [[0.0, -0.25], [1e-8, 7.0]]]))
    for least in ([[[0.75]]], [[[4.0]], [[1e-7]]], [[[0.0]]]):
        bound = backend.array(np.asarray(least))
        got, pure = (backend.numpy(ops.clear(x, bound, xp=backend.xp)) for ops in (native, PURE))
        np.testing.assert_array_equal(got, pure)
        assert np.count_nonzero(got == 0) == np.count_nonzero(
            np.abs(backend.numpy(x)) < np.asarray(least)
        ) + (least == [[[0.0]]])


def test_damped_inverse_with_native_operations(library):
    """The whole chain, float64 retry included, with every code it can give here."""
    backend, native = TABLES[library]
    n = 5
    m = np.stack([spd(rng(0), n, 10.0), np.full((n, n), np.nan), np.ones((n, n))])
    arguments = (
        backend.array(m, "float32"),
        backend.array(np.asarray([0.1, 0.1, 0.0]), "float32"),
        backend.array(np.stack([np.eye(n)] * 3), "float32"),
        backend.array(np.asarray([False, True, False])),
    )
    got, pure = (
        backend.numpy(inversion.damped_inverse(*arguments, dtype="float32", ops=ops))
        for ops in (native, PURE)
    )
    assert got[2].tolist() == pure[2].tolist() == [0, 3, 1]
    assert_close(got[0][:2], pure[0][:2], dtype="float32", size=n, kappa=10)


def test_native_operations_trace_where_they_say_so(library):
    if library == "jax":
        m = jnp.eye(3)
        out = jax.jit(
            lambda m: inversion.damped_inverse(
                m, 0.1, m, jnp.asarray(False), dtype="float32", ops=ngd_jax.NATIVE, xp=jnp
            )[0]
        )(m)
        assert_close(np.asarray(out), np.eye(3) / 1.1, dtype="float32")
    else:
        graph = torch.compile(
            lambda m: ngd_torch.NATIVE.spd_inverse(m, xp=None), fullgraph=True, backend="aot_eager"
        )
        assert_close(graph(2 * torch.eye(3)).numpy(), np.eye(3) / 2, dtype="float32")


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.3, 0.5, 0.9, 1.0])
def test_mix_equals_its_pure_twin(library, share):
    """Also where the old is much larger than what is left of it."""
    backend, native = TABLES[library]
    share, new = backend.array(np.asarray(share)), backend.array(rng(0).standard_normal((2, 3)))
    for size in (0.0, 1.0, 1e9):
        old = backend.array(size * rng(1).standard_normal((2, 3)))
        got, pure = (ops.mix(old, new, share, xp=backend.xp) for ops in (native, PURE))
        assert_close(backend.numpy(got), backend.numpy(pure), size=4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_mix_hides_nothing_that_is_not_finite(library, bad):
    backend, native = TABLES[library]
    one, broken = (backend.array(np.full((2,), x)) for x in (1.0, bad))
    for share in (0.3, 0.7):
        share = backend.array(np.asarray(share))
        for pair in ((one, broken), (broken, one)):
            got = backend.numpy(native.mix(*pair, share, xp=backend.xp))
            assert not np.isfinite(got).any()
