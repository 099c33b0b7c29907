"""SOFIM: the closed form against the dense matrix, its identities, and what goes wrong."""

import warnings

import numpy as np
import pytest
from core.compilers import compiler_of, hypers
from harness import dtypes, law, rng, seeds, tree_map
from hypothesis import strategies as st

from ngd_core import SOFIM, Hyper, LayerRecord, LayerSpec, factors, reference
from ngd_core.rank_one import rank_one_solve, scaled_square
from ngd_core.testing import assert_close, assert_far

SHAPES = {"w": (2, 3), "b": (2,), "scale": ()}
scopes = st.sampled_from(["global", "tensor"])
preconditions = st.sampled_from(["momentum", "gradient"])
betas = st.sampled_from([0.0, 0.5, 0.9])
rhos = st.sampled_from([1e-2, 1.0, 30.0])


def draw(r, scale=1.0):
    return {key: np.asarray(scale * r.standard_normal(shape)) for key, shape in SHAPES.items()}


def flat(tree):
    return np.concatenate([np.reshape(np.asarray(tree[key], float), -1) for key in SHAPES])


def train(method, state, gradients, hyper, *, xp):
    """Steps of a method; traced as one function where the backend compiles."""
    found = []
    for grads in gradients:
        state = method.accumulate(state, grads, hyper, xp=xp)
        found.append(method.direction(state, grads, {}, hyper, xp=xp))
    return state, found


def trained(backend, method, gradients, dtype, *, compiled=False):
    """State and steps; as one compiled function where that is what is tested."""
    gradients = backend.tree(gradients, dtype)
    arguments = method.init(gradients[0]), gradients, Hyper()
    if compiled:
        return backend.numpy(
            backend.call(lambda *args, xp: train(method, *args, xp=xp), *arguments)
        )
    return backend.numpy(train(method, *arguments, xp=backend.xp))


def kappa(moment, rho):
    return 1 + float(moment @ moment) / rho


@law(seed=seeds, beta=betas, rho=rhos, scope=scopes, precondition=preconditions, dtype=dtypes)
def test_directions_are_the_dense_solve(backend, seed, beta, rho, scope, precondition, dtype):
    """2.2 #1, 2.5 #1 and #3: (M M^T + rho I)^-1 M or g, by the dense matrix, t = 1 to 3."""
    r = rng(seed)
    gradients = [draw(r) for _ in range(3)]
    method = SOFIM(rho, beta, scope, precondition)
    _, found = trained(backend, method, gradients, dtype, compiled=True)
    groups = [list(SHAPES)] if scope == "global" else [[key] for key in SHAPES]
    for t, (directions, info) in enumerate(found, start=1):
        for keys in groups:
            past = [np.concatenate([g[k].reshape(-1) for k in keys]) for g in gradients[:t]]
            moment = reference.sofim_moment(past, beta)
            right = past[-1] if precondition == "gradient" else None
            expected = reference.sofim_direction(moment, rho, right)
            got = np.concatenate([directions[key].reshape(-1) for key in keys])
            scale = float(np.abs(past[-1]).max()) / rho if precondition == "gradient" else None
            assert_close(got, expected, dtype=dtype, size=len(got), scale=scale)
            for key in keys:
                assert str(directions[key].dtype) == dtype
                assert directions[key].shape == SHAPES[key]
                assert int(info[key].code) == 0
                inner = np.sum(directions[key] * gradients[t - 1][key])
                largest = float(np.abs(expected).max())
                assert_close(
                    info[key].measures["inner"], inner, dtype=dtype, size=10, scale=10 * largest
                )
                norm = info[key].measures["norm"]
                assert_close(norm, np.linalg.norm(moment), dtype=dtype, size=10)


@law(seed=seeds, rho=rhos, dtype=dtypes)
def test_the_step_is_collinear_with_the_momentum(backend, seed, rho, dtype):
    """2.2 #1: M / (rho + |M|^2) = M/rho - M |M|^2 / (rho^2 + rho |M|^2), a scalar times M."""
    r = rng(seed)
    m = draw(r)
    u, norm = backend.call(rank_one_solve, backend.tree(m, dtype), rho)
    v, square = flat(m), float(flat(m) @ flat(m))
    two_terms = v / rho - v * square / (rho**2 + rho * square)
    got = flat(backend.numpy(u))
    assert_close(got, two_terms, dtype=dtype, size=9, kappa=kappa(v, rho))
    assert_close(got * (rho + square), v, dtype=dtype, size=9)
    assert_close(backend.numpy(norm), np.sqrt(square), dtype=dtype, size=9)


