"""Local Fisher layers (sngd_fngd.md 1.2 and 1.11 #1 to #5): the same function, the same steps."""

import numpy as np
import pytest
from core.sngd_cases import law_over, traced
from harness import dtypes, law, rng, seeds, spd
from hypothesis import strategies as st

from ngd_core import SNGD, Hyper, LayerRecord, LayerSpec, factors, reconstruction, reference, step
from ngd_core.testing import assert_close, assert_far

FC = LayerSpec("fc", "dense", 3, 2)
ROWS, D = FC.block_shape
KAPPA = 20.0
ROOTS = {
    "eigh": {},
    "denman-beavers": {"root": "denman-beavers", "steps": 10},
    "newton-schulz": {"root": "newton-schulz", "steps": 16},
    "nystrom": {"root": "nystrom", "rank": 2},
}
METRICS = ["linear", "relu"]
some_momentum = st.sampled_from([0.9, 0.0])


def draw_metric(r, metric, stack=()):
    """A matrix G for all rows of a block, or one for each row."""
    shape = (*stack, ROWS) if metric == "relu" else stack
    flat = [spd(r, D, KAPPA) for _ in range(int(np.prod(shape)))]
    return np.stack(flat).reshape(*shape, D, D)


def layer_of(backend, G, dtype, name="eigh", eps=0.05):
    """Local Fisher layer of a NumPy matrix, through the backend."""
    like = backend.array(np.zeros(()), dtype)
    old = reconstruction.identity_layer(G.shape[:-2], D, like=like, xp=backend.xp)
    new, code = backend.call(
        lambda old, G, *, xp: reconstruction.refresh_layer(old, G, eps, **ROOTS[name], xp=xp),
        old,
        backend.array(G, dtype),
    )
    assert not np.any(backend.numpy(code))
    return new


def every(matrix, rows=ROWS):
    return matrix if matrix.ndim == 3 else np.stack([matrix] * rows)


@law_over({"metric": METRICS, "name": ROOTS}, seed=seeds, dtype=dtypes)
def test_the_reconstructed_layer_computes_the_same(backend, seed, metric, name, dtype):
    """1.11 #1: (x R^-1)(w R)^T = x w^T, on the activations' side or on the weights'."""
    r = rng(seed)
    w, x = r.standard_normal(FC.block_shape), r.standard_normal((5, D))
    layer = layer_of(backend, draw_metric(r, metric), dtype, name)
    inner = backend.call(reconstruction.coordinates, layer, backend.array(w, dtype))
    back = backend.numpy(backend.call(reconstruction.weights, layer, inner))
    inner, inverse = backend.numpy(inner), every(backend.numpy(layer.inverse))
    assert_close(back, w, dtype=dtype, size=D, kappa=KAPPA)
    for j in range(ROWS):
        assert_close((x @ inverse[j]) @ inner[j], x @ w[j], dtype=dtype, size=D, kappa=KAPPA)
    assert_far(inner, w, least=0.05)


def loss_of(x, y):
    return lambda w: np.mean(np.sum((np.tanh(x @ w.T) - y) ** 2, axis=1)) / 2


@law_over({"metric": METRICS}, seed=seeds, dtype=dtypes)
def test_gradient_at_the_coordinates(backend, seed, metric, dtype):
    """1.11 #2: the derivative of L(w' R^-1) by w', the root held fixed, is grad R^-1."""
    r = rng(seed)
    w, x, y = r.standard_normal((ROWS, D)), r.standard_normal((6, D)), r.standard_normal((6, ROWS))
    layer = layer_of(backend, draw_metric(r, metric), dtype)
    inverse = every(backend.numpy(layer.inverse).astype(np.float64))
    inner = np.stack([np.linalg.solve(m.T, row) for m, row in zip(inverse, w, strict=True)])

    def reconstructed(c):
        return loss_of(x, y)(np.stack([c[j] @ inverse[j] for j in range(ROWS)]))

    expected = reference.jacobian(reconstructed, inner)
    grad = backend.array(reference.jacobian(loss_of(x, y), w), dtype)
    got = backend.numpy(backend.call(reconstruction.pull_back, layer, grad))
    assert_close(got, expected, dtype=dtype, size=D, kappa=KAPPA)


