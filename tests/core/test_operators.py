"""Curvature as operators: every method equals that of the dense matrix."""

import numpy as np
import pytest
from core.analysis_cases import FC, SETS, batch, blocks, cut, fisher, flat, sizes, slow
from core.eager import eager_law
from harness import dtypes, seeds
from hypothesis import strategies as st

import ngd_core
from ngd_core import Hyper, LayerRecord, LayerSpec, operators
from ngd_core.operators import EigenBlock, KroneckerOperator
from ngd_core.testing import assert_close

sets = st.sampled_from(["kinds", "more"])
LAMBDA = 0.1


def function(F, f):
    values, vectors = np.linalg.eigh(F)
    return vectors * f(np.maximum(values, 0.0)) @ vectors.T


def everything(records, v, *, short, xp):
    F = operators.fisher(records, xp=xp)
    inverse = F.inverse(LAMBDA)
    if short:
        return {"product": F @ v, "inverse": inverse @ v, "logdet": F.logdet(LAMBDA)}
    return {
        "product": F @ v,
        "inverse": inverse @ v,
        "solve": F.solve(v, LAMBDA),
        "back": inverse.inverse() @ v,
        "root": F.sqrt() @ (F.sqrt() @ v),
        "half": inverse.sqrt() @ v,
        "trace": F.trace(),
        "inverse trace": inverse.trace(),
        "logdet": F.logdet(LAMBDA),
        "inverse logdet": inverse.logdet(),
        "diagonal": F.diagonal(),
        "inverse diagonal": inverse.diagonal(),
        "eigenvalues": F.eigenvalues(),
        "dense": F.to_dense(),
        "inverse dense": inverse.to_dense(),
    }


@eager_law(seed=seeds, which=sets, size=sizes, dtype=dtypes)
def test_functions_of_the_fisher_are_those_of_the_matrix(backend, seed, which, size, dtype):
    """Range and rest, fewer rows than parameters and more, every kind of layer."""
    specs = SETS[which][:1] if slow(backend) else SETS[which]
    records, v = batch(seed, *size, dtype, specs), blocks(seed + 1, dtype, specs)
    F, x = fisher(records), flat(v, specs)
    arguments = backend.tree(records, dtype), backend.tree(v, dtype)
    got = backend.numpy(backend.call(everything, *arguments, short=slow(backend)))
    damped = F + LAMBDA * np.eye(len(F))
    top = np.linalg.eigvalsh(F)[-1]
    kappa = 10 * (top + LAMBDA) / LAMBDA
    inverse = np.linalg.inv(damped)
    wanted = {
        "product": F @ x,
        "inverse": inverse @ x,
        "solve": inverse @ x,
        "back": damped @ x,
        "root": F @ x,
        "half": function(F, lambda k: (k + LAMBDA) ** -0.5) @ x,
        "diagonal": np.diag(F),
        "inverse diagonal": np.diag(inverse),
    }
    for name, y in wanted.items():
        if name not in got:
            continue
        assert all(str(part.dtype) == dtype for part in got[name].values())
        assert_close(flat(got[name], specs), y, dtype=dtype, size=len(F), kappa=kappa)
    numbers = {
        "trace": np.trace(F),
        "inverse trace": np.trace(inverse),
        "logdet": np.linalg.slogdet(damped)[1],
        "inverse logdet": -np.linalg.slogdet(damped)[1],
    }
    for name, y in numbers.items():
        if name not in got:
            continue
        near = abs(got[name] - y) / (abs(y) + len(F))
        assert_close(near, 0.0, dtype=dtype, size=len(F), kappa=kappa)
    if slow(backend):
        return
    assert_close(got["dense"], F, dtype=dtype, size=len(F), kappa=kappa)
    assert_close(got["inverse dense"], inverse, dtype=dtype, size=len(F), kappa=kappa)
    values = np.linalg.eigvalsh(F)[::-1][: len(got["eigenvalues"])]
    padded = np.pad(values, (0, len(got["eigenvalues"]) - len(values)))
    assert_close(got["eigenvalues"], padded, dtype=dtype, size=len(F), kappa=kappa)


