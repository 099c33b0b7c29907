"""Operators on pytrees: every method equals that of the matrix by `jax.jacobian`."""

import jax
import jax.numpy as jnp
import ngd_jax
import numpy as np
import optax
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

import ngd_core
from ngd_core.testing import assert_close

N, LAMBDA = 4, 0.1


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def predict(p, x):
    """A convolution, a stack of dense layers and an output, its kernel ``(in, out)``."""
    h = lax.conv_general_dilated(x, p["conv"]["kernel"], (1, 1), "VALID")
    h = jnp.reshape(jnp.tanh(h + p["conv"]["bias"][:, None, None]), (len(x), -1))
    h, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, p["stack"])
    return h @ p["out"][0] + p["out"][1]


def loss_fn(p, x):
    z = predict(p, x)
    return jnp.mean(jax.nn.logsumexp(z, axis=-1)), z


PARAMS = {
    "conv": {"bias": normal(2), "kernel": normal(2, 1, 2, 2, seed=1)},
    "out": (normal(2, 3, seed=2), normal(3, seed=3)),
    "stack": normal(2, 2, 2, seed=4),
}
X = normal(N, 1, 2, 2, seed=5)
V = jax.tree.map(lambda x: jnp.cos(3 * x), PARAMS)


def flat(tree):
    return np.concatenate([np.asarray(x).reshape(-1) for x in jax.tree.leaves(tree)])


def matrix():
    """Mean of ``J^T H J`` in the order of the leaves."""
    start, back = ravel_pytree(PARAMS)
    j, z = jax.jit(lambda w: (jax.jacobian(lambda w: predict(back(w), X))(w), predict(back(w), X)))(
        start
    )
    p = np.asarray(jax.nn.softmax(z))
    hessians = [np.diag(one) - np.outer(one, one) for one in p]
    return sum(a.T @ h @ a for a, h in zip(np.asarray(j), hessians, strict=True)) / N


@jax.jit
def everything(params, x, v):
    F = ngd_jax.fisher(loss_fn, params, x)
    solved = F.inverse(LAMBDA)
    return {
        "product": F @ v,
        "solved": F.solve(v, LAMBDA),
        "half": solved.sqrt() @ (solved.sqrt() @ v),
        "diagonal": F.diagonal(),
        "dense": F.to_dense(),
        "trace": F.trace(),
        "logdet": F.logdet(LAMBDA),
        "eigenvalues": F.eigenvalues(),
    }


def test_the_operator_of_a_batch_is_the_matrix_by_jacobians():
    """Kernels and biases, a stack in one leaf, transposed weights, in the order of the leaves."""
    M, u, got = matrix(), flat(V), everything(PARAMS, X, V)
    damped = M + LAMBDA * np.eye(len(M))
    kappa = 10 * np.linalg.cond(damped)
    for name in ("product", "solved", "half", "diagonal"):
        assert jax.tree.structure(got[name]) == jax.tree.structure(PARAMS)
        assert jax.tree.map(jnp.shape, got[name]) == jax.tree.map(jnp.shape, PARAMS)
    want = {
        "product": M @ u,
        "solved": np.linalg.solve(damped, u),
        "half": np.linalg.solve(damped, u),
        "diagonal": np.diag(M),
        "trace": np.trace(M),
        "logdet": np.linalg.slogdet(damped)[1],
    }
    for name, y in want.items():
        x = flat(got[name])
        assert_close(x.reshape(np.shape(y)), y, size=len(M), kappa=kappa)
    assert_close(np.asarray(got["dense"]), M, size=len(M), kappa=kappa)
    values = np.linalg.eigvalsh(M)[::-1][: len(got["eigenvalues"])]
    assert np.abs(np.asarray(got["eigenvalues"]) - values).max() < 1e-12 * values[0]


def small(p, x):
    z = (x @ p["w"] + p["b"]) / p["s"]
    return 0.5 * jnp.mean(jnp.sum(z * z, axis=-1)), z


