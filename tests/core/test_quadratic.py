"""The quadratic model and Levenberg-Marquardt damping, against dense matrices and plain loops."""

import math

import numpy as np
import pytest
from core.eager import eager_law
from harness import BACKENDS, dtypes, law, rng, seeds, spd
from hypothesis import strategies as st

from ngd_core import KFAC, Hyper, factors, losses, nn, reference, step
from ngd_core.testing import assert_close, assert_far

NUMPY = BACKENDS[0]
SHAPES = {"w": (2, 2), "b": (3,)}
SIZE = 7
OPTIONS = st.sampled_from([(0.0, 0.0), (0.5, 0.0), (0.5, 0.25)])


def blocks(vector):
    """A flat vector as a mapping of arrays."""
    out, start = {}, 0
    for key, shape in SHAPES.items():
        size = math.prod(shape)
        out[key] = vector[start : start + size].reshape(shape)
        start += size
    return out


def flat(mapping):
    return np.concatenate([np.asarray(mapping[key], np.float64).ravel() for key in SHAPES])


def rounded(x, dtype):
    return x.astype(dtype).astype(np.float64)


def problem(seed, k, dtype="float64", condition=10.0):
    """Fisher, gradient and k directions that are exact in the dtype."""
    r = rng(seed)
    F = spd(r, SIZE, condition)
    vectors = rounded(r.standard_normal((k + 1, SIZE)), dtype)
    return F, vectors[0], vectors[1:]


def solve(inner, directions, grads, damping, *, weight_decay=0.0, xp):
    return step.quadratic_step(inner, directions, grads, damping, weight_decay=weight_decay, xp=xp)


def quadratic(backend, F, g, V, damping=0.0, weight_decay=0.0, dtype="float64"):
    """The step of the core on flat vectors, back as NumPy."""
    arrays = V @ F @ V.T, [blocks(v) for v in V], blocks(g)
    arrays = backend.tree(arrays, dtype)
    scalars = [backend.array(np.asarray(x), dtype) for x in (damping, weight_decay)]

    def run(inner, directions, grads, damping, weight_decay, *, xp):
        return solve(inner, directions, grads, damping, weight_decay=weight_decay, xp=xp)

    return backend.numpy(backend.call(run, *arrays, *scalars))


# the step ---------------------------------------------------------------------------------------


@law(seed=seeds, k=st.sampled_from([2, 1, 3]), options=OPTIONS, dtype=dtypes)
def test_the_step_is_the_models_minimum_by_least_squares(backend, seed, k, options, dtype):
    """c = -K^-1 V^T g with K = V^T (F + (lambda + eta) I) V; M(delta) - M(0) = g.delta/2."""
    F, g, V = problem(seed, k, dtype)
    got = quadratic(backend, F, g, V, *options, dtype=dtype)
    total = sum(options)
    wanted = reference.quadratic_coefficients(F, g, V, total)
    K = V @ (F + total * np.eye(SIZE)) @ V.T
    scale = np.sqrt(np.diag(K))
    kappa = np.linalg.cond(K / np.outer(scale, scale))
    assert_close(got.coefficients * scale, wanted * scale, dtype=dtype, size=SIZE, kappa=kappa)
    delta = wanted @ V
    reached = reference.quadratic_model(F, g, total, delta)
    assert_close(got.change, reached, dtype=dtype, size=SIZE, kappa=kappa)
    assert_close(got.change, g @ delta / 2, dtype=dtype, size=SIZE, kappa=kappa)
    assert_close(flat(got.step), delta, dtype=dtype, size=SIZE, kappa=kappa)
    assert_close(got.square, delta @ delta, dtype=dtype, size=SIZE, kappa=2 * kappa)
    assert {str(x.dtype) for x in (*got[1:], *got.step.values())} == {dtype}