@pytest.mark.parametrize("seed", range(8))
def test_rows_that_nearly_depend_on_each_other_do_not_spoil_a_damped_solution(seed):
    """Eigenvalues of K far below the largest, whose eigenvectors are known to few digits."""
    r = np.random.default_rng(seed)
    n, wide = 6, LayerSpec("wide", "dense", 9, 5)
    root = r.standard_normal((4, n, 5))
    root[3] = 1e-5 * root[3] - root[:3].sum(0)
    records = {wide: LayerRecord(r.standard_normal((n, 9)), root)}
    v, M = {wide: r.standard_normal((5, 10))}, fisher(records)
    damped = M + LAMBDA * np.eye(len(M))
    got = operators.fisher(records).solve(v, LAMBDA)[wide]
    want = np.linalg.solve(damped, v[wide].reshape(-1))
    assert_close(got.reshape(-1), want, size=len(M), kappa=np.linalg.cond(damped))


def kronecker_case(seed, method):
    """A state with statistics and a basis, and its dense blocks by definition."""
    specs = SETS["kinds"] if method.startswith("ekfac") else (*SETS["kinds"], *SETS["more"])
    records = batch(seed, 2, 7, specs=specs)
    made = ngd_core.EKFAC() if method == "ekfac" else ngd_core.KFAC()
    state = made.init(specs, np.zeros(()))
    state = made.accumulate(state, records, Hyper())
    state, _ = made.refresh(state, Hyper(damping=0.1))
    state = made.accumulate(state, batch(seed + 1, 2, 5, specs=specs), Hyper())
    return specs, state


def dense(layer, spec, method):
    """Matrix of a layer's block, stack after stack."""
    stack = spec.stack or (1,)
    n = spec.rows * spec.columns
    whole = np.zeros((np.prod(stack) * n,) * 2)
    for i in range(np.prod(stack)):
        if method == "ekfac":
            q_g, q_a, s = (
                x.reshape(-1, *x.shape[-2:])[i]
                for x in (layer.g_basis, layer.a_basis, layer.scales)
            )
            q = np.kron(q_g, q_a)
            block = q * s.reshape(-1) @ q.T
        else:
            g = layer.g.reshape(-1, *layer.g.shape[-2:])[i]
            diagonal = layer.a.ndim < layer.g.ndim
            a = np.diag(layer.a) if diagonal else layer.a.reshape(-1, *layer.a.shape[-2:])[i]
            block = np.kron(g, a)
        whole[i * n : (i + 1) * n, i * n : (i + 1) * n] = block
    return whole


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
@pytest.mark.parametrize("seed", range(3))
def test_a_kronecker_operator_is_its_matrix(seed, method):
    """Every kind of layer, groups and stacks, a diagonal factor, eigenvalues of zero."""
    specs, state = kronecker_case(seed, method)
    F, v = operators.kronecker(state), blocks(seed, specs=specs)
    inverse = F.inverse(LAMBDA)
    trace = logdet = 0.0
    spectrum = []
    for spec in specs:
        M = dense(state.layers[spec], spec, method)
        x, one = v[spec].reshape(-1), np.eye(len(M))
        kappa = 10 * (np.linalg.eigvalsh(M)[-1] + LAMBDA) / LAMBDA
        pairs = [
            ((F @ v)[spec], M @ x),
            ((inverse @ v)[spec], np.linalg.solve(M + LAMBDA * one, x)),
            (F.solve(v, LAMBDA)[spec], np.linalg.solve(M + LAMBDA * one, x)),
            ((F.sqrt() @ (F.sqrt() @ v))[spec], M @ x),
            (F.diagonal()[spec], np.diag(M)),
            (inverse.diagonal()[spec], np.diag(np.linalg.inv(M + LAMBDA * one))),
        ]
        for got, wanted in pairs:
            assert got.shape == spec.block_shape
            assert_close(got.reshape(-1), wanted, size=len(M), kappa=kappa)
        assert_close(F.to_dense()[spec], M, size=len(M), kappa=kappa)
        trace += np.trace(M)
        logdet += np.linalg.slogdet(M + LAMBDA * one)[1]
        spectrum.append(np.linalg.eigvalsh(M))
    assert_close(F.trace(), trace, size=20)
    assert_close(F.logdet(LAMBDA), logdet, size=100, kappa=1e4)
    assert_close(inverse.logdet(), -logdet, size=100, kappa=1e4)
    assert_close(F.eigenvalues(), np.sort(np.concatenate(spectrum))[::-1], size=100, kappa=100)


