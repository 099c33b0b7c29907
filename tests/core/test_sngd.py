"""SNGD (sngd_fngd.md 1.3, 1.6, 1.11): local Fisher matrices, directions, averages, the authors."""

import numpy as np
import pytest
from core.sngd_cases import (
    FC,
    METHODS,
    MODES,
    ORACLE,
    SEQ,
    SPECS,
    N,
    batch,
    gradients,
    law_over,
    one_step,
    oracle_fisher,
    traced,
    varied,
)
from harness import DTYPES, Backend, dtypes, law, rng, seeds

from ngd_core import SNGD, Hyper, LayerRecord, LayerSpec, factors, reference
from ngd_core.testing import assert_close, assert_far, tolerance

STARTS = ["identity", "corrected"]


@law_over({"name": METHODS, "spec": SPECS, "mode": MODES}, seed=seeds, dtype=dtypes)
def test_direction_is_the_dense_damped_solve(backend, seed, name, spec, mode, dtype):
    """(I (x) G + eps I)^-1 vec(grad), or with a G_j a row, for every kind of layer and damping."""
    r, method, damping = rng(seed), varied(name, damping_mode=mode), 0.1
    records, grads = batch(r, [spec]), gradients(r, [spec])
    _, directions, refreshed, info = one_step(
        backend, method, [records], grads, Hyper(damping, 0.9), dtype
    )
    G = oracle_fisher(method, spec, records[spec])
    expected = reference.local_direction(grads[spec], G, damping, mode)
    each = G.reshape(-1, spec.columns, spec.columns)
    eps = [reference.local_damping(m, damping, mode) for m in each]
    kappa = max(np.linalg.norm(m, 2) / e + 1 for m, e in zip(each, eps, strict=True))
    options = {"dtype": dtype, "size": spec.columns, "kappa": kappa}
    assert_close(directions[spec], expected, **options)
    assert str(directions[spec].dtype) == dtype
    assert int(refreshed[spec].code) == int(info[spec].code) == 0
    assert_close(info[spec].measures["inner"], np.sum(expected * grads[spec]), **options)
    assert_close(refreshed[spec].measures["damping"], max(eps), dtype=dtype, size=20)
    assert float(refreshed[spec].measures["weight"]) == N


@law(seed=seeds, dtype=dtypes)
def test_one_solve_with_g_serves_all_outputs(backend, seed, dtype):
    """1.11 #8: (G (x) I_o)^-1 vec(grad) = vec(G^-1 grad), with inputs down the rows."""
    r = rng(seed)
    records, grads = batch(r, [FC]), gradients(r, [FC])
    method = SNGD(damping_mode="absolute")
    _, directions, _, _ = one_step(backend, method, [records], grads, Hyper(0.1), dtype)
    M = reference.local_fisher(records[FC].a[:, None]) + 0.1 * np.eye(4)
    by_inputs = np.linalg.solve(reference.kron(M, np.eye(2)), grads[FC].T.reshape(-1))
    kappa = np.linalg.cond(M)
    assert_close(directions[FC].T.reshape(-1), by_inputs, dtype=dtype, size=4, kappa=kappa)
    by_outputs = np.linalg.solve(reference.kron(np.eye(2), M), grads[FC].reshape(-1))
    assert_close(directions[FC].reshape(-1), by_outputs, dtype=dtype, size=4, kappa=kappa)


def local(backend, f, spec, record, dtype):
    return backend.numpy(
        backend.call(lambda r, *, xp: f(spec, r, xp=xp), backend.tree(record, dtype))
    ).astype(np.float64)


@law_over({"spec": SPECS}, seed=seeds, dtype=dtypes)
def test_relu_metric_lies_below_the_linear(backend, seed, spec, dtype):
    """1.11 #9 and 1.3: 0 <= G_j <= G for every output; both equal the loops; symmetric."""
    record = batch(rng(seed))[spec]
    G = local(backend, factors.linear_fisher, spec, record, dtype)
    each = local(backend, factors.relu_fisher, spec, record, dtype)
    assert_close(G, oracle_fisher(SNGD(), spec, record), dtype=dtype, size=20)
    assert_close(each, oracle_fisher(SNGD("relu"), spec, record), dtype=dtype, size=20)
    assert each.shape == (*spec.stack, spec.rows, spec.columns, spec.columns)
    slack = tolerance(dtype, 20) * np.abs(G).max()
    for m in (G, each, G[..., None, :, :] - each):
        assert_close(m, np.swapaxes(m, -1, -2), dtype=dtype)
        assert np.linalg.eigvalsh(m).min() >= -slack
    assert np.linalg.eigvalsh(G[..., None, :, :] - each).max() > slack


