"""Inverses that follow an average: equal to the inverse of what they follow, or left alone."""

import warnings

import numpy as np
import pytest
from core.eager import LIBRARIES, eager_law
from harness import dtypes, law, rng, seeds
from hypothesis import strategies as st

from ngd_core import inversion, reference
from ngd_core.inversion import RecursiveInverse
from ngd_core.testing import assert_close

ALPHA, DELTA = 0.9, 0.1
SIZES = (5, 2)


def rows(r, m, n):
    return r.standard_normal((m, n)) / np.sqrt(m)


def made(C, delta, xp):
    start = inversion.identity_recursive(C.shape[:-2], C.shape[-1], like=C, xp=xp)
    inverse, _ = inversion.resync(start, C, delta, xp=xp)
    return inverse


def followed(backend, C, batches, dtype):
    """The inverse of C, damped, after it followed the batches; numbers in the other variants."""

    def run(C, batches, alpha, *, xp):
        inverse = made(C, DELTA, xp)
        for y in batches:
            v = xp.sqrt(1 - alpha) * y
            inverse = inversion.follow(inverse, v, alpha, halt_below=0.0, xp=xp)
        return inverse

    alpha = backend.array(np.asarray(ALPHA), dtype)
    return backend.numpy(
        backend.call(run, backend.array(C, dtype), backend.tree(batches, dtype), alpha)
    )


@law(seed=seeds, dtype=dtypes)
def test_recursion_is_the_inverse_of_the_average(backend, seed, dtype):
    """3.6: K^-1 = C_k + alpha^k delta I after k updates, exactly; RLS = inverse of the EMA."""
    (n, m), k, r = SIZES, 3, rng(seed)
    first = rows(r, n, n)
    C, batches = first.T @ first, [rows(r, m, n) for _ in range(k)]
    got = followed(backend, C, batches, dtype)
    expected = reference.followed_inverse(C, DELTA, [y.T @ y for y in batches], ALPHA)
    kappa = np.linalg.cond(C + ALPHA**k * DELTA * np.eye(n)) * 10
    assert_close(got.matrix, expected, dtype=dtype, size=n, kappa=kappa)
    assert_close(got.share, ALPHA**k, dtype=dtype, size=k)
    assert bool(got.following)
    assert not bool(got.failed)
    assert np.array_equal(got.matrix, got.matrix.T)


@law(seed=seeds, dtype=dtypes)
def test_one_block_update_is_many_updates_of_one_row(backend, seed, dtype):
    """3.6: m rows at once = m rows one by one, alpha applied in the first only."""
    (n, m), r = SIZES, rng(seed)
    K, V = np.linalg.inv(np.cov(r.standard_normal((n, 3 * n))) + 0.1 * np.eye(n)), rows(r, m, n)

    def run(K, V, *, xp):
        block, ok = inversion.recursive_update(K, V, ALPHA, xp=xp)
        for i in range(m):
            alpha = ALPHA if i == 0 else 1.0
            K, _ = inversion.recursive_update(K, V[i : i + 1, :], alpha, xp=xp)
        return block, K, ok

    block, single, ok = backend.numpy(
        backend.call(run, backend.array(K, dtype), backend.array(V, dtype))
    )
    assert bool(ok)
    kappa = np.linalg.cond(K) * 10
    assert_close(block, single, dtype=dtype, size=n, kappa=kappa)
    exact = np.linalg.inv(ALPHA * np.linalg.inv(K) + V.T @ V)
    assert_close(block, exact, dtype=dtype, size=n, kappa=kappa)