def descend(gradient, to_weights, pull, inner, lr, mu, steps):
    """Heavy-ball descent on coordinates; the weights after each step."""
    params, velocity, path = {"w": inner}, {"w": 0 * inner}, []
    for _ in range(steps):
        grads = {"w": pull(gradient(to_weights(params["w"])))}
        moves, velocity = step.momentum(velocity, grads, decay=mu)
        params = step.sgd(params, moves, lr)
        path.append(to_weights(params["w"]))
    return path


def three_ways(w, x, y, layer, inverse, factor, *, mu, metric, xp):
    """Trained through w' = w R, through w' with a Cholesky factor, and by M^-1 directly."""

    def gradient(w):
        out = xp.tanh(x @ w.mT)
        return ((out - y) * (1 - out * out)).mT @ x / x.shape[0]

    def rows(block, m):
        return reconstruction.map_rows(block, m, xp=xp)

    inner = reconstruction.coordinates(layer, w, xp=xp)
    literal = descend(
        gradient,
        lambda c: reconstruction.weights(layer, c, xp=xp),
        lambda g: reconstruction.pull_back(layer, g, xp=xp),
        inner,
        0.1,
        mu,
        4,
    )
    start = rows(w, xp.linalg.inv(factor.mT))
    cholesky = descend(
        gradient, lambda c: rows(c, factor.mT), lambda g: rows(g, factor), start, 0.1, mu, 4
    )
    direct = descend(gradient, lambda c: c, lambda g: rows(g, inverse), w, 0.1, mu, 4)
    return literal, cholesky, direct


@law_over({"metric": METRICS, "mu": [0.0, 0.9]}, seed=seeds, dtype=dtypes)
def test_descent_on_the_coordinates_is_natural_descent(backend, seed, metric, mu, dtype):
    """1.11 #3: k steps on w' are k natural steps; with P P^T = M^-1 for P; with heavy ball."""
    r = rng(seed)
    G = draw_metric(r, metric)
    inverse = np.linalg.inv(G + 0.05 * np.eye(D))
    arrays = [r.standard_normal(shape) for shape in ((ROWS, D), (6, D), (6, ROWS))]
    w, x, y, m, factor = (
        backend.array(v, dtype) for v in (*arrays, inverse, np.linalg.cholesky(inverse))
    )
    layer = layer_of(backend, G, dtype)
    literal, cholesky, direct = backend.numpy(
        backend.call(three_ways, w, x, y, layer, m, factor, mu=mu, metric=metric)
    )
    for k in range(4):
        assert_close(literal[k], direct[k], dtype=dtype, size=D, kappa=50)
        assert_close(cholesky[k], direct[k], dtype=dtype, size=D, kappa=50)
    assert_far(direct[-1], arrays[0], least=0.01)  # some draws move by 0.03


@law_over({"metric": METRICS, "groups": [1, 2]}, seed=seeds, dtype=dtypes)
def test_reprojection_keeps_the_function(backend, seed, metric, groups, dtype):
    """1.11 #5: outputs stay over a refresh, to rounding; without it they jump."""
    r = rng(seed)
    stack = () if groups == 1 else (groups,)
    old, new = (layer_of(backend, draw_metric(r, metric, stack), dtype) for _ in range(2))
    inner, x = r.standard_normal((*stack, ROWS, D)), r.standard_normal((5, D))
    inner = backend.array(inner, dtype)
    carried = backend.call(reconstruction.reproject, old, new, inner)
    before, after, jumped = (
        x @ np.swapaxes(backend.numpy(backend.call(reconstruction.weights, layer, c)), -1, -2)
        for layer, c in ((old, inner), (new, carried), (new, inner))
    )
    assert_close(after, before, dtype=dtype, size=D, kappa=KAPPA)
    assert_far(jumped, before, least=0.02)


STEPS = 6


def train(start, batches, *, method, mu, carried, xp):
    """Steps of SNGD on a tanh layer, refreshed every second step; the weights after each."""
    literal, hyper, params, path = method.mode == "literal", Hyper(0.2, 0.5), {FC: start}, []
    state, velocity = method.init([FC], start, xp=xp), {FC: 0 * start}
    for k, (x, y) in enumerate(batches):
        w = method.weights(state, params, xp=xp)[FC] if literal else params[FC]
        z = x @ w[:, :-1].mT + w[:, -1]
        out = xp.tanh(z)
        record = LayerRecord(x, (out - y) * (1 - out * out), z)
        state = method.accumulate(state, {FC: record}, hyper, xp=xp)
        if k % 2 == 0:
            old = state
            state, _ = method.refresh(state, hyper, xp=xp)
            if "weights" in carried:
                params = method.reproject(old, state, params, xp=xp)
            if "momentum" in carried:
                velocity = method.reproject(old, state, velocity, xp=xp)
        grads = {FC: factors.mean_gradient(FC, record, xp=xp)}
        directions, _ = method.direction(state, grads, {}, hyper, xp=xp)
        moves, velocity = step.momentum(velocity, directions, decay=mu)
        params = step.sgd(params, moves, 0.2)
        path.append(method.weights(state, params, xp=xp)[FC] if literal else params[FC])
    return path