@law(seed=seeds, rho=rhos, dtype=dtypes)
def test_the_general_solve(backend, seed, rho, dtype):
    """2.2 #2: F^-1 x = (x - M (M^T x) / (rho + |M|^2)) / rho; eigenvalues of F^-1."""
    r = rng(seed)
    m, x = draw(r), draw(r)
    u, _ = backend.call(
        lambda *args, xp: rank_one_solve(args[0], rho, args[1], xp=xp),
        backend.tree(m, dtype),
        backend.tree(x, dtype),
    )
    v, y = flat(m), flat(x)
    expected = (y - v * (v @ y) / (rho + v @ v)) / rho
    assert_close(flat(backend.numpy(u)), expected, dtype=dtype, size=9, scale=np.abs(y).max() / rho)
    values = np.linalg.eigvalsh(np.linalg.inv(reference.sofim_fisher(v, rho)))
    assert_close(values[0], 1 / (rho + v @ v), size=9, kappa=kappa(v, rho))
    assert_close(values[1:], np.full(8, 1 / rho), size=9, kappa=kappa(v, rho))


@law(seed=seeds, rho=rhos, log_scale=st.sampled_from([-2, 0, 2]), dtype=dtypes)
def test_the_bound_of_a_step(backend, seed, rho, log_scale, dtype):
    """2.2 #3: |step| = eta |M| / (rho + |M|^2) <= eta / (2 sqrt(rho)), equal at |M| = sqrt(rho)."""
    m = draw(rng(seed), 10.0**log_scale)
    top = {key: x * np.sqrt(rho) / np.linalg.norm(flat(m)) for key, x in m.items()}
    for tree, equal in ((m, False), (top, True)):
        u, _ = backend.call(rank_one_solve, backend.tree(tree, dtype), rho)
        norm = float(np.linalg.norm(flat(backend.numpy(u))))
        bound = 1 / (2 * np.sqrt(rho))
        assert norm <= bound * (1 + 1e-5)
        if equal:
            assert_close(norm, bound, dtype=dtype, size=9)


@law(seed=seeds, beta=st.sampled_from([0.5, 0.9]), dtype=dtypes)
def test_the_first_step_and_no_momentum(backend, seed, beta, dtype):
    """2.2 #4: at t = 1 M = g_1 for every beta; with beta = 0 M = g_t for every t."""
    r = rng(seed)
    gradients = [draw(r), draw(r)]
    exact = backend.tree(gradients, dtype)
    state, _ = trained(backend, SOFIM(1.0, beta), gradients[:1], dtype)
    for key in SHAPES:
        assert np.array_equal(state.tensors[key].moment, backend.numpy(exact[0][key]))
    state, found = trained(backend, SOFIM(1.0, 0.0), gradients, dtype)
    for key in SHAPES:
        moment = state.tensors[key].moment
        assert_close(moment, gradients[1][key], dtype=dtype, size=4, scale=4.0)
    assert len(found) == 2


@law(seed=seeds, beta=betas, scope=scopes, precondition=preconditions, dtype=dtypes)
def test_limits_of_rho(backend, seed, beta, scope, precondition, dtype):
    """2.2 #5: with eta = c rho, rho to infinity is momentum (or plain) SGD; to 0, eta M / |M|^2."""
    r = rng(seed)
    gradients = [draw(r), draw(r)]
    large = 2.0**60
    _, found = trained(backend, SOFIM(large, beta, scope, precondition), gradients, dtype)
    past = [flat(g) for g in gradients]
    moment = reference.sofim_moment(past, beta)
    wanted = past[-1] if precondition == "gradient" else moment
    assert_close(large * flat(found[1][0]), wanted, dtype=dtype, size=9, scale=4.0)
    if beta == 0.0:
        assert_close(large * flat(found[1][0]), past[-1], dtype=dtype, size=9, scale=4.0)
    _, found = trained(backend, SOFIM(1e-12, beta), gradients, dtype)
    assert_close(flat(found[1][0]), moment / (moment @ moment), dtype=dtype, size=9, kappa=10)


