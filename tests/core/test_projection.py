"""Bases and lifted inverses, held to identities of linear algebra and to the dense definition."""

import numpy as np
import pytest
from harness import dtypes, law, rng, seeds
from hypothesis import strategies as st

from ngd_core import _xp, inversion, reference
from ngd_core.testing import assert_close, assert_far

D, R, DELTA = 7, 3, 0.1


def orthonormal(r, d, k):
    return np.linalg.qr(r.standard_normal((d, k)))[0]


def moment(r, d, rank=None):
    x = r.standard_normal((rank or 2 * d, d)) * np.geomspace(2.0, 0.2, d)
    return x.T @ x / len(x)


CASES = {
    "spd": lambda r: moment(r, D),
    "rank one": lambda r: moment(r, D, 1),
    "zero": lambda r: 0.0 * moment(r, D),
    "tiny": lambda r: 1e-30 * moment(r, D),
    "huge": lambda r: 1e25 * moment(r, D),
}


@law(
    seed=seeds,
    case=st.sampled_from(sorted(CASES)),
    kind=st.sampled_from(["top", "range", "gaussian"]),
    dtype=dtypes,
)
def test_bases_are_orthonormal(backend, seed, case, kind, dtype):
    """P^T P = I, of any matrix, one in a stack or alone; 3.6: noise itself is far from it."""
    r = rng(seed)
    m = np.stack([CASES[case](r), np.eye(D)])
    noise = r.standard_normal((2, D, R)) / np.sqrt(R)
    arrays = backend.array(m, dtype), backend.array(noise, dtype)
    if kind == "top":
        P, ok = backend.numpy(backend.call(inversion.top_basis, arrays[0], rank=R))
        assert np.all(ok)
    elif kind == "range":
        P = backend.numpy(backend.call(inversion.range_basis, *arrays))
    else:
        P = backend.numpy(backend.call(inversion.orthonormal_basis, arrays[1]))
        assert_far(np.swapaxes(noise, 1, 2) @ noise, np.stack([np.eye(R)] * 2), least=0.1)
    assert str(P.dtype) == dtype
    gram = np.swapaxes(P, 1, 2) @ P
    assert_close(gram, np.stack([np.eye(R)] * 2), dtype=dtype, size=D)


@law(bad=st.sampled_from([np.nan, np.inf]), dtype=dtypes)
def test_what_is_not_finite_gives_some_basis(backend, bad, dtype):
    m = np.eye(D)
    m[1, 1] = bad
    P, ok = backend.numpy(backend.call(inversion.top_basis, backend.array(m, dtype), rank=R))
    Q = backend.numpy(backend.call(inversion.orthonormal_basis, backend.array(m[:, :R], dtype)))
    assert not bool(ok)
    assert_close(P.T @ P, np.eye(R), dtype=dtype, size=D)
    assert_close(Q.T @ Q, np.eye(R), dtype=dtype, size=D)


@law(seed=seeds, c=st.sampled_from([0.0, 0.3, 10.0]), dtype=dtypes)
def test_the_lifted_inverse_is_the_dense_one(backend, seed, c, dtype):
    """P (P^T M P + delta I)^-1 P^T + c (I - P P^T), applied without forming it."""
    r = rng(seed)
    M, P, x = moment(r, D), orthonormal(r, D, R), r.standard_normal((D, 2))

    def run(M, P, x, *, xp):
        small = inversion.compress(M, P, xp=xp)
        K = xp.linalg.inv(small + DELTA * _xp.eye(R, like=M, xp=xp))
        return inversion.apply_projected(P, K, c, x, xp=xp)

    got = backend.call(run, *(backend.array(a, dtype) for a in (M, P, x)))
    expected = reference.lifted_inverse(M, P, DELTA, c) @ x
    kappa = np.linalg.cond(P.T @ M @ P + DELTA * np.eye(R)) * max(1, c)
    assert_close(backend.numpy(got), expected, dtype=dtype, size=D, kappa=kappa)


def test_applying_forms_no_square_of_the_full_order():
    """3.6: never d x d; read off every intermediate shape of the traced function."""
    import jax
    import jax.numpy as xp

    d, r = 50, 4
    shapes = [xp.zeros(s) for s in ((d, r), (r, r), (d, 2))]
    traced = jax.make_jaxpr(lambda P, K, x: inversion.apply_projected(P, K, 0.5, x, xp=xp))(*shapes)
    sizes = [v.aval.size for eqn in traced.jaxpr.eqns for v in eqn.outvars]
    assert 0 < max(sizes) <= d * r


