"""Damping, safe inverses and Kronecker algebra, from 1x1 to singular and non-finite factors."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from harness import dtypes, law, rng, seeds, spd
from hypothesis import strategies as st

from ngd_core import inversion, reference
from ngd_core.inversion import EAGER, PURE, Ops
from ngd_core.inversion.spd import ENOUGH, FLOOR
from ngd_core.testing import assert_close

EPS = {"float32": float(np.finfo(np.float32).eps), "float64": float(np.finfo(np.float64).eps)}
orders = st.sampled_from([1, 2, 3, 7, 20, 65, 130])
scales = st.sampled_from([1e-12, 1e-3, 1.0, 1e3, 1e12])


def inverse(backend, m, damping, previous=None, good=False, **options):
    """damped_inverse of NumPy arrays through the backend."""
    stack, n = m.shape[:-2], m.shape[-1]
    previous = np.broadcast_to(np.eye(n), m.shape) if previous is None else previous
    dtype = options.pop("in_dtype", "float64")
    return backend.call(
        lambda *arrays, xp: inversion.damped_inverse(*arrays, xp=xp, **options),
        backend.array(m, dtype),
        backend.array(np.asarray(damping), dtype),
        backend.array(previous, dtype),
        backend.array(np.full(stack, good)),
    )


@law(seed=seeds, n=orders, log_condition=st.integers(0, 4), scale=scales, dtype=dtypes)
def test_inverse_solves(backend, seed, n, log_condition, scale, dtype):
    """Backward error |M X - I| of a well damped matrix of any size and scale."""
    m = (scale * spd(rng(seed), n, 10.0**log_condition)).astype(dtype).astype(np.float64)
    damping = 1e-2 * scale
    x, good, code = inverse(backend, m, damping, in_dtype=dtype)
    assert str(x.dtype).endswith(dtype)
    damped = m + damping * np.eye(n)
    assert_close(
        damped @ backend.numpy(x).astype(np.float64), np.eye(n), dtype=dtype, size=n, kappa=100
    )
    assert bool(good)
    assert int(code) == 0


@law(seed=seeds, n=st.integers(2, 20), dtype=dtypes)
def test_entries_far_below_rounding_are_zero(backend, seed, n, dtype):
    """An inverse and a basis hold no entry below eps^2 of their largest, so none is subnormal."""
    r = rng(seed)
    diagonal = 1.0 + r.permutation(n) / n
    coupling = 1e-10 * EPS[dtype] ** 2 * r.standard_normal((n, n))
    m = np.diag(diagonal) + np.triu(coupling, 1) + np.triu(coupling, 1).T
    x, _, code = backend.numpy(inverse(backend, m, 0.5, in_dtype=dtype))
    _, vectors, ok = backend.numpy(backend.call(inversion.safe_eigh, backend.array(m, dtype)))
    assert int(code) == 0
    assert bool(ok)
    assert_close(x, np.diag(1 / (diagonal + 0.5)), dtype=dtype, size=n)
    for found in (x, vectors):
        size = np.abs(found)
        assert np.min(size[size > 0]) >= EPS[dtype] ** 2 * np.max(size)


@law(seed=seeds, n=st.integers(2, 5), groups=st.integers(2, 3))
def test_stack_is_a_loop(backend, seed, n, groups):
    """A stack gives each matrix its own answer and its own code."""
    r = rng(seed)
    m = np.stack([spd(r, n, 10.0) for _ in range(groups)])
    m[0] = np.nan
    previous = np.stack([np.eye(n) * (k + 2.0) for k in range(groups)])
    x, good, code = backend.numpy(inverse(backend, m, 0.1, previous, good=True))
    assert code.tolist() == [3] + [0] * (groups - 1)
    assert np.all(good)
    assert_close(x[0], previous[0])
    for k in range(1, groups):
        assert_close(x[k], np.linalg.inv(m[k] + 0.1 * np.eye(n)), kappa=10)


@law(seed=seeds, n=st.integers(2, 5), dtype=dtypes)
def test_only_the_symmetric_part_is_inverted(backend, seed, n, dtype):
    """Both triangles count alike, as does their eigendecomposition."""
    m = spd(rng(seed), n, 10.0)
    skew = np.triu(rng(seed + 1).standard_normal((n, n)), 1)
    x, _, _ = backend.numpy(inverse(backend, m + skew - skew.T, 0.1, in_dtype=dtype))
    assert_close(x, np.linalg.inv(m + 0.1 * np.eye(n)), dtype=dtype, size=n, kappa=10)
    values, vectors, _ = backend.numpy(
        backend.call(inversion.safe_eigh, backend.array(m + skew - skew.T, dtype))
    )
    assert_close((vectors * values) @ vectors.T, m, dtype=dtype, size=n)


BROKEN = {
    "nan": np.full((3, 3), np.nan),
    "one nan": np.where(np.eye(3) > 0, 1.0, 0.0) + np.diag([0, np.nan, 0]),
    "inf": np.full((3, 3), np.inf),
    "minus inf": np.full((3, 3), -np.inf),
    "no damping, no factor": np.zeros((3, 3)),
}


@law(case=st.sampled_from(sorted(BROKEN)), good=st.booleans(), dtype=dtypes)
def test_unusable_factors_keep_the_last_good_inverse(backend, case, good, dtype):
    damping = 0.0 if case == "no damping, no factor" else 1e-3
    previous = 2.0 * np.eye(3) if good else np.eye(3)
    x, still_good, code = backend.numpy(
        inverse(backend, BROKEN[case], damping, previous, good, in_dtype=dtype)
    )
    assert_close(x, previous)
    assert bool(still_good) is good
    assert int(code) == (3 if good else 4)


@law(
    damping=st.sampled_from([np.nan, np.inf, -1.0]),
    split=st.sampled_from(["pi", "exact"]),
    dtype=dtypes,
)
def test_unusable_damping_arrays_keep_both_forms(backend, damping, split, dtype):
    def refresh(A, G, good, bad, *, xp):
        old = inversion.identity_inverse(split, (), 2, 3, like=A, xp=xp)
        once, _ = inversion.refresh_inverse(old, A, G, good, xp=xp)
        again, code = inversion.refresh_inverse(once, A, G, bad, xp=xp)
        return tuple(once), tuple(again), code

    arrays = [backend.array(x, dtype) for x in (np.eye(2), np.eye(3), np.asarray(0.5))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's word about the root of -1
        hostile = backend.array(np.asarray(damping), dtype)
        once, again, code = backend.numpy(backend.call(refresh, *arrays, hostile))
    assert int(code) == 3
    for x, y in zip(once, again, strict=True):
        assert np.array_equal(x, y)


@law(damping=st.sampled_from([np.nan, np.inf, -1.0]), dtype=dtypes)
def test_unusable_damping_arrays_keep_the_last_good_inverse(backend, damping, dtype):
    x, _, code = backend.numpy(
        inverse(backend, np.eye(2), damping, 5.0 * np.eye(2), good=True, in_dtype=dtype)
    )
    assert_close(x, 5.0 * np.eye(2))
    assert int(code) == 3


SINGULAR = {
    "1x1": (np.asarray([[2.0]]), 0.5),
    "1x1 zero": (np.zeros((1, 1)), 0.5),
    "zero": (np.zeros((4, 4)), 0.5),
    "rank one": (np.outer(np.arange(1.0, 5.0), np.arange(1.0, 5.0)), 0.5),
    "dead unit": (np.diag([1.0, 0.0, 2.0, 0.0]), 0.5),
    "tiny": (1e-30 * np.eye(3), 1e-30),
    "huge": (1e30 * np.ones((3, 3)), 1e29),
    "subnormal": (1e-40 * np.eye(2), 1e-3),
}


@law(case=st.sampled_from(sorted(SINGULAR)), dtype=dtypes)
def test_singular_factors_are_ordinary(backend, case, dtype):
    m, damping = SINGULAR[case]
    x, good, code = backend.numpy(inverse(backend, m, damping, in_dtype=dtype))
    damped = m + damping * np.eye(len(m))
    assert_close(x, np.linalg.inv(damped), dtype=dtype, kappa=100)
    assert (bool(good), int(code)) == (True, 0)


@law(seed=seeds, n=st.integers(2, 40), dtype=dtypes)
def test_undamped_singular_factor_is_damped_at_the_floor(backend, seed, n, dtype):
    """Rank one without damping: code 1, and the inverse of the floor-damped matrix."""
    v = rng(seed).standard_normal(n)
    m = np.outer(v, v)
    x, _, code = backend.numpy(inverse(backend, m, 0.0, in_dtype=dtype))
    assert int(code) == 1
    floor = FLOOR * EPS[dtype] * np.trace(m)
    kernel = np.linalg.svd(v[None, :])[2][1:]
    gain = np.abs(kernel @ x @ kernel.T)
    assert np.all(np.isfinite(x))
    assert gain.max() <= 1.2 / floor


def test_failed_float32_factorisation_is_repeated_in_float64():
    """Code 2, through both ways of choosing, only for the matrix that failed."""

    def fails_in_float32(m, *, xp):
        bad = (xp.linalg.diagonal(m)[..., 0] > 0.9) & (m.dtype == xp.float32)
        return xp.where(
            bad[..., None, None], xp.asarray(np.nan, dtype=m.dtype), PURE.spd_inverse(m, xp=xp)
        )

    m = np.stack([np.diag([1.0, 0.5]), np.diag([0.25, 1.0])]).astype(np.float32)
    for cond in (PURE.cond, EAGER.cond):
        ops = Ops(spd_inverse=fails_in_float32, cond=cond)
        x, good, code = inversion.damped_inverse(
            m, 0.1, np.zeros_like(m), np.zeros(2, bool), dtype="float32", ops=ops
        )
        assert code.tolist() == [2, 0]
        assert good.all()
        assert x.dtype == np.float32
        assert_close(x, np.linalg.inv(m + 0.1 * np.eye(2)), dtype="float32", kappa=10)


def test_what_float32_could_factorise_is_not_computed_again():
    """The float64 attempt fails where the first succeeded; the first result stays, code 0."""

    def either(m, *, xp):
        first = xp.linalg.diagonal(m)[..., 0] > 0.9
        bad = first if m.dtype == xp.float32 else ~first
        return xp.where(bad[..., None, None], np.nan, PURE.spd_inverse(m, xp=xp))

    m = np.stack([np.diag([1.0, 0.5]), np.diag([0.25, 1.0])]).astype(np.float32)
    for cond in (PURE.cond, EAGER.cond):
        x, good, code = inversion.damped_inverse(
            m,
            0.1,
            np.zeros_like(m),
            np.zeros(2, bool),
            dtype="float32",
            ops=Ops(spd_inverse=either, cond=cond),
        )
        assert code.tolist() == [2, 0]
        assert good.all()
        assert_close(x, np.linalg.inv(m + 0.1 * np.eye(2)), dtype="float32", kappa=10)


def test_garbage_is_recognised_by_the_probe():
    """A library that returns rubbish without a word (CuPy's default) is not believed."""
    ops = Ops(spd_inverse=lambda m, *, xp: xp.full(m.shape, 3.0))
    x, good, code = inversion.damped_inverse(
        np.diag([1.0, 2.0]), 0.1, np.eye(2), np.asarray(False), ops=ops
    )
    assert (bool(good), int(code)) == (False, 4)
    assert_close(x, np.eye(2))


@pytest.mark.parametrize("ops", [PURE, EAGER], ids=["pure", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("share", "enough"), [(1.01, True), (0.99, False)])
def test_a_damping_that_allows_it_chooses_the_factors_own_dtype(ops, dtype, share, enough):
    """From ``eps tr(m) / 2^-10`` on, for all matrices of a stack, and only without tracing."""
    seen = []

    def look(m, *, xp):
        seen.append(str(m.dtype))
        return PURE.spd_inverse(m, xp=xp)

    m = np.stack([spd(rng(k), 6, 1e3) for k in range(2)]).astype(dtype)
    traces = np.trace(m, axis1=-2, axis2=-1)
    damping = 2.0**10 * float(np.finfo(np.float32).eps) * traces * np.asarray([share, 2.0])
    x, _, code = inversion.damped_inverse(
        m,
        damping.astype(dtype),
        np.zeros_like(m),
        np.zeros(2, bool),
        ops=replace(ops, spd_inverse=look),
    )
    assert seen == ["float32" if enough and ops.eager and dtype == "float32" else "float64"]
    assert code.tolist() == [0, 0]
    assert x.dtype == m.dtype


def test_what_failed_in_float64_is_not_tried_again():
    """As for a layer without statistics, whose damping is NaN, in a stack with others."""
    tried = []

    def look(m, *, xp):
        tried.append(str(m.dtype))
        return PURE.spd_inverse(m, xp=xp)

    m = np.broadcast_to(np.eye(3, dtype="float32"), (2, 3, 3))
    damping = np.asarray([0.1, np.nan], dtype="float32")
    ops = replace(EAGER, spd_inverse=look)
    _, good, _ = inversion.damped_inverse(m, damping, m, np.zeros(2, bool), ops=ops)
    assert tried == ["float64"]
    assert good.tolist() == [True, False]


def test_half_precision_is_factorised_in_float32():
    m = np.eye(3, dtype="float16")
    x, good, code = inversion.damped_inverse(m, 10.0, m, np.asarray(False), ops=EAGER)
    assert (bool(good), int(code), x.dtype) == (True, 0, m.dtype)
    assert_close(x.astype("float32"), np.eye(3) / 11, dtype="float16", size=3)


@law(seed=seeds, n=st.sampled_from([1, 2, 7, 20, 65, 130]), scale=scales)
def test_what_the_damping_allows_errs_little_more_than_the_rounded_factor(backend, seed, n, scale):
    """Least damping for which float32 is enough, a matrix of one dominant eigenvalue."""
    if backend.variant in ("jit", "compile"):
        return
    r = rng(seed)
    v = r.standard_normal(n)
    m = (scale * (np.outer(v, v) + 1e-4 * spd(r, n, 1e3))).astype(np.float32)
    damping = np.float32(2.0**10 * EPS["float32"] * np.trace(m) * 1.01)
    x, good, code = backend.numpy(inverse(backend, m, damping, in_dtype="float32", ops=EAGER))
    exact = np.linalg.inv(m.astype(np.float64) + damping * np.eye(n))
    assert (bool(good), int(code)) == (True, 0)
    error = np.linalg.norm(x - exact, 2) / np.linalg.norm(exact, 2)
    assert 0 < error <= 4 * ENOUGH


def test_a_failure_in_the_factors_own_dtype_is_repeated_in_float64():
    """Code 2: the damping allowed float32, and the library failed in it."""

    def fails_in_float32(m, *, xp):
        nan = m.dtype == xp.float32
        return xp.full(m.shape, np.nan) if nan else PURE.spd_inverse(m, xp=xp)

    m = np.diag([1.0, 0.5]).astype(np.float32)
    x, good, code = inversion.damped_inverse(
        m,
        0.5,
        np.eye(2, dtype=np.float32),
        np.asarray(False),
        ops=replace(EAGER, spd_inverse=fails_in_float32),
    )
    assert (bool(good), int(code)) == (True, 2)
    assert_close(x, np.diag([1 / 1.5, 1.0]), dtype="float32")


@law(seed=seeds, n=st.sampled_from([1, 4, 70]), dtype=dtypes)
def test_eager_choice_equals_the_pure_twin(backend, seed, n, dtype):
    if backend.variant in ("jit", "compile"):
        return
    m = spd(rng(seed), n, 100.0)
    pure = inverse(backend, m, 0.1, in_dtype=dtype, dtype="float32", ops=PURE)
    eager = inverse(backend, m, 0.1, in_dtype=dtype, dtype="float32", ops=EAGER)
    for x, y in zip(backend.numpy(pure), backend.numpy(eager), strict=True):
        assert np.array_equal(x, y)


@law(seed=seeds, n=orders, log_condition=st.integers(0, 6), scale=scales, dtype=dtypes)
def test_eigh_rebuilds_the_matrix(backend, seed, n, log_condition, scale, dtype):
    m = scale * spd(rng(seed), n, 10.0**log_condition)
    values, vectors, ok = backend.numpy(backend.call(inversion.safe_eigh, backend.array(m, dtype)))
    assert bool(ok)
    assert np.all(values >= 0)
    assert_close((vectors * values) @ vectors.T, m, dtype=dtype, size=n)
    assert_close(vectors.T @ vectors, np.eye(n), dtype=dtype, size=n)


@law(seed=seeds, n=st.sampled_from([2, 7, 65]), dtype=dtypes)
def test_eigenvalues_of_a_singular_matrix_are_not_negative(backend, seed, n, dtype):
    """Rank one: rounding alone would leave half of the zeros below 0."""
    v = rng(seed).standard_normal(n)
    m = backend.array(np.outer(v, v), dtype)
    for solve in ("float32", None):
        values, _, _ = backend.numpy(
            backend.call(lambda m, *, xp, s=solve: inversion.safe_eigh(m, dtype=s, xp=xp), m)
        )
        assert values.min() >= 0
        assert_close(values[-1], v @ v, dtype=dtype, size=n)


@law(seed=seeds, n=st.sampled_from([3, 20]))
def test_float32_factors_are_factorised_in_float64(backend, seed, n):
    """Every entry of the inverse is right to float32's rounding, at a condition of 100,000."""
    m = spd(rng(seed), n, 1e5).astype(np.float32)
    m = (m + m.T) / 2
    x, _, code = inverse(backend, m, 1e-5, in_dtype="float32")
    exact = np.linalg.inv(m.astype(np.float64) + float(np.float32(1e-5)) * np.eye(n))
    assert int(code) == 0
    assert np.abs(backend.numpy(x) - exact).max() <= EPS["float32"] * np.abs(exact).max()


@law(case=st.sampled_from(sorted(BROKEN)[:-1]), dtype=dtypes)
def test_eigh_of_a_non_finite_matrix_is_finite_and_not_ok(backend, case, dtype):
    values, vectors, ok = backend.numpy(
        backend.call(inversion.safe_eigh, backend.array(BROKEN[case], dtype))
    )
    assert np.isfinite(values).all()
    assert np.isfinite(vectors).all()
    assert bool(ok) == (case == "no damping, no factor")


@law(seed=seeds, d=st.integers(1, 5), o=st.integers(1, 5), log_damping=st.integers(-6, 1))
def test_factored_damping_exceeds_the_exact_by_a_psd_residual(backend, seed, d, o, log_damping):
    """1.4: residual PSD, both of its terms of equal trace, no other pi gives a smaller trace."""
    r = rng(seed)
    A, G, damping = spd(r, d, 1e3) * 7.0, spd(r, o, 1e2) * 0.1, 10.0**log_damping
    a, g = (
        float(x)
        for x in backend.numpy(
            backend.call(
                lambda A, G, *, xp: inversion.factored_damping(A, G, damping, xp=xp),
                backend.array(A),
                backend.array(G),
            )
        )
    )
    assert_close(a * g, damping)

    def residual(a, g):
        factored = np.kron(G + g * np.eye(o), A + a * np.eye(d))
        return factored - (np.kron(G, A) + damping * np.eye(d * o))

    rest = residual(a, g)
    assert np.linalg.eigvalsh(rest).min() >= -1e-12 * np.trace(rest)
    assert_close(a * d * np.trace(G), g * o * np.trace(A))
    for other in (0.8, 1.25):
        assert np.trace(residual(a * other, g / other)) > np.trace(rest)


@law(seed=seeds, log_c=st.integers(-4, 4), log_damping=st.integers(-4, 0))
def test_scale_split_changes_nothing(backend, seed, log_c, log_damping):
    """1.2: (c A, G / c) gives the same damped product."""
    r, c, damping = rng(seed), 10.0**log_c, 10.0**log_damping
    A, G = spd(r, 3, 10.0), spd(r, 2, 10.0)

    def product(A, G):
        a, g = backend.numpy(
            backend.call(
                lambda A, G, *, xp: inversion.factored_damping(A, G, damping, xp=xp),
                backend.array(A),
                backend.array(G),
            )
        )
        return np.kron(G + g * np.eye(2), A + a * np.eye(3))

    assert_close(product(c * A, G / c), product(A, G))


@law(zero=st.sampled_from(["A", "G", "both"]), damping=st.floats(1e-6, 1.0))
def test_factored_damping_of_a_traceless_factor_is_the_exact_limit(backend, zero, damping):
    A = np.zeros((2, 2)) if zero != "G" else np.eye(2)
    G = np.zeros((2, 2)) if zero != "A" else np.eye(2)
    a, g = backend.numpy(
        backend.call(
            lambda A, G, *, xp: inversion.factored_damping(A, G, damping, xp=xp),
            backend.array(A),
            backend.array(G),
        )
    )
    assert_close([a, g], [damping**0.5] * 2)


@law(seed=seeds, d=st.integers(1, 5), o=st.integers(1, 5), damping=st.floats(1e-4, 1.0))
def test_kronecker_algebra_equals_the_dense(backend, seed, d, o, damping):
    r = rng(seed)
    A, G, V = spd(r, d, 1e3), spd(r, o, 1e2), r.standard_normal((o, d))
    arrays = [backend.array(x) for x in (G, A, V)]
    dense = np.kron(G, A)
    product = backend.call(inversion.kronecker_product, *arrays)
    assert_close(backend.numpy(product).reshape(-1), dense @ V.reshape(-1), size=d * o)
    formed = backend.call(inversion.kronecker_dense, *arrays[:2])
    assert_close(backend.numpy(formed), dense)
    spectra = [backend.array(x) for m in (G, A) for x in np.linalg.eigh(m)]
    solved = backend.call(
        lambda g, qg, a, qa, v, *, xp: inversion.kronecker_solve_eigh(
            (g, qg), (a, qa), v, damping, xp=xp
        ),
        *spectra,
        arrays[2],
    )
    expected = np.linalg.solve(dense + damping * np.eye(d * o), V.reshape(-1))
    assert_close(backend.numpy(solved).reshape(-1), expected, size=d * o, kappa=1 / damping)


@law(seed=seeds, n=orders, bad=st.booleans())
def test_spd_inverse_inverts_or_says_that_it_cannot(backend, seed, n, bad):
    """A stack: one positive definite matrix, and one that a library's Cholesky may choke on."""
    r = rng(seed)
    good, other = spd(r, n, 1e3), spd(r, n, 1e3)
    if bad:
        other = np.diag(np.ones(n))
        place = r.integers(n)
        other[place, place] = r.choice([-1.0, -1e-17, 0.0])
    got = backend.numpy(backend.call(inversion.spd_inverse, backend.array(np.stack([good, other]))))
    assert_close(good @ got[0], np.eye(n), size=n, kappa=1e3)
    assert_close(got[0], got[0].T)
    if bad:
        assert np.isnan(got[1]).all()
    else:
        assert_close(other @ got[1], np.eye(n), size=n, kappa=1e3)


INDEFINITE = {
    "negative": -np.eye(3),
    "zero diagonal": np.ones((3, 3)) - np.eye(3),
    "one negative eigenvalue": np.diag([1.0, 1.0, -0.5]),
}


@law(case=st.sampled_from(sorted(INDEFINITE)), good=st.booleans(), dtype=dtypes)
def test_an_indefinite_matrix_raises_nowhere(backend, case, good, dtype):
    x, still_good, code = backend.numpy(
        inverse(backend, INDEFINITE[case], 1e-3, 2.0 * np.eye(3), good, in_dtype=dtype)
    )
    assert_close(x, 2.0 * np.eye(3))
    assert (bool(still_good), int(code)) == (good, 3 if good else 4)


EXTREMES = {
    "damping beyond the factor": (1e-36, 1e6, 0),
    "factor beyond the damping": (1e30, 1e-30, 1),
    "nothing to invert": (1e-39, 0.0, 4),
    "largest": (1e37, 1e37, 0),
}


@law(case=st.sampled_from(sorted(EXTREMES)), solve=st.sampled_from(["float32", None]))
def test_extreme_scales_are_finite_and_silent(backend, case, solve):
    """float32 factors whose scaled entries or inverses leave float32's range on the way."""
    scale, damping, wanted = EXTREMES[case]
    m = scale * np.asarray([[1.0, 1.0], [1.0, 1.0]])
    x, _, code = backend.numpy(inverse(backend, m, damping, in_dtype="float32", dtype=solve))
    assert int(code) == wanted
    assert np.isfinite(x).all()
    if wanted == 0:
        assert_close(x, np.linalg.inv(m + damping * np.eye(2)), dtype="float32", kappa=10)


@law(zero=st.sampled_from(["A", "G", "both"]), split=st.sampled_from(["pi", "exact"]), dtype=dtypes)
def test_a_zero_factor_leaves_the_damping(backend, zero, split, dtype):
    """G (x) A = 0, so the inverse is 1 / lambda, as the oracle has it; undamped there is none."""
    A = np.zeros((2, 2)) if zero != "G" else np.diag([1.0, 3.0])
    G = np.zeros((3, 3)) if zero != "A" else np.diag([1.0, 2.0, 4.0])
    V = rng(0).standard_normal((3, 2))

    def solve(A, G, V, damping, *, xp):
        old = inversion.identity_inverse(split, (), 2, 3, like=A, xp=xp)
        new, code = inversion.refresh_inverse(old, A, G, damping, xp=xp)
        return inversion.apply_inverse(new, V, xp=xp)[0], code

    arrays = [backend.array(x, dtype) for x in (A, G, V)]
    u, code = backend.numpy(backend.call(solve, *arrays, backend.array(np.asarray(0.25), dtype)))
    assert_close(u, reference.direction(V, A, G, 0.25, split), dtype=dtype, kappa=10)
    assert_close(u, V / 0.25, dtype=dtype)
    assert int(code) == 0
    u, code = backend.numpy(backend.call(solve, *arrays, backend.array(np.asarray(0.0), dtype)))
    assert_close(u, V, dtype=dtype)
    assert int(code) == 4


@law(bad=st.sampled_from("AG"), split=st.sampled_from(["pi", "exact"]))
def test_one_unusable_factor_keeps_both_of_the_last_refresh(backend, bad, split):
    """Inverses of different refreshes share no pi; they are never mixed."""
    r = rng(0)
    A, G, V = spd(r, 2, 10.0), spd(r, 3, 10.0), r.standard_normal((3, 2))
    later = {"A": 100.0 * A, "G": G / 7}
    later[bad] = np.where(np.eye(len(later[bad])) > 0, np.nan, later[bad])

    def twice(A, G, later_a, later_g, V, *, xp):
        old = inversion.identity_inverse(split, (), 2, 3, like=A, xp=xp)
        once, _ = inversion.refresh_inverse(old, A, G, 0.1, xp=xp)
        again, code = inversion.refresh_inverse(once, later_a, later_g, 0.1, xp=xp)
        never, no = inversion.refresh_inverse(old, later_a, later_g, 0.1, xp=xp)
        return (
            [inversion.apply_inverse(inverse, V, xp=xp)[0] for inverse in (once, again, never)],
            (code, no),
        )

    arrays = [backend.array(x) for x in (A, G, later["A"], later["G"], V)]
    (once, again, never), codes = backend.numpy(backend.call(twice, *arrays))
    assert np.array_equal(again, once)
    assert_close(never, V)
    assert [int(code) for code in codes] == [3, 4]


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (
            lambda: inversion.factored_damping(np.eye(2), np.eye(2), -1.0),
            ValueError,
            "damping is -1.0; expected a number >= 0",
        ),
        (
            lambda: inversion.damped_inverse(np.eye(2), -1, np.eye(2), np.asarray(True)),
            ValueError,
            "damping is -1; expected",
        ),
        (
            lambda: inversion.kronecker_dense(np.eye(2), [[1.0]]),
            TypeError,
            "A is a builtins list",
        ),
        (
            lambda: inversion.factored_damping(np.eye(2), np.ones(2), 1.0),
            ValueError,
            r"G has shape \(2,\); expected \(..., n, n\)",
        ),
        (
            lambda: inversion.factored_damping(np.eye(2, dtype=int), np.eye(2), 1.0),
            TypeError,
            "A has dtype int64",
        ),
        (
            lambda: inversion.damped_inverse(np.ones((2, 3)), 1.0, np.eye(2), np.asarray(True)),
            ValueError,
            r"m has shape \(2, 3\); expected \(..., n, n\), square",
        ),
        (
            lambda: inversion.damped_inverse(
                np.eye(2, dtype=int), 1.0, np.eye(2), np.asarray(True)
            ),
            TypeError,
            "m has dtype int64",
        ),
        (
            lambda: inversion.damped_inverse(np.eye(2), 1.0, np.eye(3), np.asarray(True)),
            ValueError,
            r"previous has shape \(3, 3\); expected \(2, 2\)",
        ),
        (lambda: inversion.safe_eigh(np.ones((2, 3))), ValueError, "m has shape"),
        (lambda: inversion.safe_eigh(np.eye(2, dtype=int)), TypeError, "m has dtype int64"),
    ],
)
def test_wrong_arguments_get_one_clear_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


def test_float64_that_is_not_to_be_had_gets_one_clear_sentence():
    import subprocess
    import sys

    script = (
        "import jax.numpy as jnp\n"
        "from ngd_core import inversion\n"
        "try: inversion.solve_dtype('float64', like=jnp.ones(1), xp=jnp)\n"
        "except ValueError as error: print(error)\n"
        "print(inversion.solve_dtype(None, like=jnp.ones(1), xp=jnp))\n"
    )
    import os

    env = os.environ | {"JAX_ENABLE_X64": "0"}
    out = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert "this array library offers none on this device" in out
    assert out.splitlines()[-1] == "float32"