@eager_law(seed=seeds, k=st.sampled_from([1, 2]), options=OPTIONS)
def test_no_other_coefficients_lie_lower(backend, seed, k, options):
    """Perturbed either way the model rises, and the step goes downhill."""
    F, g, V = problem(seed, k)
    got = quadratic(backend, F, g, V, *options)
    lowest = reference.quadratic_model(F, g, sum(options), got.coefficients @ V)
    assert got.change < 0
    assert flat(got.step) @ g < 0
    for direction in np.concatenate([np.eye(k), -np.eye(k)]):
        moved = got.coefficients + 1e-3 * np.max(np.abs(got.coefficients)) * direction
        assert reference.quadratic_model(F, g, sum(options), moved @ V) > lowest


@eager_law(seed=seeds, factors=st.sampled_from([(-3.0, 1e-3), (1e4, 1.0)]))
def test_the_step_does_not_depend_on_the_directions_lengths_and_signs(backend, seed, factors):
    F, g, V = problem(seed, 2)
    one = quadratic(backend, F, g, V, 0.5)
    other = quadratic(backend, F, g, V * np.asarray(factors)[:, None], 0.5)
    assert_close(flat(other.step), flat(one.step), size=SIZE, kappa=1e3)
    assert_close(other.change, one.change, size=SIZE, kappa=1e3)


@law(
    seed=seeds,
    case=st.sampled_from(["zero", "parallel", "opposite", "both zero", "no gradient"]),
    damping=st.sampled_from([0.0, 0.5]),
    dtype=dtypes,
)
def test_singular_systems_are_those_of_one_direction(backend, seed, case, damping, dtype):
    """delta_0 = 0 at the first step, directions that coincide, nothing to do: no NaN."""
    F, g, V = problem(seed, 2, dtype)
    V[1] = {"zero": 0, "parallel": 2, "opposite": -0.5}.get(case, 1) * V[0]
    V = 0 * V if case == "both zero" else V
    g = 0 * g if case == "no gradient" else g
    got = quadratic(backend, F, g, V, damping, dtype=dtype)
    alone = quadratic(backend, F, g, V[:1], damping, dtype=dtype)
    assert np.all(np.isfinite(got.coefficients))
    scale = float(np.max(np.abs(flat(alone.step)))) or 1.0
    assert_close(flat(got.step), flat(alone.step), dtype=dtype, size=SIZE, scale=scale)
    assert_close(
        got.change, alone.change, dtype=dtype, size=SIZE, scale=float(-alone.change) or 1.0
    )
    if case in ("zero", "both zero"):
        assert got.coefficients[1] == 0
    if case in ("both zero", "no gradient"):
        assert not np.any(flat(got.step))
        assert got.change == 0


@eager_law(seed=seeds, ratio=st.sampled_from([1e-12, 1e12]))
def test_a_short_direction_beside_a_long_one_is_not_taken_for_zero(backend, seed, ratio):
    """What counts as singular is the angle, not the length: K is scaled to a unit diagonal."""
    F, g, V = problem(seed, 2)
    one = quadratic(backend, F, g, V)
    other = quadratic(backend, F, g, np.stack([V[0], ratio * V[1]]))
    assert_close(flat(other.step), flat(one.step), size=SIZE, kappa=1e3)


@eager_law(seed=seeds, angle=st.sampled_from([1.0, 1e-3]))
def test_the_step_depends_on_the_span_alone(backend, seed, angle):
    """Directions that are nearly parallel are still two."""
    F, g, V = problem(seed, 2)
    one = quadratic(backend, F, g, V)
    other = quadratic(backend, F, g, np.stack([V[0], V[0] + angle * V[1]]))
    kappa = 1e3 / angle**2
    assert_close(flat(other.step), flat(one.step), size=SIZE, kappa=kappa)
    assert_close(other.change, one.change, size=SIZE, kappa=kappa)