@law(seed=seeds, dtype=dtypes)
def test_large_rho_is_sgd_exactly(backend, seed, dtype):
    """Degenerate setting: a power of two above the precision, no momentum: eta F^-1 g = g, bits."""
    gradients, large = [draw(rng(seed))], 2.0**70
    wanted = backend.numpy(backend.tree(gradients, dtype))[0]
    for method in (SOFIM(large, 0.0), SOFIM(large, 0.0, precondition="gradient")):
        _, [(directions, _)] = trained(backend, method, gradients, dtype)
        for key in SHAPES:
            assert np.array_equal(directions[key] * np.asarray(large, dtype), wanted[key])


def descend(method, x, gradient, eta, steps):
    """Trajectory of a method on one vector, in NumPy float64."""
    state, path = method.init({"x": x}), [x]
    for _ in range(steps):
        grads = {"x": gradient(path[-1])}
        state = method.accumulate(state, grads, Hyper())
        u, _ = method.direction(state, grads, {}, Hyper())
        path.append(path[-1] - eta * u["x"])
    return np.stack(path)


@pytest.mark.parametrize("precondition", ["momentum", "gradient"])
def test_scale_law_and_rotations(precondition):
    """2.2 #6: g -> k g, rho -> k^2 rho, eta -> k eta changes no step; rotations commute."""
    r = rng(0)
    H = np.diag([1.0, 3.0, 10.0])
    x, k = r.standard_normal(3), 7.0
    q, _ = np.linalg.qr(r.standard_normal((3, 3)))
    plain = descend(SOFIM(0.5, precondition=precondition), x, lambda v: H @ v, 0.05, 20)
    scaled = descend(
        SOFIM(0.5 * k * k, precondition=precondition), x, lambda v: k * (H @ v), 0.05 * k, 20
    )
    rotated = descend(
        SOFIM(0.5, precondition=precondition), q @ x, lambda v: q @ H @ q.T @ v, 0.05, 20
    )
    assert_close(scaled, plain, size=100)
    assert_close(rotated, plain @ q.T, size=100)
    assert_far(plain[-1], plain[0], least=0.1)


def test_float32_keeps_its_digits_where_the_two_terms_cancel():
    """2.2 #7: relative error eps (1 + |M|^2 / rho) against eps, at |M|^2 = 1e6, rho = 1e-2."""
    m = rng(0).standard_normal(1_000_000).astype(np.float32)
    wide = m.astype(float)
    exact = wide / (1e-2 + wide @ wide)
    rho, square = np.float32(1e-2), np.dot(m, m)
    naive = m / rho - m * (square / (rho * rho + rho * square))
    assert_far(naive, exact, least=0.5)
    for right in (None, {"w": m}):
        u, norm = rank_one_solve({"w": m}, 1e-2, right)
        assert u["w"].dtype == np.float32
        assert_close(u["w"], exact, dtype="float32")
        assert_close(float(norm), np.linalg.norm(wide), size=100)


@law(seed=seeds, log_scale=st.sampled_from([-30, 25, 37]), dtype=dtypes)
def test_the_norm_does_not_overflow(backend, seed, log_scale, dtype):
    """In float32 at entries of 1e37, in float64 at 1e296: M / (rho + |M|^2), never 0 or NaN."""
    power = log_scale if dtype == "float32" else 8 * log_scale
    m = draw(rng(seed), 10.0**power)

    def both(m, *, xp):
        return scaled_square(m, xp=xp), rank_one_solve(m, 2.0, xp=xp)[0]

    (scale, square), u = backend.numpy(backend.call(both, backend.tree(m, dtype)))
    v = flat(m)
    if power > 0:
        norm = float(scale) * np.sqrt(float(square))
        assert_close(norm / 10.0**power, np.linalg.norm(v / 10.0**power), dtype=dtype, size=9)
    unit, top = v / np.abs(v).max(), np.abs(v).max()
    expected = unit / (2.0 / top + top * (unit @ unit))
    assert_close(flat(u) * 10.0 ** abs(power), expected * 10.0 ** abs(power), dtype="float32")


