"""Values beside kfac-jax's, in float64: factors, damped directions, products with the Fisher.

`make peers` runs it, in minutes. Where the two differ, both are held to the dense Fisher, made here
from Jacobians in NumPy. Writes docs/benchmarks/kfac-jax.json: for each model and value the largest
difference, relative to the largest entry; and the ratios where there is a difference of convention.
"""

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import ngd_jax
import numpy as np
import pytest
from jax import lax

import ngd_core
from ngd_core import Hyper, factors
from ngd_core.testing import assert_close, assert_far

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kfac_jax
        from kfac_jax._src import tag_graph_matcher
except ImportError as error:
    msg = "kfac-jax is missing; `make peers` installs it, or pip install --group peers."
    raise ImportError(msg) from error

pytestmark = pytest.mark.filterwarnings("ignore")  # of what JAX deprecates
REPORT = Path(__file__).parents[2] / "docs" / "benchmarks" / "kfac-jax.json"
N, DAMPING = 6, 0.01
KEY = jax.random.key(0)
FOUND: dict[str, dict[str, float]] = {}


def evaluated(eqn, values):
    """Compute one equation: kfac-jax 0.0.8 asks for parameters as JAX gave them before 0.10."""
    out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if isinstance(out, (list, tuple)) else [out]


@pytest.fixture(scope="module", autouse=True)
def _as_kfac_jax_needs_it():
    """Old promotion of dtypes; and the report, once all is measured."""
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(tag_graph_matcher, "eval_jaxpr_eqn", evaluated)
        yield
    about = {"kfac_jax": kfac_jax.__version__, "jax": jax.__version__, "dtype": "float64"}
    found = {
        key: {what: float(f"{x:.2g}") for what, x in one.items()} for key, one in FOUND.items()
    }
    if len(FOUND) == len(MODELS) + 3:  # all were run
        REPORT.write_text(json.dumps({"about": about, "found": found}, indent=1) + "\n")


def normal(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape) / 2)


def mlp(p, x):
    return jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]


def cnn(p, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    h = lax.conv_general_dilated(x, p["k1"], (1, 2), "SAME", dimension_numbers=numbers) + p["c1"]
    h = jnp.tanh(h)
    h = lax.conv_general_dilated(h, p["k2"], (1, 1), "VALID", dimension_numbers=numbers) + p["c2"]
    return jnp.reshape(jnp.tanh(h), (len(x), -1)) @ p["w2"] + p["b2"]


def pooled(p, x):
    return jnp.sum(jnp.tanh(x @ p["w1"] + p["b1"]), 1) @ p["w2"] + p["b2"]


def padded(p, x):
    """An output for each position but the last, which is filled up and has no loss."""
    z = jnp.asarray([1.0, 1.0, 0.0])[:, None] * (x @ p["w"] + p.get("b", 0.0))
    return jnp.reshape(z, (len(x), -1))


class Model(NamedTuple):
    predict: Any
    params: dict[str, Any]
    x: Any
    gaussian: bool = False

    @property
    def labels(self):
        z = self.predict(self.params, self.x)
        return normal(*z.shape) if self.gaussian else jnp.arange(len(z)) % z.shape[-1]

    @property
    def likelihood(self):
        return "gaussian" if self.gaussian else "categorical"

    def loss(self, params, batch):
        """Registered with kfac-jax; its value is the loss of the library here."""
        x, y = batch
        z = self.predict(params, x)
        if self.gaussian:
            kfac_jax.register_normal_predictive_distribution(z, y, variance=1.0)
        else:
            kfac_jax.register_categorical_predictive_distribution(z, y)
        return jnp.mean(self.each(z, y))

    def each(self, z, y):
        if self.gaussian:
            return jnp.sum((z - y) ** 2, -1) / 2
        return -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1)[:, 0]

    def ours(self, params, x, y):
        z = self.predict(params, x)
        return jnp.mean(self.each(z, y)), z