@eager_law(
    bad=st.sampled_from([np.nan, np.inf]), where=st.sampled_from(["direction", "fisher", "grad"])
)
def test_what_is_not_finite_gives_no_step(backend, bad, where):
    F, g, V = problem(0, 2)
    inner = V @ F @ V.T
    if where == "direction":
        V[1, 0] = bad
    if where == "fisher":
        inner[0, 1] = inner[1, 0] = bad
    if where == "grad":
        g[0] = bad
    arrays = backend.tree((inner, [blocks(v) for v in V], blocks(g)))

    def run(inner, directions, grads, *, xp):
        return solve(inner, directions, grads, 0.5, xp=xp)

    with np.errstate(invalid="ignore"):
        got = backend.numpy(backend.call(run, *arrays))
    assert not np.any(flat(got.step))
    assert [float(x) for x in (got.change, got.square)] == [0, 0]


def test_what_a_direction_leaves_out_stays():
    """A direction without an entry is zero there; a gradient no direction has gets no step."""
    F, g, V = problem(0, 2)
    V[0, 4:] = 0
    V[1, :4] = 0
    full = quadratic(NUMPY, F, g, V)
    halves = [{"w": blocks(V[0])["w"]}, {"b": blocks(V[1])["b"]}]
    got = step.quadratic_step(V @ F @ V.T, halves, blocks(g), 0.0)
    assert_close(flat(got.step), flat(full.step), size=SIZE)
    only = step.quadratic_step((V @ F @ V.T)[:1, :1], halves[:1], blocks(g), 0.0)
    assert list(only.step) == ["w"]


def test_half_precision_is_solved_in_float32_and_stepped_in_half():
    F, g, V = problem(0, 2, "float16")
    low = [{key: x.astype(np.float16) for key, x in blocks(v).items()} for v in (V[0], V[1], g)]
    inner = (V @ F @ V.T).astype(np.float32)
    got = step.quadratic_step(inner, low[:2], low[2], 0.5)
    assert got.coefficients.dtype == got.change.dtype == got.square.dtype == np.float32
    assert {x.dtype for x in got.step.values()} == {np.dtype(np.float16)}
    wanted = reference.quadratic_coefficients(F, g, V, 0.5)
    assert_close(got.coefficients, wanted, dtype="float32", size=SIZE, kappa=100)


# conjugate gradients ------------------------------------------------------------------------------


def descend(A, right, start, M, steps, backend=NUMPY, momentum=True, weight_decay=0.0):
    """Iterates of x <- x + delta on 1/2 x^T A x - b^T x, A = F + eta I; also what was promised."""
    F, x, last = A - weight_decay * np.eye(SIZE), start, np.zeros(SIZE)
    path, changes = [], []
    for _ in range(steps):
        g = A @ x - right
        V = np.stack([np.linalg.solve(M, g), last] if momentum else [np.linalg.solve(M, g)])
        got = quadratic(backend, F, g, V, 0.0, weight_decay)
        last = flat(got.step)
        x = x + last
        path.append(x)
        changes.append(float(got.change))
    return np.stack(path), np.asarray(changes)


def system(seed):
    r = rng(seed)
    return spd(r, SIZE, 20.0), *r.standard_normal((2, SIZE)), spd(r, SIZE, 5.0)


@eager_law(seed=seeds, weight_decay=st.sampled_from([0.0, 0.02]))
def test_on_a_fixed_quadratic_it_is_preconditioned_conjugate_gradients(backend, seed, weight_decay):
    """Step by step the textbook's iterates, whose last one is the minimum (dim steps)."""
    A, right, start, M = system(seed)
    path, _ = descend(A, right, start, M, SIZE, backend, weight_decay=weight_decay)
    textbook = reference.conjugate_gradients(A, right, start, M, SIZE)
    assert_close(path, textbook, size=SIZE, kappa=20.0 * 5.0 * 100)
    assert_close(path[-1], np.linalg.solve(A, right), size=SIZE, kappa=20.0 * 5.0 * 100)


def test_without_the_last_step_it_is_not_conjugate_gradients():
    A, right, start, M = system(0)
    path, _ = descend(A, right, start, M, SIZE, momentum=False)
    textbook = reference.conjugate_gradients(A, right, start, M, SIZE)
    assert_close(path[0], textbook[0], size=SIZE, kappa=100)
    assert_far(path[-1], textbook[-1], least=1e-3)