@law_over({"z": [-90.0, -20.0, 0.0, 20.0, 90.0], "dtype": DTYPES})
def test_slope_of_the_relu_metric_at_any_output(backend, z, dtype):
    """Full relative accuracy of s(z)^2 far down, no overflow: half dead outputs have a G_j too."""
    record = LayerRecord(np.ones((2, 3)), np.zeros((2, 2)), np.full((2, 2), z))
    got = local(backend, factors.relu_fisher, FC, record, dtype)
    wanted = np.exp(-2 * np.logaddexp(0.0, -z))
    if dtype == "float64" or z > -40:
        assert_close(got, np.full((2, 4, 4), wanted), dtype=dtype, size=2)
    else:
        assert np.all(got == 0)


@law(seed=seeds, dtype=dtypes)
def test_softmax_fisher_lies_below_half_the_linear(backend, seed, dtype):
    """1.11 #9 and 1.3: (diag p - p p^T) (x) x x^T <= (1/2) I (x) G for a softmax layer."""
    r, n = rng(seed), 4
    spec = LayerSpec("fc", "dense", 2, 3)
    layer = reference.Layer("dense", "fc", in_features=2, out_features=3)
    x, w = r.standard_normal((n, 2)), r.standard_normal(spec.block_shape)
    F = reference.exact_fisher(reference.Network((layer,)), {"fc": w}, x, "categorical")
    G = local(backend, factors.linear_fisher, spec, LayerRecord(x, np.zeros((n, 3))), dtype)
    rest = 0.5 * reference.kron(np.eye(3), G) - F
    assert np.linalg.eigvalsh(rest).min() >= -tolerance(dtype, n) * np.abs(G).max()
    assert np.trace(rest) > 0


@law(seed=seeds, dtype=dtypes)
def test_linear_metric_is_the_fisher_of_a_gaussian_layer(backend, seed, dtype):
    """1.3: I (x) G is the exact Fisher of a linear layer with unit Gaussian noise."""
    r = rng(seed)
    x, w = r.standard_normal((N, 3)), r.standard_normal(FC.block_shape)
    F = reference.exact_fisher(reference.Network((ORACLE[FC],)), {"fc": w}, x, "gaussian")
    G = local(backend, factors.linear_fisher, FC, LayerRecord(x, np.zeros((N, 2))), dtype)
    assert_close(reference.kron(np.eye(2), G), F, dtype=dtype, size=N)


@law_over({"mode": ["direct", "literal"]}, seed=seeds, dtype=dtypes)
def test_linear_regression_takes_one_step(backend, seed, mode, dtype):
    """1.11 #6: eps = 0, eta = 1: one step from anywhere is the least-squares solution."""
    r = rng(seed)
    x, y = r.standard_normal((12, 3)), r.standard_normal((12, 2))
    w = r.standard_normal(FC.block_shape)
    columns = np.c_[x, np.ones(12)]
    record = LayerRecord(x, columns @ w.T - y)
    grads = {FC: factors.mean_gradient(FC, record)}
    method = SNGD(mode=mode, damping_mode="absolute")
    _, directions, refreshed, _ = one_step(
        backend, method, [{FC: record}], grads, Hyper(0.0), dtype
    )
    assert int(refreshed[FC].code) == 1  # the damping is raised to the floor
    solution = np.linalg.lstsq(columns, y, rcond=None)[0].T
    kappa = np.linalg.cond(columns) ** 2
    assert_close(w - directions[FC], solution, dtype=dtype, size=12, kappa=2 * kappa)
    assert_far(w, solution, least=0.1)