@pytest.mark.parametrize("power", [-30, 0, 30])
def test_without_float64_nothing_overflows(power, monkeypatch):
    """As in JAX by default: the scale alone keeps the squares in range."""
    monkeypatch.setattr("ngd_core._xp.double", lambda **_: None)
    m, x = draw(rng(0), 10.0**power), draw(rng(1), 10.0**power)
    narrow = [tree_map(lambda v: v.astype(np.float32), tree) for tree in (m, x)]
    v, y = flat(m), flat(x)
    u, norm = rank_one_solve(narrow[0], 2.0)
    assert norm.dtype == np.float32
    assert_close(flat(u), v / (2 + v @ v), dtype="float32", size=9)
    u, _ = rank_one_solve(narrow[0], 2.0, narrow[1])
    expected = (y - v * (v @ y) / (2 + v @ v)) / 2
    assert_close(flat(u), expected, dtype="float32", size=9, scale=np.abs(y).max())


def test_the_descent_factor_on_quadratics():
    """2.3: f(w') <= (1 - eta mu / (rho + Gamma^2)) f(w) for beta = 0, eta <= rho / L, f* = 0."""
    r = rng(0)
    for _ in range(30):
        values = r.uniform(0.2, 5.0, 4)
        q, _ = np.linalg.qr(r.standard_normal((4, 4)))
        H = (q * values) @ q.T
        x, rho = r.standard_normal(4), float(r.uniform(0.1, 3.0))
        mu, L = values.min(), values.max()
        for eta in (rho / L, 0.3 * rho / L):
            path = descend(SOFIM(rho, 0.0), x, lambda v, H=H: H @ v, eta, 60)
            f = np.sum(path @ H * path, axis=1) / 2
            # the largest gradient on the sublevel set: |g|^2 <= 2 L f
            factor = 1 - eta * mu / (rho + 2 * L * f[0])
            assert np.all(f[1:] <= factor * f[:-1] * (1 + 1e-9) + 1e-30)
            assert f[-1] < f[0]


@law(
    beta=betas,
    rho=st.sampled_from([0.05, 2.0]),
    L=st.sampled_from([0.5, 20.0]),
    dtype=dtypes,
)
def test_the_stability_bound(backend, beta, rho, L, dtype):
    """2.3: near a minimum of curvature L, stable iff eta / rho < 2 (1 + beta) / ((1 - beta) L).

    The map from (x, M) to its successor is linear there once the bias correction has faded; its
    spectral radius is 1 at the bound.
    """
    method, tiny = SOFIM(rho, beta), 1e-6
    steady = 1 / (1 - beta)

    def step(x, moment, weight, *, xp):
        state = method.init({"x": x}, xp=xp)
        tensor = state.tensors["x"]._replace(moment=moment, weight=weight)
        grads = {"x": L * x}
        state = method.accumulate(state._replace(tensors={"x": tensor}), grads, Hyper(), xp=xp)
        u, _ = method.direction(state, grads, {}, Hyper(), xp=xp)
        return u["x"], state.tensors["x"].moment

    columns = []
    for x, moment in ((tiny, 0.0), (0.0, tiny)):
        arrays = (backend.array(np.asarray(v), dtype) for v in (x, moment, steady))
        u, moved = backend.numpy(backend.call(step, *arrays))
        columns.append((x, float(u), float(moved)))
    bound = rho * 2 * (1 + beta) / ((1 - beta) * L)
    for factor, stable in ((0.98, True), (1.02, False)):
        A = np.asarray([[x - factor * bound * u, moved] for x, u, moved in columns]).T / tiny
        radius = np.abs(np.linalg.eigvals(A)).max()
        assert bool(radius < 1) is stable, radius


def test_the_stability_bound_in_the_long_run():
    """2.3 with the method itself: it settles just below the bound and not just above."""
    for beta in (0.0, 0.9):
        bound = 0.5 * 2 * (1 + beta) / ((1 - beta) * 3.0)
        method, x = SOFIM(0.5, beta), np.asarray([1e-6])
        below, above = (descend(method, x, lambda v: 3.0 * v, f * bound, 600) for f in (0.95, 1.05))
        assert abs(below[-1, 0]) < 1e-7
        assert abs(above).max() > 1e-5