def test_the_change_promised_is_the_change_of_a_quadratic():
    """With the penalty's curvature in the model, and the damping out of the promise."""
    A, right, start, M = system(1)
    path, changes = descend(A, right, start, M, 5, weight_decay=0.02)
    values = [x @ A @ x / 2 - right @ x for x in (start, *path)]
    assert_close(changes, np.diff(values), size=SIZE, kappa=1e3)
    assert np.all(np.diff(values) < 0)


@eager_law(seed=seeds, damping=st.sampled_from([0.0, 0.3, 30.0]), dtype=dtypes)
def test_the_promise_with_and_without_the_damping_term(backend, seed, damping, dtype):
    """Decision 12: without it the promise is F's model at delta, with it that of F + lambda I."""
    F, g, V = problem(seed, 2, dtype)
    got = quadratic(backend, F, g, V, damping, 0.25, dtype)
    delta = flat(got.step)
    for include in (False, True):
        promise = step.predicted_change(got, damping, include_damping=include)
        wanted = reference.quadratic_model(F, g, 0.25 + (damping if include else 0.0), delta)
        assert_close(promise, wanted, dtype=dtype, size=SIZE, kappa=100)
        assert promise < 0
    if damping:
        with_it = step.predicted_change(got, damping, include_damping=True)
        assert_far(with_it, step.predicted_change(got, damping), least=1e-3)


# damping ------------------------------------------------------------------------------------------

RATIOS = (-1.0, 0.0, 0.2499, 0.25, 0.5, 0.75, 0.7501, 1.0, 40.0, math.nan, math.inf, -math.inf)


@law(ratio=st.sampled_from(RATIOS), interval=st.sampled_from([5, 1]), dtype=dtypes)
def test_damping_follows_the_rule(backend, ratio, interval, dtype):
    """Below 1/4 up, above 3/4 down, between as it is; NaN up; the same with floats and arrays."""
    wanted = reference.levenberg_marquardt(150.0, ratio, interval)
    damping, rho = (backend.array(np.asarray(x), dtype) for x in (150.0, ratio))
    got = backend.numpy(backend.call(step.levenberg_marquardt, damping, rho, interval=interval))
    assert str(got.dtype) == dtype
    assert_close(got, wanted, dtype=dtype)
    alone = step.levenberg_marquardt(150.0, ratio, interval=interval)
    assert type(alone) is float
    assert_close(alone, wanted)


def test_damping_moves_by_the_papers_factor_and_stops_at_its_bounds():
    """omega_1 = (19/20)^5; 1/4 and 3/4 themselves change nothing; clipped on both sides."""
    assert_close(step.levenberg_marquardt(150.0, 0.9), 150 * 0.95**5)
    assert_close(step.levenberg_marquardt(150.0, 0.1), 150 / 0.95**5)
    assert step.levenberg_marquardt(150.0, 0.25) == step.levenberg_marquardt(150.0, 0.75) == 150.0
    assert step.levenberg_marquardt(1e-8, 1.0) == 1e-8
    assert step.levenberg_marquardt(9.0, math.nan, maximum=10.0) == 10.0
    array = step.levenberg_marquardt(np.asarray(9.0), np.asarray(0.0), maximum=10.0)
    assert float(array) == 10.0
    mixed = step.levenberg_marquardt(np.asarray(2.0, np.float32), 1.0)
    assert mixed.dtype == np.float32
    assert type(step.levenberg_marquardt(2.0, np.asarray(1.0))) is not float


@eager_law(case=st.sampled_from([(1.0, 3.0, -4.0, 0.5), (3.0, 1.0, -4.0, -0.5)]), dtype=dtypes)
def test_the_ratio_is_of_the_change_to_its_prediction(backend, case, dtype):
    *numbers, wanted = case
    arrays = [backend.array(np.asarray(x), dtype) for x in numbers]
    got = backend.call(step.reduction_ratio, *arrays)
    assert str(backend.numpy(got).dtype) == dtype
    assert_close(backend.numpy(got), wanted)
    assert step.reduction_ratio(*numbers) == wanted
    assert float(step.reduction_ratio(numbers[0], arrays[1], numbers[2])) == wanted