@law(seed=seeds, dtype=dtypes)
def test_eigenvalues_interlace(backend, seed, dtype):
    """3.6, Cauchy: lambda_i >= mu_i >= lambda_{i + d - r} for P^T M P with any basis."""
    r = rng(seed)
    M, P = moment(r, D), orthonormal(r, D, R)
    small = backend.call(inversion.compress, backend.array(M, dtype), backend.array(P, dtype))
    large = np.linalg.eigvalsh(M)[::-1]
    inner = np.linalg.eigvalsh(backend.numpy(small).astype(np.float64))[::-1]
    slack = 1e-5 if dtype == "float32" else 1e-13
    assert np.all(inner <= large[:R] + slack * large[0])
    assert np.all(inner >= large[D - R :] - slack * large[0])
    assert_close(backend.numpy(small), P.T @ M @ P, dtype=dtype, size=D)


@law(seed=seeds, log_delta=st.integers(-2, 1), dtype=dtypes)
def test_error_of_the_dominant_basis_is_exact(backend, seed, log_delta, dtype):
    """3.6: with c = 1/delta the error is lambda_{r+1} / (delta (delta + lambda_{r+1})).

    And the result is that of randomised K-FAC (4): U [(D + delta)^-1 - 1/delta] U^T v + v / delta.
    """
    r, delta = rng(seed), 10.0**log_delta
    q, values = orthonormal(r, D, D), np.geomspace(3.0, 0.05, D)
    M = (q * values) @ q.T

    def run(M, *, xp):
        P, _ = inversion.top_basis(M, R, xp=xp)
        identity = _xp.eye(D, like=M, xp=xp)
        K = xp.linalg.inv(inversion.compress(M, P, xp=xp) + delta * identity[:R, :R])
        return inversion.apply_projected(P, K, 1 / delta, identity, xp=xp)

    got = backend.numpy(backend.call(run, backend.array(M, dtype))).astype(np.float64)
    kappa = 3.0 / delta + 1
    low_rank = (q[:, :R] * (1 / (values[:R] + delta) - 1 / delta)) @ q[:, :R].T + np.eye(D) / delta
    assert_close(got, low_rank, dtype=dtype, size=D, kappa=kappa)
    error = np.linalg.norm(got - np.linalg.inv(M + delta * np.eye(D)), 2)
    exact = values[R] / (delta * (delta + values[R]))
    assert_close(error, exact, dtype=dtype, size=D, kappa=kappa / min(1, delta * exact))


@law(seed=seeds, dtype=dtypes)
def test_without_complement_the_direction_is_the_galerkin_natural_gradient(backend, seed, dtype):
    """3.6: <w, u> = u^T F u, between 0 and w^T F^-1 w; F u = w as far as the bases see."""
    r = rng(seed)
    A, G, V = moment(r, D), moment(r, 5), r.standard_normal((5, D))
    A, G = A + DELTA * np.eye(D), G + DELTA * np.eye(5)
    P_a, P_g = orthonormal(r, D, R), orthonormal(r, 5, 2)

    def run(A, G, P_a, P_g, V, *, xp):
        K_a, K_g = (xp.linalg.inv(inversion.compress(m, P, xp=xp)) for m, P in ((A, P_a), (G, P_g)))
        u = inversion.apply_projected(P_g, K_g, 0.0, V, xp=xp)
        return inversion.apply_projected(P_a, K_a, 0.0, u.mT, xp=xp).mT

    got = backend.call(run, *(backend.array(x, dtype) for x in (A, G, P_a, P_g, V)))
    U = backend.numpy(got).astype(np.float64)
    kappa = np.linalg.cond(A) * np.linalg.cond(G)
    Fu, u, w = (G @ U @ A).reshape(-1), U.reshape(-1), V.reshape(-1)
    assert_close(P_g.T @ (G @ U @ A) @ P_a, P_g.T @ V @ P_a, dtype=dtype, size=D, kappa=kappa)
    assert_close(u @ w, u @ Fu, dtype=dtype, size=5 * D, kappa=kappa)
    assert 0 < u @ Fu < w @ np.linalg.solve(np.kron(G, A), w)