@law(seed=seeds, scope=scopes, bad=st.sampled_from([np.nan, np.inf, -np.inf]), dtype=dtypes)
def test_a_non_finite_gradient_poisons_nothing(backend, seed, scope, bad, dtype):
    """2.5 #8: refused and counted, alone or with the others of its step; its direction is zero."""
    r = rng(seed)
    gradients = [draw(r), draw(r)]
    gradients[1]["b"][1] = bad
    method = SOFIM(1.0, 0.5, scope)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        state, found = trained(backend, method, gradients, dtype)
        before, _ = trained(backend, method, gradients[:1], dtype)
    directions, info = found[1]
    assert np.all(directions["b"] == 0)
    assert int(info["b"].code) == 5
    assert np.any(directions["w"] != 0)
    assert int(info["w"].code) == 0
    for key in SHAPES:
        refused = scope == "global" or key == "b"
        assert int(state.tensors[key].rejected) == refused
        for name in ("moment", "weight"):
            after, old = (getattr(x.tensors[key], name) for x in (state, before))
            assert np.array_equal(after, old) is refused
        assert np.isfinite(state.tensors[key].moment).all()


def test_a_gradient_too_large_for_the_state_is_refused():
    method, hyper = SOFIM(1.0), Hyper()
    state = method.init({"w": np.zeros(2, "float32")})
    state = method.accumulate(state, {"w": np.asarray([1e39, 1.0])}, hyper)
    assert int(state.tensors["w"].rejected) == 1
    assert np.array_equal(state.tensors["w"].moment, np.zeros(2))


@law(seed=seeds, scope=scopes, dtype=dtypes)
def test_without_momentum_the_direction_is_the_gradient(backend, seed, scope, dtype):
    method, grads = SOFIM(0.5, scope=scope), backend.tree(draw(rng(seed)), dtype)

    def both(state, grads, *, xp):
        state, refreshed = method.refresh(state, Hyper(), xp=xp)
        return *method.direction(state, grads, {}, Hyper(), xp=xp), refreshed

    directions, info, refreshed = backend.numpy(backend.call(both, method.init(grads), grads))
    for key in SHAPES:
        assert np.array_equal(directions[key], backend.numpy(grads[key]))
        assert int(info[key].code) == int(refreshed[key].code) == 4


@law(seed=seeds, dtype=dtypes)
def test_layers_and_their_records_are_as_good_as_names(backend, seed, dtype):
    """The four functions of every method: specs, and records, of which it takes the mean."""
    fc = LayerSpec("fc", "dense", 3, 2)
    r, hyper = rng(seed), Hyper(2.0, 0.5)
    record = LayerRecord(r.standard_normal((4, 3)), r.standard_normal((4, 2)))
    grad = {fc: factors.mean_gradient(fc, record)}
    method = SOFIM(None, None)
    state = method.init([fc], backend.array(np.zeros(()), dtype))

    def step(state, records, grads, *, xp):
        state = method.accumulate(state, records, hyper, xp=xp)
        state, info = method.refresh(state, hyper, xp=xp)
        return *method.direction(state, grads, {}, hyper, xp=xp), info

    directions, _, info = backend.numpy(
        backend.call(step, state, backend.tree({fc: record}, dtype), backend.tree(grad, dtype))
    )
    expected = reference.sofim_direction(grad[fc].reshape(-1), 2.0).reshape(2, 4)
    assert_close(directions[fc], expected, dtype=dtype, size=10)
    assert float(info[fc].measures["weight"]) == 1
    assert float(info[fc].measures["rejected"]) == 0


def test_scopes_differ():
    """2.5 #3: one norm for all arrays, or one each."""
    grads = draw(rng(0))
    found = []
    for scope in ("global", "tensor"):
        method = SOFIM(0.5, scope=scope)
        state = method.accumulate(method.init(grads), grads, Hyper())
        found.append(flat(method.direction(state, grads, {}, Hyper())[0]))
    assert_far(found[0], found[1], least=0.5)


def test_half_precision_gets_its_own_dtype_back():
    grads = {"w": np.asarray([1.0, 2.0], np.float16)}
    method = SOFIM(1.0)
    state = method.accumulate(method.init(grads), grads, Hyper())
    assert state.tensors["w"].moment.dtype == np.float32
    directions, _ = method.direction(state, grads, {}, Hyper())
    assert directions["w"].dtype == np.float16