@pytest.mark.parametrize("numbers", [(1.0, 1.0, 0.0), (math.nan, 1.0, -1.0), (2.0, 1.0, 0.0)])
def test_a_ratio_without_meaning_is_nan_and_raises_the_damping(numbers):
    for given in (numbers, [np.asarray(x) for x in numbers]):
        ratio = step.reduction_ratio(*given)
        assert math.isnan(ratio)
        assert float(step.levenberg_marquardt(1.0, ratio)) > 1.0


GAMMAS = [
    ((-1.0, -2.0, -3.0), 2),
    ((-1.0, -1.0, -1.0), 0),
    ((math.nan, -2.0, -1.0), 1),
    ((-1.0, math.nan, 0.0), 0),
    ((math.nan, math.nan, 5.0), 2),
    ((math.nan,) * 3, 0),
]


@law(case=st.sampled_from(GAMMAS), dtype=dtypes)
def test_the_gamma_of_the_lowest_model_is_kept(backend, case, dtype):
    changes, winner = case
    arrays = backend.tree([np.asarray(x) for x in changes], dtype)

    def run(gamma, changes, *, xp):
        gammas = step.try_gammas(gamma, 0.5, xp=xp)
        return gammas, step.pick_gamma(gammas, changes, xp=xp)

    gammas, kept = backend.numpy(backend.call(run, backend.array(np.asarray(6.0), dtype), arrays))
    assert [float(x) for x in gammas] == [6.0, 3.0, 12.0]
    assert str(kept.dtype) == dtype
    assert float(kept) == float(gammas[winner])
    assert step.pick_gamma((6.0, 3.0, 12.0), changes) == (6.0, 3.0, 12.0)[winner]


def test_the_papers_gamma_moves_by_the_root_of_nineteen_twentieths():
    assert_close(step.try_gammas(1.0)[1], math.sqrt(19 / 20) ** 20, size=10)


# the whole wrapper --------------------------------------------------------------------------------

MODEL = nn.Sequential(nn.Dense("first", 4, 6), nn.Tanh(), nn.Dense("head", 6, 3))
SPECS = {spec.name: spec for spec in nn.specs(MODEL)}
ETA = 1e-5


def task():
    r = rng(3)
    x, labels = r.standard_normal((24, 4)), r.integers(0, 3, 24)
    shapes = nn.shapes(MODEL).items()
    return {name: r.standard_normal(s) / s[-1] ** 0.5 for name, s in shapes}, x, labels


def loss_of(params, x, labels):
    outputs = nn.predict(MODEL, params, x)
    penalty = ETA / 2 * sum(float(np.sum(p**2)) for p in params.values())
    return float(np.mean(losses.categorical.value(outputs, labels))) + penalty


def look(params, x, labels):
    """Gradients of the penalised loss and records of the exact Fisher, by layer."""
    outputs, tape = nn.forward(MODEL, params, x)
    grads = nn.backward(MODEL, params, tape, losses.categorical.gradient(outputs, labels)).grads
    vectors = losses.fisher_vectors("exact", losses.categorical, outputs)
    records = nn.backward(MODEL, params, tape, vectors, grads=False).records
    grads = step.coupled_weight_decay(grads, params, ETA)
    return {SPECS[name]: g for name, g in grads.items()}, records