def trajectory(w, batches, *, method, xp):
    """Outputs of a tanh layer on its first batch over two undamped natural steps."""
    hyper, outputs = Hyper(0.0, 0.5), []
    state = method.init([FC], w, xp=xp)
    for x, y in batches:
        z = x @ w[:, :-1].mT + w[:, -1]
        out = xp.tanh(z)
        record = LayerRecord(x, (out - y) * (1 - out * out), z)
        state, _ = method.refresh(
            method.accumulate(state, {FC: record}, hyper, xp=xp), hyper, xp=xp
        )
        grads = {FC: factors.mean_gradient(FC, record, xp=xp)}
        w = w - 0.5 * method.direction(state, grads, {}, hyper, xp=xp)[0][FC]
        outputs.append(batches[0][0] @ w[:, :-1].mT + w[:, -1])
    return outputs


@law(seed=seeds, dtype=dtypes)
def test_affine_maps_of_the_inputs_change_nothing(backend, seed, dtype):
    """1.11 #7: x -> x B (and a shift), W -> B^-1 W, eps = 0: the same function at each step."""
    r, method = rng(seed), SNGD(damping_mode="absolute")
    w, B = 0.5 * r.standard_normal(FC.block_shape), np.eye(4)
    B[:3, :3] += np.triu(r.uniform(-1, 1, (3, 3)), 1)
    B[3, :3] = r.uniform(-1, 1, 3)
    batches = [(r.standard_normal((10, 3)), r.uniform(-1, 1, (10, 2))) for _ in range(2)]
    mapped = [((np.c_[x, np.ones(10)] @ B)[:, :3], y) for x, y in batches]
    paths = [
        backend.numpy(
            backend.call(
                trajectory, backend.array(start, dtype), backend.tree(seen, dtype), method=method
            )
        )
        for start, seen in ((w, batches), (w @ np.linalg.inv(B).T, mapped))
    ]
    for one, other in zip(*paths, strict=True):
        assert_close(one, other, dtype=dtype, size=10, kappa=500)
    assert_far(paths[0][-1], batches[0][0] @ w[:, :-1].T + w[:, -1], least=0.05)


@law_over({"name": METHODS}, seed=seeds, dtype=dtypes)
def test_without_statistics_it_is_plain_descent_exactly(backend, seed, name, dtype):
    """1.11 #11: G = I (before any refresh, or one that had nothing) is SGD bit for bit; code 4."""
    method, grads = METHODS[name], backend.tree(gradients(rng(seed), [FC]), dtype)
    state = method.init([FC], backend.array(np.zeros(()), dtype))
    refreshed, infos = backend.call(method.refresh, state, Hyper())
    for current in (state, refreshed):
        directions, info = backend.call(method.direction, current, grads, {}, Hyper())
        if method.mode == "literal":
            directions = backend.call(method.coordinates, current, directions)
        assert np.array_equal(backend.numpy(directions[FC]), backend.numpy(grads[FC]))
        assert int(info[FC].code) == int(infos[FC].code) == 4


@pytest.mark.parametrize("name", METHODS)
def test_from_the_identity_a_refresh_needs_no_batch(name):
    """1.6: G_0 = I is an average like others, and the direction grad / (1 + eps); code 0."""
    method, grads = varied(name, start="identity"), gradients(rng(0), [FC])
    _, directions, refreshed, info = one_step(Backend("numpy"), method, [], grads, Hyper(0.5))
    assert_close(directions[FC], grads[FC] / 1.5, size=FC.columns)
    assert int(info[FC].code) == int(refreshed[FC].code) == 0


@law_over({"mode": ["direct", "literal"]}, seed=seeds, dtype=dtypes)
def test_whitened_inputs_give_plain_descent(backend, seed, mode, dtype):
    """1.11 #11: inputs with second moment I, no bias: the direction is the gradient."""
    r = rng(seed)
    q = np.linalg.qr(r.standard_normal((6, 2)))[0] * np.sqrt(6)
    spec = LayerSpec("white", "dense", 2, 3, bias=False)
    records = [{spec: LayerRecord(q, np.zeros((6, 3)))}]
    grads = {spec: r.standard_normal((3, 2))}
    method = SNGD(mode=mode, damping_mode="absolute")
    _, directions, _, _ = one_step(backend, method, records, grads, Hyper(0.0), dtype)
    assert_close(directions[spec], grads[spec], dtype=dtype, size=6)