def test_the_direction_of_exact_damping_is_the_operator_s_solve():
    """The operator and the method say one thing."""
    specs, state = kronecker_case(0, "kfac")
    method = ngd_core.KFAC(damping_split="exact")
    fresh = method.init(specs, np.zeros(()))
    fresh = method.accumulate(fresh, batch(0, 2, 7, specs=specs), Hyper())
    fresh, _ = method.refresh(fresh, Hyper(damping=LAMBDA))
    v = blocks(3, specs=specs)
    want, _ = method.direction(fresh, v, {}, Hyper(damping=LAMBDA))
    got = operators.kronecker(fresh).solve(v, LAMBDA)
    for spec in specs:
        assert_close(got[spec], want[spec], size=20, kappa=1e4)
    assert state.layers.keys() == fresh.layers.keys()


def test_singular_operators_say_so():
    F = operators.fisher({FC: LayerRecord(np.ones((1, 3)), np.ones((1, 2)))})
    assert_close(F.eigenvalues(), [8.0], size=8)
    assert float(F.rest) == 0.0
    with np.errstate(divide="ignore"):
        assert np.isneginf(F.logdet())
    K = KroneckerOperator({FC: EigenBlock(np.zeros((2, 4)), np.eye(2), np.eye(4))})
    with np.errstate(divide="ignore"):
        assert np.isneginf(K.logdet())
    assert (K @ {FC: np.ones((2, 4))})[FC].tolist() == np.zeros((2, 4)).tolist()


def test_a_range_that_is_everything_has_no_rest():
    """Then the logarithm of 0 outside counts for nothing."""
    records = batch(0, 2, 20, specs=(FC,))
    F = operators.fisher(records)
    M = fisher(records)
    with np.errstate(divide="ignore"):
        assert_close(F.logdet(), np.linalg.slogdet(M)[1], size=8, kappa=np.linalg.cond(M))
    values = np.asarray(F.eigenvalues())
    assert len(values) == 40
    assert np.count_nonzero(values) == 8


def test_a_sample_of_a_laplace_posterior_has_its_covariance():
    """``(N F + tau)^(-1/2) eps``: the product of the root with its transpose is the inverse."""
    records = batch(5, None, 4, specs=(FC,))
    posterior = operators.fisher(records).inverse(0.5).sqrt()
    S = np.stack([flat(posterior @ cut(e, (FC,)), (FC,)) for e in np.eye(8)])
    assert_close(S @ S.T, np.linalg.inv(fisher(records) + 0.5 * np.eye(8)), size=8, kappa=100)


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (lambda F: F @ {}, ValueError, ["fc"]),
        (lambda F: F.inverse(-1.0), ValueError, ["damping"]),
        (lambda F: F.logdet(-1.0), ValueError, ["damping"]),
        (lambda F: F @ {FC: np.ones((3, 2))}, ValueError, ["fc", "(3, 2)", "(2, 4)"]),
    ],
)
def test_a_mistake_gets_one_sentence(call, error, parts):
    K = KroneckerOperator({FC: EigenBlock(np.ones((2, 4)), np.eye(2), np.eye(4))})
    for F in (K, operators.fisher(batch(0, None, 2, specs=(FC,)))):
        with pytest.raises(error) as raised:
            call(F)
        for part in parts:
            assert part in str(raised.value)


def test_a_state_of_another_method_is_refused():
    state = ngd_core.SNGD().init([FC], np.zeros(()))
    with pytest.raises(TypeError, match="expected one of KFAC or EKFAC"):
        operators.kronecker(state)
