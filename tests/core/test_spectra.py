"""Lanczos, quadrature, trace estimates and Kronecker spectra against the dense matrices."""

import itertools

import numpy as np
import pytest
from core.analysis_cases import (
    CONV,
    FC,
    PAIR,
    SCALE,
    SEQ,
    TOKENS,
    P,
    batch,
    blocks,
    cut,
    fisher,
    flat,
    slow,
)
from harness import dtypes, law, rng, seeds, tree_map
from hypothesis import assume
from hypothesis import strategies as st

from ngd_core import LayerRecord, analysis, factors, losses, nn, reference
from ngd_core.testing import assert_close, assert_far

ONE = (FC,)
ORDER = 8  # parameters of FC


def matrix_map(M, specs=ONE):
    """A dense matrix as a function on blocks."""
    return lambda v: cut(M @ flat(v, specs), specs)


def hadamard(n):
    """Orthogonal vectors of signs; their mean outer product is I."""
    return np.asarray([[1.0]]) if n == 1 else np.kron([[1.0, 1.0], [1.0, -1.0]], hadamard(n // 2))


def stacked(vectors, specs=ONE):
    """Noise blocks (samples, *block_shape) of vectors in rows."""
    each = [cut(z, specs) for z in vectors]
    return {s: np.stack([z[s] for z in each]) for s in specs}


def signs(seed, samples, specs=ONE):
    size = sum(int(np.prod(s.block_shape)) for s in specs)
    return stacked(rng(seed).choice([-1.0, 1.0], (samples, size)), specs)


# Lanczos ------------------------------------------------------------------------------------


@law(seed=seeds, dtype=dtypes)
def test_lanczos_finds_the_spectrum_and_stops_where_it_ends(backend, seed, dtype):
    """Rank r and one null direction: r + 1 steps find all, further ones nothing and no NaN."""
    n, steps = (1, 4) if slow(backend) else (2, 7)
    records = batch(seed, 2, n, dtype, ONE)
    F, end = fisher(records), 2 * n + 1
    exact, basis = np.linalg.eigh(F)
    exact, basis = exact[::-1], basis[:, ::-1]
    assume(np.min(exact[: end - 1] - exact[1:end]) > 0.02 * exact[0])
    start = cut(np.sum(basis[:, :end], axis=1), ONE)  # sees each eigenspace equally well
    got = backend.call(
        analysis.lanczos, backend.tree(records, dtype), backend.tree(start, dtype), steps=steps
    )
    values, vectors, residuals, found = backend.numpy(got)
    assert str(values.dtype) == str(residuals.dtype) == dtype
    assert int(found) == end
    assert_close(values[:end], exact[:end], dtype=dtype, size=ORDER, scale=exact[0])
    assert not np.any(values[end:])
    assert not np.any(residuals[end:])
    V = np.stack([flat({FC: v}, ONE) for v in vectors[FC]])
    known = np.arange(steps) < end
    assert_close(V @ V.T, np.diag(known.astype(float)), dtype=dtype, size=ORDER)
    left = V @ F - values[:, None] * V
    assert_close(left, np.zeros_like(left), dtype=dtype, size=ORDER, scale=exact[0])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_few_steps_give_the_ritz_values_of_the_krylov_space(seed, steps):
    """Joint Fisher of both layers; every eigenvalue claimed is within its residual of one."""
    records, start = batch(seed, 3, 12), blocks(seed)
    F = fisher(records)
    got = analysis.lanczos(records, start, steps)
    assert int(got.found) == steps
    wanted = reference.ritz_values(F, flat(start), steps)
    assert_close(got.eigenvalues, wanted, size=P, kappa=1e3)
    V = np.stack([flat({s: got.vectors[s][k] for s in PAIR}) for k in range(steps)])
    left = np.linalg.norm(V @ F - got.eigenvalues[:, None] * V, axis=1)
    assert_close(left, got.residuals, size=P, scale=wanted[0])
    exact = np.linalg.eigvalsh(F)
    for value, residual in zip(got.eigenvalues, got.residuals, strict=True):
        assert np.min(np.abs(exact - value)) <= residual + 1e-12 * exact[-1]
    same = analysis.lanczos(matrix_map(F, PAIR), start, steps)
    assert_close(same.eigenvalues, got.eigenvalues, size=P, kappa=1e3)


def test_full_reorthogonalisation_keeps_ghosts_away():
    """A spectrum for which plain Lanczos repeats its largest eigenvalues many times."""
    values = np.concatenate([[1e6, 1e3], np.linspace(0.0, 1.0, P - 2)])
    q, _ = np.linalg.qr(rng(0).standard_normal((P, P)))
    got = analysis.lanczos(matrix_map((q * values) @ q.T, PAIR), blocks(1), P)
    assert_close(got.eigenvalues, np.sort(values)[::-1], size=P)
    V = np.stack([flat({s: got.vectors[s][k] for s in PAIR}) for k in range(P)])
    assert_close(V @ V.T, np.eye(P), size=P)


def test_indefinite_maps_small_spaces_and_zero():
    """What lies behind a breakdown is sorted last, also below negative eigenvalues."""
    M = np.diag([-3.0, -1.0, -2.0, 0.5, 0.0, 7.0, 7.0, 1.0])
    start = np.asarray([1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    got = analysis.lanczos(matrix_map(M), cut(start, ONE), 4)
    assert int(got.found) == 2
    assert_close(got.eigenvalues, [-1.0, -3.0, 0.0, 0.0], size=ORDER)
    start[5:7] = 1.0  # of an eigenvalue that comes twice one copy is seen
    got = analysis.lanczos(matrix_map(M), cut(start, ONE), 8)
    assert int(got.found) == 3
    assert_close(got.eigenvalues[:3], [7.0, -1.0, -3.0], size=ORDER)
    for scale in (1e-20, 1e20):
        small = analysis.lanczos(matrix_map(scale * M), cut(start, ONE), 8)
        assert_close(small.eigenvalues[:3] / scale, [7.0, -1.0, -3.0], size=ORDER)
    zero = analysis.lanczos(matrix_map(0 * M), cut(start, ONE), 3)
    assert (int(zero.found), zero.eigenvalues.tolist()) == (1, [0.0, 0.0, 0.0])
    nothing = analysis.lanczos(matrix_map(M), cut(0 * start, ONE), 3)
    assert (int(nothing.found), nothing.eigenvalues.tolist()) == (0, [0.0, 0.0, 0.0])
    more = analysis.lanczos(matrix_map(M), cut(np.arange(1.0, 9.0), ONE), 50)
    assert more.eigenvalues.shape == (8,)


def test_eigenvectors_of_the_gram_route_and_of_lanczos_give_the_same_largest():
    records = batch(4, 2, 3)
    top = analysis.lanczos(records, blocks(4), 15)
    assert int(top.found) == 7
    assert_close(top.eigenvalues[:6], analysis.eigenvalues(records), size=P)


@pytest.mark.parametrize(
    ("of_records", "of_start", "of_result"),
    [
        ("float64", "float32", "float64"),
        ("float32", "float64", "float64"),
        ("float32", "float32", "float32"),
        ("float32", "float16", "float32"),
    ],
)
def test_results_have_the_wider_dtype(of_records, of_start, of_result):
    """Of records and vectors together, at least float32."""
    records = tree_map(lambda x: x.astype(of_records), batch(0, 2, 3))
    start, noise = (tree_map(lambda x: x.astype(of_start), m) for m in (V, signs(0, 2, PAIR)))
    got = analysis.lanczos(records, start, 3)
    results = [got.eigenvalues, got.vectors[FC], analysis.hutchinson_trace(records, noise)]
    results += analysis.spectral_quadrature(records, noise, 2)
    assert {str(x.dtype) for x in results} == {of_result}
    F = fisher(records)
    wanted = reference.ritz_values(F, flat(start), 3)
    assert_close(got.eigenvalues, wanted, dtype=of_result, size=P)


# quadrature ---------------------------------------------------------------------------------


@law(seed=seeds, dtype=dtypes)
def test_quadrature_is_exact_for_polynomials(backend, seed, dtype):
    """P sum(w theta^p) = mean of z^T F^p z for p < 2k, and tr F^p for a basis of signs."""
    records = batch(seed, 3, 5, dtype, ONE)
    k, few = (2, 1) if slow(backend) else (3, ORDER)
    noise = stacked(hadamard(ORDER)[-few:])
    arrays = backend.tree(records, dtype), backend.tree(noise, dtype)
    got = backend.call(analysis.spectral_quadrature, *arrays, steps=k)
    nodes, weights = (x.astype(np.float64) for x in backend.numpy(got))
    samples = len(noise[FC])
    assert nodes.shape == weights.shape == (samples, k)
    assert np.all(weights >= 0)
    assert_close(weights.sum(axis=1), np.full(samples, 1 / samples), dtype=dtype, size=ORDER)
    F = fisher(records)
    Z = np.stack([flat({FC: z}, ONE) for z in noise[FC]])
    for p in range(2 * k + 1):
        power = np.linalg.matrix_power(F, p)
        wanted = np.mean(np.sum((Z @ power) * Z, axis=1))
        estimate = ORDER * np.sum(weights * nodes**p)
        if p < 2 * k:
            assert_close(estimate, wanted, dtype=dtype, size=4 * ORDER)
            if samples == ORDER:
                assert_close(estimate, np.trace(power), dtype=dtype, size=4 * ORDER)
        elif dtype == "float64":
            assert_far(estimate, wanted, least=1e-9)


def test_what_lies_behind_a_breakdown_has_no_weight():
    M = np.diag([-3.0, -1.0, -2.0, 0.5, 0.0, 7.0, 7.0, 1.0])
    start = np.zeros((2, ORDER))
    start[0, :2] = 1.0, 1.0
    nodes, weights = analysis.spectral_quadrature(matrix_map(M), stacked(start), 4)
    assert_close(nodes[0], [-1.0, -3.0, 0.0, 0.0], size=ORDER)
    assert_close(weights, [[0.25, 0.25, 0.0, 0.0], [0.0] * 4], size=ORDER)


@law(seed=seeds, width=st.sampled_from([0.1, 3.0]), dtype=dtypes)
def test_density_is_a_sum_of_bells(backend, seed, width, dtype):
    r = rng(seed)
    nodes, weights = r.random((2, 3)), r.random((2, 3))
    grid = np.linspace(-60.0, 60.0, 2001)[:: 50 if slow(backend) else 1]
    arrays = [backend.array(x, dtype) for x in (nodes, weights, grid)]
    got = backend.numpy(backend.call(analysis.spectral_density, *arrays, width))
    assert str(got.dtype) == dtype
    rounded = [np.asarray(x, dtype).astype(np.float64) for x in (nodes, weights, grid)]
    wanted = reference.smoothed_density(*rounded, width)
    assert_close(got, wanted, dtype=dtype, size=6, kappa=20.0 / width)
    if not slow(backend):
        assert_close(np.sum(got) * 0.06, np.sum(weights), dtype=dtype, size=100)


# Hutchinson ---------------------------------------------------------------------------------


@law(seed=seeds, dtype=dtypes)
def test_trace_estimates_and_their_variance(backend, seed, dtype):
    """z^T F z; the variance over all sign vectors is 2 (|F|^2 - sum F_ii^2)."""
    records, noise = batch(seed, 2, 3, dtype, ONE), signs(seed, 2)
    F = fisher(records)

    def both(records, noise, *, xp):
        values = analysis.hutchinson_trace(records, noise, xp=xp)
        return values, analysis.hutchinson_variance(records, xp=xp)

    got = backend.call(both, backend.tree(records, dtype), backend.tree(noise, dtype))
    values, variance = backend.numpy(got)
    assert str(values.dtype) == str(variance.dtype) == dtype
    Z = [flat({FC: z}, ONE) for z in noise[FC]]
    assert_close(values, [z @ F @ z for z in Z], dtype=dtype, size=4 * ORDER)
    wanted = reference.sign_trace_variance(F)
    options = {"size": ORDER, "scale": 2 * np.linalg.norm(F) ** 2}
    assert_close(variance, wanted, dtype=dtype, **options)


def test_many_estimates_have_the_mean_and_variance_they_should():
    """Fixed seeds: within five standard errors, those of the variance from all sign vectors."""
    records, samples = batch(7, 2, 3, specs=ONE), 4000
    F = fisher(records)
    values = analysis.hutchinson_trace(records, signs(11, samples))
    assert_close(values[:50], analysis.hutchinson_trace(matrix_map(F), signs(11, samples))[:50])
    variance = float(analysis.hutchinson_variance(records))
    z = (np.mean(values) - float(analysis.trace(records))) / np.sqrt(variance / samples)
    assert abs(z) < 5
    every = np.asarray(list(itertools.product((-1.0, 1.0), repeat=ORDER)))
    fourth = np.mean((np.sum((every @ F) * every, axis=1) - np.trace(F)) ** 4)
    error = np.sqrt((fourth - variance**2) / samples)
    assert abs(np.var(values) - variance) < 5 * error
    normal = stacked(rng(11).standard_normal((samples, ORDER)))
    assert np.var(analysis.hutchinson_trace(records, normal)) > variance + 5 * error


# Kronecker products -------------------------------------------------------------------------


def factor_pairs(spec, A, G):
    """A and G of each group; an embedding's A is a diagonal."""
    A = np.diag(A) if A.ndim < G.ndim else A
    return list(zip(A, G, strict=True)) if spec.stack else [(A, G)]


def dense_products(spec, A, G):
    """G (x) A of each group."""
    return [reference.kron(g, a) for a, g in factor_pairs(spec, A, G)]


@law(
    seed=seeds,
    spec=st.sampled_from([CONV, FC, TOKENS, SCALE]),
    n=st.sampled_from([5, 2]),
    dtype=dtypes,
)
def test_kronecker_spectrum_is_that_of_the_dense_product(backend, seed, spec, n, dtype):
    """Eigenvalues, trace, norm, rank, condition, logdet of G (x) A, groups side by side."""
    spec = FC if slow(backend) else spec
    record = batch(seed, None, n, dtype, (spec,))[spec]
    A, G = (x.astype(dtype) for x in factors.kronecker_factors(spec, record))
    got = backend.numpy(
        backend.call(analysis.kronecker_spectrum, backend.array(A), backend.array(G))
    )
    products = dense_products(spec, A, G)
    exact = np.sort(np.concatenate([np.linalg.eigvalsh(m) for m in products]))[::-1]
    options = {"dtype": dtype, "size": 12}
    assert_close(got.eigenvalues, exact, **options)
    assert str(got.eigenvalues.dtype) == dtype
    assert_close(got.trace, sum(np.trace(m) for m in products), **options)
    assert_close(got.frobenius, np.linalg.norm(exact), **options)
    eps = np.finfo(dtype).eps
    rank = sum(
        np.prod([np.linalg.matrix_rank(m.astype(float), rtol=len(m) * eps) for m in pair])
        for pair in factor_pairs(spec, A, G)
    )
    assert int(got.rank) == rank
    if spec is FC and n == 2:
        assert int(got.rank) == 4
        assert float(got.condition) > 1e5
    if int(got.rank) == len(exact):
        kappa = exact[0] / exact[-1]
        assert_close(got.condition, kappa, **options, kappa=kappa)
    logdet = analysis.log_determinant(got.eigenvalues.astype(np.float64), 0.1)
    wanted = sum(reference.log_determinant(m, 0.1) for m in products)
    assert_close(logdet, wanted, **options, kappa=1 + exact[0] / 0.1)


@law(
    seed=seeds,
    spec=st.sampled_from([FC, SEQ, CONV, TOKENS, SCALE]),
    vectors=st.sampled_from([2, None]),
)
def test_trace_error_of_kfac(backend, seed, spec, vectors):
    """tr F - tr A tr G; a covariance for one position, 0 for one datum."""
    for n in (4,) if slow(backend) else (4, 1):
        record = batch(seed, vectors, n, specs=(spec,))[spec]
        got = analysis.kfac_trace_error(spec, backend.tree(record), xp=backend.xp)
        got = backend.numpy(got)
        A, G = factors.kronecker_factors(spec, record)
        trace = np.trace(fisher({spec: record}))
        kfac = sum(np.trace(m) for m in dense_products(spec, A, G))
        assert_close(got, trace - kfac, size=12, scale=trace + kfac)
        if spec is FC:
            a, g = record.a, record.g if vectors else record.g[None]
            x, y = np.sum(a**2, axis=1) + 1, np.sum(g**2, axis=(0, 2))
            assert_close(got, np.cov(x, y, ddof=0)[0, 1], size=12, scale=trace)
            assert (float(got) == 0.0) == (n == 1)


def test_the_trace_error_does_not_cancel():
    """Inputs of nearly the same large norm, float32: the difference of the traces is rounding."""
    a = np.asarray([[1000.0], [1000.03]], np.float32)
    record = LayerRecord(a[:, [0, 0, 0]], np.asarray([[1.0, 0.0], [1.0001, 0.0]], np.float32))
    x = np.sum(record.a.astype(np.float64) ** 2, axis=1)
    y = np.sum(record.g.astype(np.float64) ** 2, axis=1)
    got = analysis.kfac_trace_error(FC, record)
    exact = np.cov(x, y, ddof=0)[0, 1]
    assert abs(float(got) / exact - 1) < 1e-2
    A, G = factors.kronecker_factors(FC, record)
    naive = analysis.layer_traces({FC: record})[FC] - np.trace(A) * np.trace(G)
    assert abs(float(naive) / exact - 1) > 1.0


# networks -----------------------------------------------------------------------------------


def small_network(likelihood, seed=0):
    """A model, the same for the oracle, parameters, inputs, and records of the exact Fisher."""
    r = rng(seed)
    model = nn.Sequential(nn.Dense("first", 3, 4), nn.Tanh(), nn.Dense("last", 4, 2))
    network = reference.Network(
        (
            reference.Layer("dense", "first", in_features=3, out_features=4),
            reference.Layer("tanh"),
            reference.Layer("dense", "last", in_features=4, out_features=2),
        )
    )
    params = {name: r.standard_normal(shape) for name, shape in nn.shapes(model).items()}
    x = r.standard_normal((4, 3))
    outputs, tape = nn.forward(model, params, x)
    vectors = losses.fisher_vectors("exact", losses.get(likelihood), outputs)
    back = nn.backward(model, params, tape, vectors, grads=False)
    return model, network, params, x, back.records


LIKELIHOODS = ["categorical", "bernoulli", "gaussian"]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_records_of_the_exact_fisher_give_the_network_s_own(likelihood):
    """The oracle's Fisher by complex steps: trace, diagonal, spectrum, natural gradient."""
    _, network, params, x, records = small_network(likelihood)
    F = reference.exact_fisher(network, params, x, likelihood)
    specs = tuple(records)
    assert [s.name for s in specs] == list(network.slices)
    assert_close(analysis.trace(records), np.trace(F), size=100)
    assert_close(flat(analysis.diagonal(records), specs), np.diag(F), size=100)
    values = analysis.eigenvalues(records)
    assert_close(values, np.linalg.eigvalsh(F)[::-1][: len(values)], size=100)
    g = rng(1).standard_normal(len(F))
    u = analysis.natural_gradient(records, cut(g, specs), 0.01)
    kappa = 1 + np.linalg.norm(F) / 0.01
    assert_close(flat(u, specs), reference.solve(F, g, 0.01), size=100, kappa=kappa)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_fisher_is_the_curvature_of_the_divergence(likelihood):
    """KL(p_theta || p_(theta + delta)) = 1/2 delta^T F delta + O(|delta|^3), order measured."""
    model, _, params, x, records = small_network(likelihood)
    specs = tuple(records)
    delta = cut(rng(2).standard_normal(26), specs)
    outputs = nn.predict(model, params, x)
    errors = []
    for k in range(8, 12):
        step = {s: d / 2**k for s, d in delta.items()}
        moved = {s.name: params[s.name] + step[s] for s in specs}
        kl = np.mean(reference.kl_divergence(likelihood, outputs, nn.predict(model, moved, x)))
        quadratic = 0.5 * float(factors.fisher_inner(records, [step])[0, 0])
        assert abs(kl - quadratic) < 0.2 * kl
        errors.append(abs(kl - quadratic))
    orders = np.log2(np.asarray(errors[:-1]) / errors[1:])
    assert np.all(np.abs(orders - 3) < 0.2)


# mistakes and what is not finite ------------------------------------------------------------


def test_what_is_not_finite_shows():
    """NaN, not an exception nor a wrong number."""
    records = batch(0, 2, 3)
    bad = {**records, FC: records[FC]._replace(g=records[FC].g * np.nan)}
    v = blocks(0)
    for numbers in (
        analysis.trace(bad),
        analysis.diagonal(bad)[FC],
        analysis.eigenvalues(bad),
        analysis.frobenius_norm(bad),
        flat(analysis.natural_gradient(bad, v, 0.1)),
        np.asarray(analysis.agreement(v, v, bad, 0.1)),
        analysis.lanczos(bad, v, 3).eigenvalues,
        analysis.hutchinson_trace(bad, signs(0, 1, PAIR)),
        analysis.kronecker_spectrum(np.full((2, 2), np.nan), np.eye(2)).eigenvalues,
    ):
        assert not np.any(np.isfinite(numbers))


RECORDS, V = batch(0, 2, 3), blocks(0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: analysis.lanczos(RECORDS, V, 0), "steps is 0; expected an integer >= 1"),
        (lambda: analysis.lanczos(RECORDS, {}, 2), "start is empty"),
        (lambda: analysis.lanczos(RECORDS, {FC: V[FC]}, 2), "records holds the layer 'conv'"),
        (lambda: analysis.hutchinson_trace(RECORDS, V), "noise of 'fc' has shape"),
        (lambda: analysis.hutchinson_trace(RECORDS, {}), "noise is empty"),
        (
            lambda: analysis.hutchinson_trace(
                RECORDS, {s: np.ones((0, *s.block_shape)) for s in PAIR}
            ),
            "at least one sample",
        ),
        (
            lambda: analysis.spectral_quadrature(
                RECORDS, {FC: signs(0, 2)[FC], CONV: np.ones((3, *CONV.block_shape))}, 2
            ),
            r"noise of 'conv' has shape \(3, .*expected \(2, ",
        ),
        (lambda: analysis.hutchinson_variance(RECORDS, limit=5), "6 rows, above the limit of 5"),
        (lambda: analysis.eigenvalues(RECORDS, limit=5), "6 rows, above the limit of 5"),
        (lambda: analysis.fisher_gram({}), "records is empty"),
        (
            lambda: analysis.log_determinant(np.ones(3), 1.0, parameters=2),
            "there are 3 eigenvalues for 2 parameters",
        ),
        (lambda: analysis.log_determinant(np.ones(3), 0.0), "damping is 0.0"),
        (lambda: analysis.effective_dimension(np.ones(3), -1.0), "damping is -1.0"),
        (lambda: analysis.condition_number(np.ones(3), -1.0), "damping is -1.0"),
        (lambda: analysis.spectral_density(*np.ones((3, 2)), 0.0), "width is 0.0"),
        (
            lambda: analysis.spectral_density(np.ones(2), np.ones(3), np.ones(2), 1.0),
            "weights has shape",
        ),
        (
            lambda: analysis.kronecker_spectrum(np.ones((2, 3, 3)), np.ones((3, 3))),
            "expected the factors of one layer",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