@law(seed=seeds, dtype=dtypes)
def test_state_keeps_its_structure_and_inputs_stay(backend, seed, dtype):
    grads = backend.tree(draw(rng(seed)), dtype)
    before = [np.array(backend.numpy(x)) for x in grads.values()]
    method = SOFIM(1.0)
    state = method.init(grads)
    after = backend.call(lambda s, g, *, xp: train(method, s, [g], Hyper(), xp=xp)[0], state, grads)
    for key, tensor in backend.numpy(after).tensors.items():
        for new, old in zip(tensor, backend.numpy(state).tensors[key], strict=True):
            assert (new.shape, new.dtype) == (old.shape, old.dtype)
    for x, y in zip(before, grads.values(), strict=True):
        assert np.array_equal(x, backend.numpy(y))


@pytest.mark.parametrize("compiler", ["jax", "torch"])
def test_changing_rho_and_beta_compile_nothing(compiler):
    """With None they are leaves: one compilation for twelve values."""
    method = SOFIM(None, None)
    xp, array, compiled, count = compiler_of(compiler)
    grads = tree_map(array, draw(rng(0)))
    state = method.init(grads)
    f = compiled(lambda state, grads, hyper: train(method, state, [grads], hyper, xp=xp))
    for hyper in hypers(array):
        state, _ = f(state, grads, hyper)
    assert count() == 1


W = {"w": np.ones(2)}
METHOD = SOFIM(1.0)
STATE = METHOD.init(W)
FC = LayerSpec("fc", "dense", 1, 1)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: SOFIM(), TypeError, "rho"),
        (lambda: SOFIM(0.0), ValueError, "rho is 0.0; expected a number > 0"),
        (lambda: SOFIM(-1), ValueError, "rho is -1; expected a number > 0"),
        (lambda: SOFIM(1.0, 1.5), ValueError, "beta is 1.5; expected a number between 0 and 1"),
        (lambda: SOFIM(1.0, scope="layer"), ValueError, "scope is 'layer'; expected one of"),
        (lambda: SOFIM(1.0, precondition="both"), ValueError, "precondition is 'both'"),
        (lambda: METHOD.init({}), ValueError, "specs is empty"),
        (lambda: METHOD.init([]), ValueError, "specs is empty"),
        (lambda: METHOD.init([FC]), ValueError, "like is missing; with layers it gives dtype"),
        (lambda: METHOD.init({"w": np.ones(2, int)}), TypeError, "'w' has dtype int64"),
        (
            lambda: METHOD.accumulate(STATE, {"v": np.ones(2)}, Hyper()),
            ValueError,
            "grads holds the layer 'v', which the state was not made for",
        ),
        (
            lambda: METHOD.accumulate(METHOD.init({**W, "v": np.ones(1)}), W, Hyper()),
            ValueError,
            "the state holds the layer 'v'",
        ),
        (
            lambda: METHOD.accumulate(STATE, {"w": np.ones(3)}, Hyper()),
            ValueError,
            r"gradient of 'w' has shape \(3,\); expected \(2,\)",
        ),
        (
            lambda: METHOD.direction(STATE, {"w": np.ones(2, int)}, {}, Hyper()),
            TypeError,
            "gradient of 'w' has dtype int64",
        ),
        (
            lambda: SOFIM(None).direction(STATE, W, {}, Hyper(0.0)),
            ValueError,
            "rho is 0.0; expected a number > 0",
        ),
        (lambda: rank_one_solve({}, 1.0), ValueError, "m is empty; expected at least one array"),
        (
            lambda: rank_one_solve(W, 1.0, {"v": W["w"]}),
            ValueError,
            r"x has the keys \['v'\]; expected those of m: \['w'\]",
        ),
        (
            lambda: rank_one_solve(W, 1.0, {"w": np.ones(3)}),
            ValueError,
            r"x 'w' has shape \(3,\); expected \(2,\)",
        ),
        (lambda: scaled_square({"w": np.ones(2, int)}), TypeError, "arrays 'w' has dtype int64"),
    ],
)
def test_mistakes_get_one_clear_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


def test_mixed_libraries_get_one_clear_sentence():
    import torch

    with pytest.raises(TypeError, match="Arrays of several libraries were mixed: the state is a"):
        METHOD.direction(STATE, {"w": torch.ones(2)}, {}, Hyper())