@eager_law(seed=seeds, dtype=dtypes)
def test_a_stack_is_a_loop(backend, seed, dtype):
    """And a member that fails leaves the others alone."""
    r = rng(seed)
    first = np.stack([rows(r, 4, 4) for _ in range(2)])
    C, y = np.swapaxes(first, 1, 2) @ first, np.stack([rows(r, 2, 4) for _ in range(2)])
    poison = np.array(y)
    poison[0, 0, 0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        got = followed(backend, C, [y, poison], dtype)
    assert got.following.tolist() == [False, True]
    assert got.failed.tolist() == [True, False]
    for i, k in ((0, 1), (1, 2)):
        exact = reference.followed_inverse(C[i], DELTA, [y[i].T @ y[i]] * k, ALPHA)
        kappa = np.linalg.cond(C[i] + DELTA * np.eye(4)) * 10
        assert_close(got.matrix[i], exact, dtype=dtype, size=4, kappa=kappa)
        assert_close(got.share[i], ALPHA**k, dtype=dtype)


def unsymmetrised(K, V, alpha):
    """The recursion with K V^T computed once and used on both sides, and nothing done after."""
    wide = K @ V.T
    middle = np.linalg.inv(np.float32(alpha) * np.eye(len(V), dtype=K.dtype) + V @ wide)
    return (K - wide @ middle @ wide.T) / np.float32(alpha)


def relative(K, exact):
    return np.linalg.norm(K - exact) / np.linalg.norm(exact)


def steps_of(backend, alpha, halt_below=0.0):
    """One `follow`, compiled where hundreds of steps would take too long otherwise."""

    def step(inverse, v):
        return inversion.follow(inverse, v, alpha, halt_below=halt_below, xp=backend.xp)

    if backend.library == "jax":
        import jax

        return jax.jit(step)
    return step


@pytest.mark.parametrize("backend", LIBRARIES, ids=str)
def test_asymmetry_blows_up_and_symmetrisation_cures_it(backend):
    """3.7: float32, d = 20, alpha = 0.95, 400 steps: without symmetrisation all is lost."""
    n, m, alpha, delta, steps = 20, 5, 0.95, 0.1, 400
    r, xp, step = rng(3), backend.xp, steps_of(backend, alpha)
    C = np.eye(n)
    skew = 1e-7 * np.triu(np.ones((n, n)), 1)  # as much as rounding leaves at some time
    naive = (np.linalg.inv(C + delta * np.eye(n)) + skew - skew.T).astype(np.float32)
    inverse = made(backend.array(C, "float32"), delta, xp)._replace(matrix=backend.array(naive))
    renewed = inverse
    for k in range(steps):
        y = rows(r, m, n)
        C = alpha * C + (1 - alpha) * y.T @ y
        v = (np.sqrt(1 - alpha) * y).astype(np.float32)
        naive = unsymmetrised(naive, v, alpha)
        inverse, renewed = step(inverse, backend.array(v)), step(renewed, backend.array(v))
        if k % 50 == 49:
            renewed, _ = inversion.resync(renewed, backend.array(C, "float32"), delta, xp=xp)
    exact = np.linalg.inv(C + alpha**steps * delta * np.eye(n))
    assert relative(naive.astype(np.float64), exact) > 1e3
    assert np.linalg.eigvalsh((naive + naive.T) / 2).min() < 0
    assert relative(backend.numpy(inverse.matrix), exact) < 1e-5
    exact = np.linalg.inv(C + delta * np.eye(n))
    assert relative(backend.numpy(renewed.matrix), exact) < 1e-6


@pytest.mark.parametrize("backend", LIBRARIES, ids=str)
def test_wind_up_of_unexcited_directions_and_its_cures(backend):
    """3.7: a dead direction's inverse grows as alpha^-k; re-sync or the halt keeps it bounded."""
    n, alpha, delta, steps = 4, 0.95, 0.1, 300
    r, xp = rng(5), backend.xp
    step, careful = steps_of(backend, alpha), steps_of(backend, alpha, halt_below=0.5)
    C = np.diag([1.0, 1.0, 1.0, 0.0])
    start = made(backend.array(C), delta, xp)
    free, synced, halting = start, start, start
    period = inversion.resync_period(alpha)
    largest = 0.0
    for k in range(steps):
        y = rows(r, 2, n) * np.asarray([1.0, 1.0, 1.0, 0.0])
        C = alpha * C + (1 - alpha) * y.T @ y
        v = backend.array(np.sqrt(1 - alpha) * y)
        free, synced, halting = step(free, v), step(synced, v), careful(halting, v)
        largest = max(largest, backend.numpy(synced.matrix)[3, 3])
        if k % period == period - 1:
            synced, _ = inversion.resync(synced, backend.array(C), delta, xp=xp)
    assert period == 13
    assert_close(backend.numpy(free.matrix)[3, 3], alpha**-steps / delta, size=steps)
    assert alpha**-steps > 4.8e6
    assert largest <= 2 / delta
    assert backend.numpy(halting.matrix)[3, 3] <= 2 / delta
    assert_close(backend.numpy(halting.share), alpha**period, size=period)
    assert not bool(halting.following)
    assert not bool(halting.failed)


BAD = {
    "nan": (np.nan, ALPHA),
    "inf": (np.inf, ALPHA),
    "overflow": (1e30, ALPHA),
    "nothing kept": (1.0, 0.0),
    "no number": (1.0, np.nan),
}


@law(case=st.sampled_from(sorted(BAD)), dtype=dtypes)
def test_an_unusable_update_leaves_the_last_good_inverse(backend, case, dtype):
    """Marked as failed; no further batch is followed; a new inverse ends it."""
    bad, alpha = BAD[case]
    bad = 1e300 if case == "overflow" and dtype == "float64" else bad
    C, y, poison = np.diag([1.0, 2.0]), np.ones((1, 2)), np.ones((1, 2))
    poison[0, 0] = bad

    def run(C, y, poison, alpha, *, xp):
        inverse = made(C, DELTA, xp)
        first = inversion.follow(inverse, poison, alpha, halt_below=0.0, xp=xp)
        second = inversion.follow(first, y, ALPHA, halt_below=0.0, xp=xp)
        third, _ = inversion.resync(second, C, DELTA, xp=xp)
        return inverse, first, second, third

    arrays = [backend.array(np.asarray(x), dtype) for x in (C, y, poison, alpha)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        inverse, first, second, third = backend.numpy(backend.call(run, *arrays))
    for kept in (first, second):
        assert np.array_equal(kept.matrix, inverse.matrix)
        assert float(kept.share) == 1.0
        assert bool(kept.good)
        assert not bool(kept.following)
    # a batch that keeps nothing would leave no damping; NaN is not above the least share either
    assert bool(first.failed) == (case != "no number")
    assert np.array_equal(third.matrix, inverse.matrix)
    assert bool(third.following)
    assert not bool(third.failed)


@eager_law(seed=seeds, dtype=dtypes)
def test_an_indefinite_inverse_raises_nowhere_and_is_not_believed(backend, seed, dtype):
    """Also where its diagonal is positive, and stays so: then only the probe can tell."""
    q = np.linalg.qr(np.concatenate([np.ones((4, 1)), rng(seed).standard_normal((4, 3))], 1))[0]
    K, V = (q * np.asarray([-3.0, 100.0, 100.0, 100.0])) @ q.T, 2.0 * q[:, :1].T
    assert np.all(np.diag(K) > 0)
    _, ok = backend.call(
        inversion.recursive_update,
        backend.array(K, dtype),
        backend.array(V, dtype),
        backend.array(np.asarray(ALPHA), dtype),
    )
    assert not bool(backend.numpy(ok))


@eager_law(seed=seeds, good=st.booleans())
def test_what_was_never_made_or_lags_follows_nothing(backend, seed, good):
    y = rows(rng(seed), 1, 3)

    def run(C, y, *, xp):
        inverse = made(C, DELTA, xp)
        if not good:
            inverse = inversion.identity_recursive((), 3, like=C, xp=xp)
        before = inversion.lag(inverse, xp=xp) if good else inverse
        return before, inversion.follow(before, y, ALPHA, xp=xp)

    before, after = backend.numpy(backend.call(run, backend.array(np.eye(3)), backend.array(y)))
    assert np.array_equal(before.matrix, after.matrix)
    assert bool(after.good) is good
    assert not bool(after.failed)
    assert not bool(after.following)


@pytest.mark.parametrize("backend", LIBRARIES, ids=str)
def test_the_halt_comes_where_the_period_says(backend):
    """alpha^k >= halt_below for as many batches as `resync_period` counts, and no more."""
    last, step = inversion.resync_period(ALPHA, 0.5), steps_of(backend, ALPHA, halt_below=0.5)
    inverse = made(backend.array(np.eye(2)), DELTA, backend.xp)
    for k in range(1, last + 3):
        inverse = step(inverse, backend.array(np.ones((1, 2))))
        assert_close(backend.numpy(inverse.share), ALPHA ** min(k, last), size=8)
        assert bool(inverse.following) == (k <= last)


def test_a_new_inverse_keeps_what_cannot_be_replaced():
    """resync with an unusable average: the inverse goes on following if it did."""
    start = inversion.identity_recursive((), 2, like=np.zeros(()), xp=np)
    inverse, _ = inversion.resync(start, np.eye(2), 1.0)
    inverse = inversion.follow(inverse, np.ones((1, 2)), 0.75)
    kept, code = inversion.resync(inverse, np.full((2, 2), np.nan), 1.0)
    assert int(code) == 3
    assert all(np.array_equal(x, y) for x, y in zip(kept, inverse, strict=True))


@pytest.mark.parametrize("n", [64, 100, 1000])
def test_recursion_pays_up_to_about_a_third(n):
    """3.8: m <~ n / 3, and never for m >= n."""
    most = max(m for m in range(1, 2 * n) if inversion.recursion_pays(n, m))
    assert 0.28 * n < most < 0.36 * n
    assert all(inversion.recursion_pays(n, m) for m in range(1, most))
    assert inversion.recursion_flops(n, most) < inversion.inversion_flops(n)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: inversion.recursive_update(np.eye(2), np.ones((1, 2)), 1.5),
            "alpha is 1.5; expected a number between 0 and 1",
        ),
        (
            lambda: inversion.follow(
                RecursiveInverse(np.eye(2), 1.0, True, True, False),
                np.ones((1, 2)),
                0.5,
                halt_below=2.0,
            ),
            "halt_below is 2.0; expected",
        ),
        (lambda: inversion.resync_period(1.0), "decay is 1.0 and share 0.5; expected decay in"),
        (lambda: inversion.resync_period(0.9, 0.0), "share 0.0; expected"),
    ],
)
def test_wrong_arguments_get_one_clear_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