def train(params, x, labels, steps, damping=150.0, momentum=True):
    """Martens and Grosse (2015) on a full batch: losses, ratios and dampings."""
    method, like = KFAC(), x
    state = method.init(SPECS.values(), like=like)
    last = {spec: np.zeros(spec.block_shape) for spec in SPECS.values()}
    gamma = math.sqrt(damping + ETA)
    history, ratios, dampings = [loss_of(params, x, labels)], [], [damping]
    for k in range(1, steps + 1):
        grads, records = look(params, x, labels)
        decay = min(1 - 1 / k, 0.95)
        state = method.accumulate(state, records, Hyper(decay=decay))
        gammas = step.try_gammas(gamma) if k % 20 == 0 else (gamma,)
        tried = []
        for candidate in gammas:
            fresh, _ = method.refresh(state, Hyper(damping=candidate**2))
            directions, _ = method.direction(fresh, grads, records, Hyper())
            pair = [directions, last] if momentum else [directions]
            inner = factors.fisher_inner(records, pair)
            tried.append(step.quadratic_step(inner, pair, grads, damping, weight_decay=ETA))
        gamma = step.pick_gamma(gammas, [float(q.change) for q in tried])
        best = tried[gammas.index(gamma)]
        last = best.step
        moves = {spec.name: delta for spec, delta in last.items()}
        params = step.sgd(params, moves, -1.0)
        history.append(loss_of(params, x, labels))
        promise = step.predicted_change(best, damping)
        ratios.append(float(step.reduction_ratio(history[-1], history[-2], float(promise))))
        if k % 5 == 0:
            damping = step.levenberg_marquardt(damping, ratios[-1])
        dampings.append(damping)
    return np.asarray(history), np.asarray(ratios), np.asarray(dampings)


def test_a_network_trains_by_the_whole_wrapper():
    """Full batch: the loss falls in every step, the damping from 150 down, the promise holds."""
    params, x, labels = task()
    history, ratios, dampings = train(params, x, labels, 30)
    assert np.all(np.diff(history) < 0)
    assert_close(dampings[::5], 150 * 0.95 ** np.arange(0, 31, 5), size=30)
    assert np.max(np.abs(ratios - 1)) < 1e-2  # 0.0015 was seen


def test_the_step_before_helps_where_the_damping_is_low():
    params, x, labels = task()
    with_it, without = (train(params, x, labels, 30, 0.1, momentum=m)[0] for m in (True, False))
    assert np.all(np.diff(with_it) < 0)
    assert np.all(np.diff(without) < 0)
    assert with_it[-1] < without[-1] / 4  # 0.015 and 0.111 were seen, from 1.41


def one(inner=None, key="w", size=1, damping=1.0, number=1):
    """A quadratic step along directions of one entry."""
    inner = np.ones((number, number)) if inner is None else inner
    directions = [{key: np.ones(size)}] * number
    return step.quadratic_step(inner, directions, {"w": np.ones(1)}, damping)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (
            lambda: one(np.ones((2, 2))),
            ValueError,
            r"inner_fisher has shape \(2, 2\); expected \(1, 1\)",
        ),
        (
            lambda: one(key="b"),
            ValueError,
            "entry of direction 0 'b' has no entry in the gradients",
        ),
        (
            lambda: one(size=2),
            ValueError,
            r"direction 0 of 'w' has shape \(2,\); expected \(1,\)",
        ),
        (
            lambda: one(number=0),
            ValueError,
            "directions is empty",
        ),
        (
            lambda: one(np.ones((1, 1), int)),
            TypeError,
            "inner_fisher has dtype int64",
        ),
        (
            lambda: one(damping=-1.0),
            ValueError,
            "damping is -1.0; expected a number >= 0",
        ),
        (
            lambda: step.levenberg_marquardt(0.0, 1.0),
            ValueError,
            "damping is 0.0; expected a number > 0",
        ),
        (
            lambda: step.levenberg_marquardt(1.0, 1.0, decay=1.5),
            ValueError,
            "decay is 1.5; expected a number between 0 and 1",
        ),
        (
            lambda: step.levenberg_marquardt(1.0, 1.0, interval=0),
            ValueError,
            "interval is 0; expected a number > 0",
        ),
        (
            lambda: step.levenberg_marquardt(1.0, 1.0, minimum=2.0, maximum=1.0),
            ValueError,
            "minimum is 2.0 and maximum 1.0; expected minimum <= maximum",
        ),
        (lambda: step.try_gammas(-1.0), ValueError, "gamma is -1.0; expected a number > 0"),
        (
            lambda: step.pick_gamma((1.0, 2.0), (1.0,)),
            ValueError,
            "2 gammas and 1 changes; expected a pair each",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