SMALL = {"w1": normal(5, 4), "b1": normal(4), "w2": normal(4, 3), "b2": normal(3)}
ONE = {"w1": normal(5, 4), "b1": normal(4), "w2": normal(4, 1), "b2": normal(1)}
IMAGES = {
    "k1": normal(3, 3, 2, 3),
    "c1": normal(3),
    "k2": normal(2, 2, 3, 2),
    "c2": normal(2),
    "w2": normal(12, 3),
    "b2": normal(3),
}
MODELS = {
    "MLP, classes": Model(mlp, SMALL, normal(N, 5)),
    "MLP, values": Model(mlp, SMALL, normal(N, 5), gaussian=True),
    "MLP, one output": Model(mlp, ONE, normal(N, 5), gaussian=True),
    "MLP, copies of one example": Model(mlp, SMALL, jnp.tile(normal(1, 5), (N, 1))),
    "CNN": Model(cnn, IMAGES, normal(N, 4, 5, 2)),
    "shared positions": Model(pooled, SMALL, normal(N, 3, 5)),
}
PADDED = normal(N, 3, 5).at[:, 2].set(0.0)
MODES = {
    "exact": "fisher_exact",
    "empirical": "fisher_empirical",
    "mc": "fisher_gradients",
}


def named(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def theirs(model, fisher):
    """Estimator, and its state after one batch."""
    estimator = kfac_jax.BlockDiagonalCurvature(model.loss)
    arguments = (model.params, (model.x, model.labels))
    state = estimator.init(KEY, arguments, -1, -1, cache_eigenvalues=True)
    state = estimator.update_curvature_matrix_estimate(
        state, 0.0, 1.0, 0.0, N, KEY, arguments, MODES[fisher]
    )
    return estimator, state


def labels_of(model, fisher):
    """Labels of the batch, or those that kfac-jax samples."""
    if fisher != "mc":
        return model.labels
    z = model.predict(model.params, model.x)
    if model.gaussian:
        return kfac_jax.NormalMeanNegativeLogProbLoss(z, variance=1.0).sample(KEY)
    return kfac_jax.CategoricalLogitsNegativeLogProbLoss(z).sample(KEY)


def ours(model, fisher, split="pi"):
    """Layers, records, method and state after one batch."""
    labels = labels_of(model, fisher)
    layers = ngd_jax.report(model.ours, model.params, model.x, labels).layers
    both = ngd_jax.value_and_grad(
        model.ours,
        has_aux=True,
        fisher="exact" if fisher == "exact" else "empirical",
        likelihood=model.likelihood,
    )
    found = jax.jit(both)(model.params, model.x, labels)[2]
    records = {layer.spec: found[layer.spec.name] for layer in layers}
    method, hyper = ngd_core.KFAC(damping_split=split), Hyper(damping=DAMPING, decay=0.0)
    state = method.init(list(records), like=model.x)
    state = method.refresh(method.accumulate(state, records, hyper), hyper)[0]
    return layers, records, method, state


class Block(NamedTuple):
    """One layer of both: Kronecker factors in our order, and the numbers of its parameters."""

    layer: Any
    A: Any
    G: Any
    a_peer: Any
    g_peer: Any
    numbers: Any

    @property
    def product(self):
        return np.kron(self.G, self.A)

    @property
    def their_product(self):
        return np.kron(self.g_peer, self.a_peer)


def blocks(model, fisher):
    estimator, their_state = theirs(model, fisher)
    layers, _, _, state = ours(model, fisher)
    flat, unravel = jax.flatten_util.ravel_pytree(model.params)
    numbers = unravel(jnp.arange(float(flat.size)))
    found = []
    for block, its, vector in zip(
        estimator.blocks,
        their_state.blocks_states,
        estimator.params_vector_to_blocks_vectors(numbers),
        strict=True,
    ):
        array = np.asarray(block.parameters_shaped_list_to_array(vector)).T
        for layer in layers:
            mine = np.asarray(layer.block(named(numbers)))
            if set(mine.ravel()) == set(array.ravel()):
                order = [list(array[0]).index(number) for number in mine[0]]
                assert np.array_equal(mine, array[:, order])
                A, G = (np.asarray(factor.value) for factor in its.factors)
                A = float(block.scale(its, False)) * A[np.ix_(order, order)]
                own = state.layers[layer.spec]
                factors = (np.asarray(own.a), np.asarray(own.g), A, G)
                found.append(Block(layer, *factors, mine.ravel().astype(int)))
    assert len(found) == len(layers) == estimator.num_blocks
    return found


def dense(model, fisher):
    """The exact or the empirical Fisher as a matrix, its parameters in the order of the tree."""
    flat, unravel = jax.flatten_util.ravel_pytree(model.params)

    def outputs(flat, x):
        return model.predict(unravel(flat), x[None])[0]

    def loss(flat, x, y):
        return model.each(outputs(flat, x)[None], y[None])[0]

    if fisher == "empirical":
        rows = jax.vmap(jax.grad(loss), (None, 0, 0))(flat, model.x, model.labels)
        return np.asarray(rows).T @ np.asarray(rows) / N
    z = np.asarray(model.predict(model.params, model.x))
    J = np.asarray(jax.vmap(jax.jacrev(outputs), (None, 0))(flat, model.x))
    hessians = np.broadcast_to(np.eye(z.shape[1]), (N, z.shape[1], z.shape[1]))
    if not model.gaussian:
        p = np.exp(z) / np.sum(np.exp(z), 1, keepdims=True)
        hessians = np.stack([np.diag(one) - np.outer(one, one) for one in p])
    return sum(j.T @ h @ j for j, h in zip(J, hessians, strict=True)) / N


def note(model, what, got, want, **size):
    """Assert that two values are the same, and keep by how much they differ."""
    got, want = np.asarray(got), np.asarray(want)
    difference = float(np.max(np.abs(got - want)) / np.max(np.abs(want)))
    kept = FOUND.setdefault(model, {})
    kept[what] = max(kept.get(what, 0.0), difference)
    assert_close(got, want, **size)


@pytest.mark.parametrize("fisher", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_factors_are_the_same(name, fisher):
    """Each factor up to a number, and their product; the empirical one is N times theirs."""
    times = N if fisher == "empirical" else 1
    for one in blocks(MODELS[name], fisher):
        for mine, their in ((one.A, one.a_peer), (one.G, one.g_peer)):
            scale = np.trace(mine) / np.trace(their)
            note(name, f"factors, {fisher}", scale * their, mine, size=1000)
        note(name, f"factors, {fisher}", times * one.their_product, one.product, size=1000)


@pytest.mark.parametrize("split", ["pi", "exact"])
@pytest.mark.parametrize("name", MODELS)
def test_directions_are_the_same(name, split):
    """Of the loss' gradient, with one damping, by inverses made at once or kept."""
    model = MODELS[name]
    estimator, their_state = theirs(model, "exact")
    layers, _, method, state = ours(model, "exact", split)
    grads = jax.grad(lambda p: model.ours(p, model.x, model.labels)[0])(model.params)
    blocks = {layer.spec: layer.block(named(grads)) for layer in layers}
    want = method.direction(state, blocks, {}, Hyper())[0]
    exact = split == "exact"
    cached = estimator.update_cache(their_state, DAMPING, -1, -1, True, None)
    for state, use_cached in ((their_state, False), (cached, True)):
        got = named(estimator.multiply_inverse(state, grads, DAMPING, exact, use_cached, None))
        for layer in layers:
            if not exact and layer.spec.rows == 1:
                continue  # see test_a_factor_of_one_number_is_damped_in_another_way
            what, wanted = f"direction, {split}", want[layer.spec]
            note(name, what, layer.block(got), wanted, size=100, kappa=1e4)


@pytest.mark.parametrize("name", MODELS)
def test_products_with_the_fisher_are_the_same(name):
    model = MODELS[name]
    vector = jax.tree.map(lambda x: normal(*x.shape, 1)[..., 0], model.params)
    layers, records, _, _ = ours(model, "exact")
    arguments = (model.params, (model.x, model.labels))
    their = named(kfac_jax.ImplicitExactCurvature(model.loss).multiply_fisher(arguments, vector))
    direction = {layer.spec: layer.block(named(vector)) for layer in layers}
    got = factors.fisher_product(records, direction)
    flat, unravel = jax.flatten_util.ravel_pytree(vector)
    want = named(unravel(jnp.asarray(dense(model, "exact") @ np.asarray(flat))))
    for layer in layers:
        note(name, "product with the Fisher", layer.block(their), got[layer.spec], size=1000)
        assert_close(np.asarray(got[layer.spec]), np.asarray(layer.block(want)), size=1000)


def test_the_empirical_fisher_is_not_divided_by_the_batch_again():
    """For copies of one example K-FAC's product is the dense block, and theirs an Nth of it."""
    model = MODELS["MLP, copies of one example"]
    for fisher, times in (("exact", 1), ("empirical", N)):
        matrix = dense(model, fisher)
        for one in blocks(model, fisher):
            block = matrix[np.ix_(one.numbers, one.numbers)]
            assert_close(one.product, block, size=1000)
            assert_close(times * one.their_product, block, size=1000)
            FOUND.setdefault("empirical Fisher: dense over theirs", {})[fisher] = float(
                np.trace(block) / np.trace(one.their_product)
            )


def test_a_factor_of_one_number_is_damped_in_another_way():
    """Theirs damps the other factor alone, which is the exact damping; ours splits it."""
    model = MODELS["MLP, one output"]
    estimator, their_state = theirs(model, "exact")
    _, _, method, state = ours(model, "exact")
    grads = jax.grad(lambda p: model.ours(p, model.x, model.labels)[0])(model.params)
    got = named(estimator.multiply_inverse(their_state, grads, DAMPING, False, False, None))
    (one,) = [b for b in blocks(model, "exact") if b.layer.spec.rows == 1]
    grad = np.asarray(one.layer.block(named(grads)))
    exact = np.linalg.solve(one.product + DAMPING * np.eye(one.A.shape[0]), grad[0])
    mine = method.direction(state, {one.layer.spec: jnp.asarray(grad)}, {}, Hyper())[0]
    mine, their = mine[one.layer.spec][0], np.asarray(one.layer.block(got))[0]
    assert_close(their, exact, size=100, kappa=1e4)
    assert_far(mine, exact, least=0.01)
    kept = FOUND.setdefault("one output, pi: distance to the exact damped direction", {})
    for name, x in (("ours", mine), ("theirs", their)):
        kept[name] = float(np.linalg.norm(x - exact) / np.linalg.norm(exact))


def test_positions_without_a_loss_are_counted_or_not():
    """A linear model with a loss at two of three positions, where the product can be exact.

    Theirs leaves positions without gradients out, but not from the bias' corner; ours counts
    them. So theirs is the dense block without a bias, ours two thirds of it.
    """
    kept = FOUND.setdefault("padded positions: product over the dense block", {})
    for bias in (False, True):
        params = {"w": normal(5, 4), **({"b": normal(4)} if bias else {})}
        model = Model(padded, params, PADDED, gaussian=True)
        (one,) = blocks(model, "exact")
        block = dense(model, "exact")[np.ix_(one.numbers, one.numbers)]
        weights = [k for k in range(len(block)) if not bias or k % 6 != 5]
        square = np.ix_(weights, weights)
        assert_close(one.their_product[square], block[square], size=1000)
        assert_close(1.5 * one.product[square], block[square], size=1000)
        corners = [k for k in range(len(block)) if k not in weights]
        for name, product in (("ours", one.product), ("theirs", one.their_product)):
            kept[f"{name}, weights"] = float(np.trace(product[square]) / np.trace(block[square]))
            if bias:
                ratio = np.diag(product)[corners] / np.diag(block)[corners]
                kept[f"{name}, bias"] = float(ratio[0])