SMALL = {"w": normal(3, 2), "b": normal(2), "s": jnp.full(2, 2.0)}
POINTS = normal(N, 3, seed=1)
KNOWN = {"w": SMALL["w"], "b": SMALL["b"], "s": None}


def test_parameters_in_no_layer_are_named_or_left_out():
    with pytest.raises(ValueError, match=r"'s' \(used by div\).*uncovered='omit'"):
        ngd_jax.fisher(small, SMALL, POINTS, likelihood="gaussian")

    @jax.jit
    def both(p, x):
        F = ngd_jax.fisher(small, p, x, likelihood="gaussian", uncovered="omit")
        return F @ {**p, "s": None}, F.trace()

    product, trace = both(SMALL, POINTS)
    assert product["s"] is None
    inputs = np.concatenate([POINTS, np.ones((N, 1))], axis=1)
    A = inputs.T @ inputs / N
    block = A @ np.concatenate([SMALL["w"], SMALL["b"][None]]) / 4
    assert_close(np.asarray(product["w"]), block[:3], size=10)
    assert_close(np.asarray(product["b"]), block[3], size=10)
    assert_close(np.asarray(trace), 2 * np.trace(A) / 4, size=10)


@pytest.mark.parametrize("maker", [ngd_jax.kfac, ngd_jax.ekfac])
def test_a_step_is_the_solution_with_the_state_s_operator(maker):
    """Exact damping, rate 1: the update is minus ``(F + lambda)^-1 grad``."""
    layers = ngd_jax.report(small, SMALL, POINTS)
    split = {"damping_split": "exact"} if maker is ngd_jax.kfac else {}
    optimizer = optax.chain(
        maker(layers, 1.0, damping=LAMBDA, momentum=0.0, kl_clip=None, **split), optax.identity()
    )

    @jax.jit
    def step(p, x):
        f = ngd_jax.value_and_grad(small, has_aux=True, fisher="exact", likelihood="gaussian")
        _, grads, records = f(p, x)
        updates, state = optimizer.update(grads, optimizer.init(p), p, records=records)
        F = ngd_jax.kronecker(state, layers, p, uncovered="omit")
        grads = {**grads, "s": None}
        return updates, F.solve(grads, LAMBDA), F @ grads, F.to_dense(), grads

    updates, solved, product, M, grads = step(SMALL, POINTS)
    for name in ("w", "b"):
        assert_close(-np.asarray(solved[name]), np.asarray(updates[name]), size=10, kappa=1e3)
    assert_close(np.asarray(M) @ flat(grads), flat(product), size=10, kappa=100)


def test_mistakes_get_one_sentence():
    layers = ngd_jax.report(small, SMALL, POINTS)
    state = ngd_jax.kfac(layers, 0.1).init(SMALL)
    with pytest.raises(ValueError, match="'s' \\(used by div\\)"):
        ngd_jax.kronecker(state, layers, SMALL)
    with pytest.raises(ValueError, match="holds 0 states"):
        ngd_jax.kronecker(optax.adam(0.1).init(SMALL), layers, SMALL)
    other = ngd_jax.precondition(layers, ngd_core.SNGD()).init(SMALL)
    with pytest.raises(TypeError, match="expected one of KFAC or EKFAC"):
        ngd_jax.kronecker(other, layers, SMALL, uncovered="omit")
    F = ngd_jax.kronecker(state, layers, SMALL, uncovered="omit")
    with pytest.raises(ValueError, match="has \\['s'\\] besides"):
        F @ SMALL
    with pytest.raises(ValueError, match="'w' has shape \\(2, 3\\); expected \\(3, 2\\)"):
        F @ {**KNOWN, "w": SMALL["w"].T}
    with pytest.raises(ValueError, match="those that the optimizer was made with"):
        ngd_jax.kronecker(state, layers, {"s": SMALL["s"]}, uncovered="omit")