def draw_training(seed):
    """Start and batches whose inputs change scale, so that every refresh matters."""
    r = rng(seed)
    batches = [
        (
            r.standard_normal((8, 3)) * np.asarray([1.0, 3.0, 0.3]) ** (k - 2),
            r.uniform(-1, 1, (8, ROWS)),
        )
        for k in range(STEPS)
    ]
    return 0.3 * r.standard_normal(FC.block_shape), batches


BOTH = ("weights", "momentum")


@law_over(
    {"metric": METRICS, "name": ROOTS}, seed=seeds, mu=st.sampled_from([0.9, 0.0]), dtype=dtypes
)
def test_literal_is_direct_over_refreshes(backend, seed, metric, name, mu, dtype):
    """1.11 #4 and 1.2: the same weights after every step, with three refreshes (compiled two)."""
    start, batches = draw_training(seed)
    if traced(backend):
        batches = batches[:3]
    paths = [
        backend.numpy(
            backend.call(
                train,
                backend.array(start, dtype),
                backend.tree(batches, dtype),
                method=SNGD(metric, mode, **ROOTS[name]),
                mu=mu,
                carried=BOTH if mode == "literal" else (),
            )
        )
        for mode in ("literal", "direct")
    ]
    for literal, direct in zip(*paths, strict=True):
        assert_close(literal, direct, dtype=dtype, size=D, kappa=300)
    assert_far(paths[1][-1], start, least=0.02)


@law_over({"carried": [("weights",), ("momentum",), ()]}, seed=seeds)
def test_what_is_not_reprojected_leads_elsewhere(backend, seed, carried):
    """1.11 #4: literal and direct part if either the weights or the momentum are left behind."""
    if backend.variant in ("jit", "compile"):
        return
    start, batches = draw_training(seed)
    literal, direct = (
        backend.numpy(
            backend.call(
                train,
                backend.array(start),
                backend.tree(batches),
                method=SNGD(mode=mode),
                mu=0.9,
                carried=carried if mode == "literal" else (),
            )
        )
        for mode in ("literal", "direct")
    )
    assert_far(literal[-1], direct[-1], least=1e-3)


@pytest.mark.parametrize("carried", [BOTH, ("weights",)])
@pytest.mark.parametrize("seed", range(3))
def test_training_equals_the_oracle(seed, carried):
    """Literal training, momentum carried over or not, is `reference.reconstructed_descent`."""
    start, batches = draw_training(seed)
    got = train(start, batches, method=SNGD(mode="literal"), mu=0.9, carried=carried, xp=np)

    def gradient(w, k):
        x, y = batches[k]
        return reference.jacobian(loss_of(np.c_[x, np.ones(8)], y), w)

    seen = [reference.local_fisher(x[:, None]) for x, _ in batches]
    metrics = {}
    for k in range(0, STEPS, 2):
        G = reference.moving_average(seen[: k + 1], 0.5)
        metrics[k] = G + reference.local_damping(G, 0.2) * np.eye(D)
    expected = reference.reconstructed_descent(
        gradient, start, metrics, STEPS, 0.2, 0.9, reproject=carried
    )
    for x, y in zip(got, expected, strict=True):
        assert_close(x, y, size=D, kappa=300)


def test_differentiating_through_the_metric_is_another_method():
    """G of a second layer depends on the first's weights; the gradient does not look at that."""
    r = rng(0)
    x, y = r.standard_normal((20, 3)), r.standard_normal((20, 2))
    first, inner = r.standard_normal((4, 3)), r.standard_normal((2, 4))

    def loss(first, fixed=None):
        h = np.tanh(x @ first.T)
        M = reference.local_fisher(h[:, None], bias=False) + 0.1 * np.eye(4)
        inverse = reference.symmetric_power(M if fixed is None else fixed, -0.5)
        return np.mean(np.sum((h @ (inner @ inverse).T - y) ** 2, axis=1)) / 2, M

    def slope(**options):
        moved = 1e-6 * r_direction
        return (loss(first + moved, **options)[0] - loss(first - moved, **options)[0]) / 2e-6

    r_direction = r.standard_normal((4, 3))
    M = loss(first)[1]
    h = np.tanh(x @ first.T)
    w = inner @ reference.symmetric_power(M, -0.5)
    g = ((h @ w.T - y) @ w) * (1 - h * h)
    held = np.sum((g.T @ x / 20) * r_direction)
    assert_close(slope(fixed=M), held, kappa=1e6)
    assert abs(slope() - held) > 0.02 * abs(held)