@law(seed=seeds, dtype=dtypes)
def test_compressing_and_averaging_commute(backend, seed, dtype):
    """3.6: for a basis that stays."""
    r = rng(seed)
    first, second, P = moment(r, D), moment(r, D), orthonormal(r, D, R)

    def run(first, second, P, *, xp):
        small = [inversion.compress(m, P, xp=xp) for m in (first, second)]
        whole = inversion.compress(0.95 * first + 0.05 * second, P, xp=xp)
        return whole, 0.95 * small[0] + 0.05 * small[1]

    arrays = (backend.array(x, dtype) for x in (first, second, P))
    whole, parts = backend.numpy(backend.call(run, *arrays))
    assert_close(whole, parts, dtype=dtype, size=D)
    assert np.array_equal(whole, whole.T)


@law(seed=seeds, tail=st.sampled_from([0.0, 0.7]), dtype=dtypes)
def test_a_changed_basis_holds_the_same_model(backend, seed, tail, dtype):
    """R C R^T + tail (I - R R^T) is the model compressed; within one subspace nothing is lost."""
    r = rng(seed)
    C, old, new = moment(r, R), orthonormal(r, D, R), orthonormal(r, D, R)
    turn = orthonormal(r, R, R)
    model = old @ C @ old.T + tail * (np.eye(D) - old @ old.T)

    def run(C, old, new, turned, *, xp):
        return (
            inversion.change_basis(C, old, new, tail, xp=xp),
            inversion.change_basis(C, old, turned, tail, xp=xp),
        )

    arrays = (C, old, new, old @ turn)
    moved, same = backend.numpy(backend.call(run, *(backend.array(x, dtype) for x in arrays)))
    assert_close(moved, new.T @ model @ new, dtype=dtype, size=D, scale=np.max(np.abs(model)))
    assert_close(same, turn.T @ C @ turn, dtype=dtype, size=D)


@law(seed=seeds, dtype=dtypes)
def test_the_range_finder_captures_a_matrix_of_its_rank(backend, seed, dtype):
    """All of a matrix of rank r; of others, more with each call (subspace iteration)."""
    r = rng(seed)
    low, M, noise = moment(r, D, R), moment(r, D), r.standard_normal((D, R))

    def run(low, M, noise, *, xp):
        P = inversion.range_basis(low, noise, xp=xp)
        Q = inversion.range_basis(M, noise, power=0, xp=xp)
        return P, Q, inversion.range_basis(M, Q, power=60, xp=xp)

    P, Q, best = backend.numpy(
        backend.call(run, *(backend.array(x, dtype) for x in (low, M, noise)))
    )
    assert_close(P @ (P.T @ low), low, dtype=dtype, size=D, kappa=1e2)
    top = np.linalg.eigvalsh(M)[::-1][:R].sum()
    assert np.trace(Q.T @ M @ Q) < np.trace(best.T @ M @ best)
    assert 0.98 * top < np.trace(best.T @ M @ best) <= top * (1 + 1e-5)


@law(seed=seeds, power=st.sampled_from([0, 1, None]), dtype=dtypes)
def test_the_range_is_that_of_a_power(backend, seed, power, dtype):
    """The span of M^(1 + power) noise, with one product after the first unless told otherwise."""
    r = rng(seed)
    M, noise = np.diag(np.linspace(1, 3, D)), r.standard_normal((D, R))
    options = {} if power is None else {"power": power}
    arrays = (backend.array(x, dtype) for x in (M, noise))
    P = backend.numpy(backend.call(inversion.range_basis, *arrays, **options))
    span = np.linalg.matrix_power(M, 2 if power is None else 1 + power) @ noise
    assert_close(P @ (P.T @ span), span, dtype=dtype, size=D, kappa=np.linalg.cond(span))


@law(seed=seeds, dtype=dtypes)
def test_the_dominant_basis_captures_most(backend, seed, dtype):
    """tr(P^T M P) is the sum of the r largest eigenvalues, as with the reference's basis."""
    r = rng(seed)
    M = moment(r, D)
    P, _ = backend.numpy(backend.call(inversion.top_basis, backend.array(M, dtype), rank=R))
    top = np.linalg.eigvalsh(M)[::-1][:R].sum()
    Q = reference.dominant_eigenvectors(M, R)
    assert_close(np.trace(P.T @ M @ P), top, dtype=dtype, size=D)
    assert_close(np.trace(Q.T @ M @ Q), top)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: inversion.top_basis(np.eye(2), 3), "has 3 columns for vectors of length 2"),
        (lambda: inversion.top_basis(np.eye(2), 0), "has 0 columns .* expected 1 to 2"),
        (lambda: inversion.orthonormal_basis(np.ones((2, 3))), "has 3 columns"),
    ],
)
def test_wrong_ranks_get_one_clear_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