@law_over({"name": METHODS, "start": STARTS}, seed=seeds, dtype=dtypes)
def test_average_over_batches(backend, seed, name, start, dtype):
    """1.11 #12: G_t = b^t G_0 + (1 - b) sum b^(t-k) G_k from the identity, or bias-corrected."""
    r, decay, damping = rng(seed), 0.7, 0.1
    method = varied(name, start=start, damping_mode="absolute")
    batches, grads = [batch(r, [FC]) for _ in range(3)], gradients(r, [FC])
    _, directions, _, _ = one_step(backend, method, batches, grads, Hyper(damping, decay), dtype)
    seen = [oracle_fisher(method, FC, records[FC]) for records in batches]
    first = np.broadcast_to(np.eye(FC.columns), seen[0].shape)
    G = decay**3 * first + (1 - decay) * sum(decay ** (2 - k) * m for k, m in enumerate(seen))
    if start == "corrected":
        G = (G - decay**3 * first) / (1 - decay**3)
    assert_close(reference.moving_average(seen, decay, first if start == "identity" else None), G)
    expected = reference.local_direction(grads[FC], G, damping, "absolute")
    assert_close(directions[FC], expected, dtype=dtype, size=20, kappa=200)


@law(seed=seeds, dtype=dtypes)
def test_settings_of_the_authors(backend, seed, dtype):
    """1.6: identity start, 0.995, eps = 1e-4 tr G of each matrix, first and last layer linear."""
    if traced(backend):
        return
    r = rng(seed)
    specs = [LayerSpec(name, "dense", 3, 2) for name in ("first", "hidden", "last")]
    method, hyper = SNGD.authors("first", "last")
    batches = [
        {s: LayerRecord(*(r.standard_normal((4, k)) for k in (3, 2, 2))) for s in specs}
        for _ in range(2)
    ]
    grads = {s: r.standard_normal(s.block_shape) for s in specs}
    _, directions, _, _ = one_step(backend, method, batches, grads, hyper, dtype)
    for spec in specs:
        relu = spec.name == "hidden"
        G = np.eye(4) + np.zeros((2, 4, 4) if relu else (4, 4))
        for records in batches:
            record = records[spec]
            z = record.z[:, None] if relu else None
            G = 0.995 * G + 0.005 * reference.local_fisher(record.a[:, None], z)
        rows = []
        for j in range(2):
            m = G[j] if relu else G
            rows.append(np.linalg.inv(m + 1e-4 * np.trace(m) * np.eye(4)) @ grads[spec][j])
        assert_close(directions[spec], np.stack(rows), dtype=dtype, size=4, kappa=10)
        assert_far(directions[spec], grads[spec], least=1e-4)


@law_over({"name": METHODS, "start": STARTS}, seed=seeds, dtype=dtypes)
def test_what_a_step_does_not_depend_on(backend, seed, name, start, dtype):
    """Duplicated and permuted examples, micro-batches, another loss: the same directions."""
    if traced(backend):
        return
    r, method, hyper = rng(seed), varied(name, start=start), Hyper(0.1, 0.8)
    specs = [FC, SEQ]
    records, grads, order = batch(r, specs), gradients(r, specs), r.permutation(N)

    def ends(parts, decays=(0.8, 0.8)):
        """Directions after batches were folded in."""
        state = method.init(specs, backend.array(np.zeros(()), dtype), xp=backend.xp)
        for part, decay in zip(parts, decays, strict=True):
            part = backend.tree(part, dtype)
            state = method.accumulate(state, part, Hyper(0.1, decay), xp=backend.xp)
        state, _ = method.refresh(state, hyper, xp=backend.xp)
        own = backend.tree(grads, dtype)
        return backend.numpy(method.direction(state, own, {}, hyper, xp=backend.xp)[0])

    def each(f):
        return {spec: LayerRecord(*(f(x) for x in record[:3])) for spec, record in records.items()}

    wanted = ends([records] * 2)
    other = {s: x._replace(g=7.0 * x.g + 1.0) for s, x in records.items()}
    parts = [each(lambda x: x[:1]), each(lambda x: x[1:])]
    for got in (
        ends([each(lambda x: np.concatenate([x, x]))] * 2),
        ends([each(lambda x: x[order])] * 2),
        ends([other] * 2),
        ends(parts * 2, (0.8, 1.0) * 2),
    ):
        for spec in specs:
            assert_close(got[spec], wanted[spec], dtype=dtype, size=40, kappa=100)