HIDDEN, INPUTS, TIMES = 2, 2, 3
LSTM = LayerSpec("lstm", "dense", INPUTS + HIDDEN, 4 * HIDDEN)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def lstm(w, a, inputs=None, offsets=None):
    """Hidden states (N, T, H) of an LSTM whose gates i, f, o, u are the rows of one block."""
    h = c = np.zeros((len(a), HIDDEN), w.dtype)
    states = []
    for t in range(a.shape[1]):
        x = np.concatenate([a[:, t], h, np.ones((len(a), 1))], axis=1)
        if inputs is not None:
            inputs.append(x[:, :-1])
        z = x @ w.T + (0 if offsets is None else offsets[:, t])
        i, f, o, u = (z[:, k * HIDDEN : (k + 1) * HIDDEN] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(u)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.stack(states, axis=1)


def lstm_loss(w, a, **options):
    """Loss of each example; analytic, for derivatives by the complex step."""
    return np.sum((lstm(w, a, **options) - 0.5) ** 2, axis=(1, 2))


@law(seed=seeds, dtype=dtypes)
def test_a_gated_recurrent_layer_has_one_metric_for_all_gates(backend, seed, dtype):
    """1.4: a dense record of [a_t, h_(t-1)] over time; all gates share G; nothing is lost."""
    r = rng(seed)
    n = 4
    w, a = r.standard_normal(LSTM.block_shape), r.standard_normal((n, TIMES, INPUTS))
    inputs = []
    lstm(w, a, inputs)
    rows = np.stack(inputs, axis=1)
    g = np.stack(
        [
            reference.jacobian(
                lambda o, k=k: lstm_loss(w, a[k : k + 1], offsets=o)[0],
                np.zeros((1, TIMES, 4 * HIDDEN)),
            )[0]
            for k in range(n)
        ]
    )
    record = LayerRecord(rows, g)
    G = reference.local_fisher(rows)
    grad = reference.jacobian(lambda w: np.mean(lstm_loss(w, a)), w)
    method, hyper = SNGD(mode="literal", damping_mode="absolute"), Hyper(0.5)

    def run(state, record, w, *, xp):
        grads = {LSTM: factors.mean_gradient(LSTM, record, xp=xp)}
        old = method.accumulate(state, {LSTM: record}, hyper, xp=xp)
        new, _ = method.refresh(old, hyper, xp=xp)
        inner = method.reproject(old, new, {LSTM: w}, xp=xp)
        directions, _ = method.direction(new, grads, {}, hyper, xp=xp)
        back = method.weights(new, inner, xp=xp)[LSTM]
        return new.layers[LSTM].fisher, grads[LSTM], back, method.weights(new, directions, xp=xp)

    state = method.init([LSTM], backend.array(np.zeros(()), dtype))
    fisher, found, back, natural = backend.numpy(
        backend.call(run, state, backend.tree(record, dtype), backend.array(w, dtype))
    )
    assert_close(fisher, G, dtype=dtype, size=n * TIMES)
    assert_close(found, grad, dtype=dtype, size=n * TIMES)
    for k in range(4):
        gate = slice(k * HIDDEN, (k + 1) * HIDDEN)
        own = reference.local_direction(grad[gate], G, 0.5, "absolute")
        assert_close(natural[LSTM][gate], own, dtype=dtype, size=n * TIMES, kappa=20)
    assert_close(lstm(back.astype(np.float64), a), lstm(w, a), dtype=dtype, size=20, kappa=20)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: reconstruction.map_rows(np.ones((2, 3)), np.eye(2)),
            r"matrix has shape \(2, 2\); expected \(3, 3\): one matrix for all rows",
        ),
        (
            lambda: reconstruction.map_rows(np.ones((2, 3)), np.ones((1, 3, 3))),
            r"matrix has shape \(1, 3, 3\); expected \(2, 3, 3\): one matrix for each row",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
