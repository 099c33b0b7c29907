"""Coefficients of the natural gradient as a weighted sum, and the tables that keep them."""

import numpy as np
import pytest
from harness import dtypes, law, rng, seeds
from hypothesis import strategies as st

from ngd_core import Conv2dGeometry, LayerRecord, LayerSpec, factors, nn, reference, weighting
from ngd_core.testing import assert_close, assert_far

N = 4
FC = LayerSpec("fc", "dense", 3, 2)
SEQ = LayerSpec("seq", "dense", 2, 3, bias=False)
CONV = LayerSpec("conv", "conv2d", 4, 6, geometry=Conv2dGeometry(2, padding="same", groups=2))
SHAPES = {FC: ((3,), (2,)), SEQ: ((4, 2), (4, 3)), CONV: ((4, 3, 3), (6, 3, 3))}
SPECS = st.sampled_from([FC, SEQ, CONV])
dampings = st.sampled_from([1e-2, 0.3, 10.0])


def layer(r, spec, scale=1.0):
    """A record, and U by the definition."""
    inputs, outputs = SHAPES[spec]
    record = LayerRecord(r.standard_normal((N, *inputs)), scale * r.standard_normal((N, *outputs)))
    return record, gradients(spec, record)


def gradients(spec, record):
    n = len(record.a)
    if spec.geometry is None:
        shape = (n, -1, record.a.shape[-1]), (n, -1, record.g.shape[-1])
        a, g = record.a.reshape(shape[0]), record.g.reshape(shape[1])
        return reference.example_gradients(a, g, spec.bias)
    geometry, k = spec.geometry, spec.groups
    options = geometry.kernel_size, geometry.stride, geometry.dilation, geometry.pads(3, 3), k
    x = reference.conv_patches(record.a, *options)
    y = np.swapaxes(record.g.reshape(n, k, spec.rows, -1), 2, 3)
    return np.concatenate([reference.example_gradients(x[i], y[:, i]) for i in range(k)])


def kappa(U, damping):
    return np.linalg.norm(U, 2) ** 2 / U.shape[1] / damping + 1


def whole(spec, record, damping, *, xp):
    """Gram matrix, coefficients and direction, as one function where the backend compiles."""
    K = factors.gram(spec, record, xp=xp)
    c, ok, code = weighting.coefficients(K, damping, xp=xp)
    return c, weighting.weighted_gradient(spec, record, c, xp=xp), ok, code


def solved(backend, spec, record, damping, dtype):
    damping = backend.array(np.asarray(damping), dtype)
    out = backend.call(
        lambda *args, xp: whole(spec, *args, xp=xp), backend.tree(record, dtype), damping
    )
    c, d, ok, code = backend.numpy(out)
    assert bool(ok)
    assert int(code) == 0
    assert str(c.dtype) == str(d.dtype) == dtype
    return c.astype(np.float64), d.astype(np.float64)


def coefficients(backend, matrices, dampings, dtype):
    """Of several Gram matrices in one call."""
    c, ok, code = backend.call(
        weighting.coefficients,
        backend.array(np.stack(matrices), dtype),
        backend.array(np.asarray(dampings, float), dtype),
    )
    assert backend.numpy(ok).all()
    assert np.isin(backend.numpy(code), (0, 1)).all()
    return backend.numpy(c).astype(np.float64)


@law(seed=seeds, spec=SPECS, damping=dampings, dtype=dtypes)
def test_weighted_gradients_are_the_dense_damped_solve(backend, seed, spec, damping, dtype):
    """2.9 #1: U c = (lam I + U U^T / n)^-1 gbar, by the P x P matrix."""
    record, U = layer(rng(seed), spec)
    _, d = solved(backend, spec, record, damping, dtype)
    expected = reference.fngd_direction(U, damping).reshape(spec.block_shape)
    scale = np.abs(np.mean(U, axis=1)).max() / damping
    assert_close(d, expected, dtype=dtype, size=len(U), kappa=kappa(U, damping), scale=scale)


@law(seed=seeds, damping=dampings, dtype=dtypes)
def test_both_forms_of_the_identity_agree(backend, seed, damping, dtype):
    """2.9 #2: (n lam I + K)^-1 1 = (1 - (n lam I + K)^-1 K 1) / (n lam)."""
    _, U = layer(rng(seed), FC)
    [c] = coefficients(backend, [U.T @ U], [damping], dtype)
    expected = reference.fngd_coefficients(U, damping, "woodbury")
    assert_close(c, expected, dtype=dtype, size=N, kappa=kappa(U, damping))


@law(seed=seeds, spec=SPECS, dtype=dtypes)
def test_one_product_gives_the_weighted_sum(backend, seed, spec, dtype):
    """2.9 #4: X^T (c * G) = reshape(U c), for any c and over all positions."""
    r = rng(seed)
    record, U = layer(r, spec)
    c = r.standard_normal(N)
    got = backend.call(
        lambda *args, xp: weighting.weighted_gradient(spec, *args, xp=xp),
        backend.tree(record, dtype),
        backend.array(c, dtype),
    )
    assert_close(
        backend.numpy(got), (U @ c).reshape(spec.block_shape), dtype=dtype, size=len(U) * 9
    )


def test_shared_coefficients_reweight_the_loss():
    """2.9 #5: with one c for all layers, U c is the gradient of sum_i c_i loss_i."""
    r = rng(0)
    network = reference.Network(
        (
            reference.Layer("dense", "one", in_features=3, out_features=4),
            reference.Layer("tanh"),
            reference.Layer("dense", "two", in_features=4, out_features=2),
        )
    )
    model = nn.Sequential(nn.Dense("one", 3, 4), nn.Tanh(), nn.Dense("two", 4, 2))
    params = {name: r.standard_normal(shape) for name, shape in nn.shapes(model).items()}
    x, y = r.standard_normal((N, 3)), r.standard_normal((N, 2))
    outputs, tape = nn.forward(model, params, x)
    records = nn.backward(model, params, tape, outputs - y).records
    K = sum(factors.gram(spec, record) for spec, record in records.items())
    c, _, _ = weighting.coefficients(K, 0.1)

    def loss(blocks):
        return float(np.sum(c * reference.loss_value("gaussian", network.forward(blocks, x), y)))

    for spec, record in records.items():
        got = weighting.weighted_gradient(spec, record, c)
        for place in [(0, 0), (1, 2)]:
            ends = []
            for sign in (1, -1):
                moved = {name: block.copy() for name, block in params.items()}
                moved[spec.name][place] += sign * 1e-5
                ends.append(loss(moved))
            assert abs((ends[0] - ends[1]) / 2e-5 - got[place]) < 1e-7
    U = reference.loss_gradients(network, params, x, "gaussian", y).T
    whole_network = np.concatenate(
        [weighting.weighted_gradient(spec, rec, c).reshape(-1) for spec, rec in records.items()]
    )
    assert_close(whole_network, U @ c, size=40)
    assert_close(whole_network, reference.fngd_direction(U, 0.1), size=40, kappa=kappa(U, 0.1))


@law(seed=seeds, spec=SPECS, dtype=dtypes)
def test_alignment_with_the_gradient(backend, seed, spec, dtype):
    """2.9 #6: <gbar, U c> = 1 - lam sum(c), in [0, 1), not increasing in lam."""
    record, U = layer(rng(seed), spec)
    last = 1.0
    for damping in (0.3, 10.0):
        c, d = solved(backend, spec, record, damping, dtype)
        aligned = float(np.mean(U, axis=1) @ d.reshape(-1))
        slack = 1e-9 if dtype == "float64" else 1e-3
        assert_close(
            aligned, 1 - damping * c.sum(), dtype=dtype, size=len(U), kappa=kappa(U, damping),
            scale=1.0,
        )  # fmt: skip
        assert -slack <= aligned <= last + slack
        last = aligned


@law(seed=seeds, damping=st.sampled_from([1e-3, 0.1, 1.0, 1e2]), dtype=dtypes)
def test_bounds_of_coefficients_and_directions(backend, seed, damping, dtype):
    """2.9 #7: 1/(lam + eigmax(K)/n) <= sum(c) <= 1/lam, |c| <= 1/(sqrt(n) lam), |U c| <= ..."""
    r = rng(seed)
    _, U = layer(r, FC, scale=10.0 ** r.integers(-2, 2))
    [c] = coefficients(backend, [U.T @ U], [damping], dtype)
    slack = 1 + (1e-9 if dtype == "float64" else 1e-2)
    top = np.linalg.norm(U, 2) ** 2 / N
    assert 1 / (damping + top) <= c.sum() * slack
    assert c.sum() <= slack / damping
    assert np.linalg.norm(c) <= slack / (np.sqrt(N) * damping)
    if dtype == "float64":
        assert np.linalg.norm(U @ c) <= slack / (2 * np.sqrt(damping))


@law(seed=seeds, dtype=dtypes)
def test_limits_of_the_damping(backend, seed, dtype):
    """2.9 #8: lam c -> 1/n; and U^T U c = 1 where the damping vanishes, so L for L layers."""
    r, large = rng(seed), 1e18
    one, two = (U.T @ U for U in (layer(r, spec)[1] for spec in (FC, SEQ)))
    c = coefficients(backend, [one, two], [large, large], dtype)
    assert_close(large * c, np.full((2, N), 1 / N), dtype=dtype, size=N)
    c = coefficients(backend, [one, two], [0.0, 0.0], "float64")
    kappa = max(np.linalg.cond(one), np.linalg.cond(two))
    assert_close(one @ c[0], np.ones(N), size=N, kappa=kappa)
    assert_close(one @ c[0] + two @ c[1], np.full(N, 2.0), size=N, kappa=kappa)


@law(seed=seeds, damping=dampings, log_scale=st.sampled_from([-3, 2]), dtype=dtypes)
def test_scaling_permutation_and_duplicates(backend, seed, damping, log_scale, dtype):
    """2.9 #9: U -> s U, lam -> s^2 lam gives c / s^2; equivariant; equal examples, equal c."""
    r, s = rng(seed), 10.0**log_scale
    _, U = layer(r, FC)
    U[:, 2] = U[:, 0]
    order, K = r.permutation(N), U.T @ U
    c, scaled, permuted = coefficients(
        backend, [K, s * s * K, K[order][:, order]], [damping, s * s * damping, damping], dtype
    )
    k = kappa(U, damping)
    assert_close(scaled * s * s, c, dtype=dtype, size=N, kappa=k)
    assert_close(permuted, c[order], dtype=dtype, size=N, kappa=k)
    assert_close(c[2], c[0], dtype=dtype, size=N, kappa=k, scale=float(np.abs(c).max()))


@law(seed=seeds, damping=dampings, dtype=dtypes)
def test_closed_forms(backend, seed, damping, dtype):
    """2.9 #10: orthogonal, zero and identical gradients."""
    squares = rng(seed).uniform(0.1, 10.0, N)
    squares[1] = 0.0
    same = np.full((N, N), squares[0])
    apart, alike = coefficients(backend, [np.diag(squares), same], [damping] * 2, dtype)
    k = 1 + 10 * N / damping
    assert_close(apart, 1 / (N * damping + squares), dtype=dtype, size=N, kappa=k)
    assert_close(apart[1], 1 / (N * damping), dtype=dtype, size=N)
    expected = np.full(N, 1 / (N * (damping + squares[0])))
    assert_close(alike, expected, dtype=dtype, size=N, kappa=k)


def test_the_printed_form_cancels_where_this_one_does_not():
    """2.9 #2 in rounding: (1 - (n lam I + K)^-1 K 1) / (n lam) loses digits for small lam."""
    K, damping = np.diag([1.0, 2.0, 3.0, 5.0]), 1e-10
    c, _, _ = weighting.coefficients(K, damping)
    exact = 1 / (4e-10 + np.diag(K))
    assert_close(c, exact)
    printed = reference.fngd_coefficients(np.sqrt(K), damping, "woodbury")
    assert_far(printed, exact, least=1e-9)


@law(
    seed=seeds,
    mode=st.sampled_from(["relative", "absolute"]),
    damping=st.sampled_from([0.0, 0.5, 10.0]),
    dtype=dtypes,
)
def test_damping_relative_and_absolute(backend, seed, mode, damping, dtype):
    """2.8 #6: lam = max(floor, rho tr(K) / n^2), the mean eigenvalue of K / n, or lam itself."""
    _, U = layer(rng(seed), SEQ)
    for matrix in (U, np.zeros_like(U)):
        got = backend.call(
            weighting.layer_damping, backend.array(matrix.T @ matrix, dtype), damping, mode=mode
        )
        expected = reference.fngd_damping(matrix, damping, mode)
        assert_close(backend.numpy(got), expected, dtype=dtype, size=N)


@law(bad=st.sampled_from([np.nan, np.inf, -np.inf]), dtype=dtypes)
def test_an_unusable_gram_matrix_is_not_ok(backend, bad, dtype):
    K = np.eye(N)
    K[1, 2] = bad
    c, ok, code = backend.call(weighting.coefficients, backend.array(K, dtype), 1.0)
    assert not bool(backend.numpy(ok))
    assert int(backend.numpy(code)) == 4
    assert np.isfinite(backend.numpy(c)).all()


SIZES = {"position": 3, "iteration": 6, "sample": 7}


def both_batches(share, first, second, probe, *, xp):
    """Write two batches, the second refused, and look up a third."""
    like = first[1]
    table = weighting.empty_table(
        SIZES[share], by_position=share == "position", like=like[0], xp=xp
    )
    codes = {"batch_size": 3, "iterations": 2, "like": like, "xp": xp}
    for (index, weights), verdict in ((first, True), (second, False)):
        slots = weighting.table_slots(share, weights.shape[0], index, **codes)
        ok = xp.all(weights > 0) if verdict else xp.all(weights < 0)
        table = weighting.record_weights(table, slots, weights, ok, xp=xp)
    slots = weighting.table_slots(share, probe[1], probe[0], **codes)
    before = weighting.look_up(table, slots, xp=xp)
    table, number, some = weighting.close_epoch(table, xp=xp)
    return before, weighting.look_up(table, slots, xp=xp), number, some


@law(seed=seeds, share=st.sampled_from(sorted(SIZES)), dtype=dtypes)
def test_tables_return_what_was_recorded(backend, seed, share, dtype):
    """Entries by position, by iteration (modulo the length) and by sample, refused batches not."""
    r = rng(seed)
    first, second = r.uniform(1, 2, 3), r.uniform(1, 2, 2)
    index = {
        "position": (None, None, None),
        "iteration": (3, 0, 5),
        "sample": (r.permutation(7)[:3], np.asarray([0, 1]), r.integers(0, 7, 2)),
    }[share]
    arrays = [None if i is None else np.asarray(i, np.int64) for i in index]
    before, after, number, some = backend.numpy(
        backend.call(
            lambda f, s, i, *, xp: both_batches(share, f, s, (i, 2), xp=xp),
            (backend.tree(arrays[0]), backend.array(first, dtype)),
            (backend.tree(arrays[1]), backend.array(second, dtype)),
            backend.tree(arrays[2]),
        )
    )
    if share == "sample":
        entries = dict(zip(index[0].tolist(), first.tolist(), strict=True))
        wanted = [entries.get(i) for i in index[2].tolist()]
    else:
        wanted = [first[0], first[1]]
    found = [w is not None for w in wanted]
    assert before[1].tolist() == ([False, False] if share == "position" else found)
    assert after[1].tolist() == found
    assert float(number) == 3
    assert bool(some)
    assert_close(after[0], [first.mean() if w is None else w for w in wanted], dtype=dtype)
    if share != "position":
        assert_close(before[0], [1.0 if w is None else w for w in wanted], dtype=dtype)
    else:
        assert before[0].tolist() == [1.0, 1.0]


@law(batch_size=st.integers(1, 4), iterations=st.integers(1, 4))
def test_an_epoch_of_full_batches_fills_the_table_once(backend, batch_size, iterations):
    """By iteration every entry has one example, in each epoch the same."""
    sizes = {"batch_size": batch_size, "iterations": iterations}
    like = backend.array(np.zeros(()), "float64")
    for epoch in range(2):
        slots = []
        for k in range(iterations):
            index = backend.array(np.asarray(epoch * iterations + k))
            found = weighting.table_slots(
                "iteration", batch_size, index, **sizes, like=like, xp=backend.xp
            )
            slots += backend.numpy(found).tolist()
        assert slots == list(range(batch_size * iterations))


def test_indices_outside_the_data_set_are_dropped():
    table = weighting.empty_table(3, by_position=False, like=np.zeros(()))
    slots = np.asarray([-1, 3, 1])
    table = weighting.record_weights(table, slots, np.asarray([5.0, 6.0, 7.0]), np.asarray(True))
    assert table.weights.tolist() == [1.0, 7.0, 1.0]
    assert table.known.tolist() == [False, True, False]
    ends = np.asarray([0, 2])
    table = weighting.record_weights(table, ends, np.asarray([8.0, 9.0]), np.asarray(True))
    weights, found = weighting.look_up(table, slots)
    assert found.tolist() == [False, False, True]
    assert weights.tolist() == [1.0, 1.0, 7.0]


def test_means_by_position_begin_anew_each_epoch_and_leave_out_short_batches():
    table = weighting.empty_table(2, by_position=True, like=np.zeros(()))
    slots, yes = np.asarray([0, 1]), np.asarray(True)

    def put(table, *weights):
        return weighting.record_weights(table, slots[: len(weights)], np.asarray(weights), yes)

    table = put(put(put(table, 1.0, 2.0), 3.0, 6.0), 100.0)
    assert weighting.look_up(table, slots)[0].tolist() == [100.0, 6.0]
    table, number, _ = weighting.close_epoch(table)
    assert weighting.look_up(table, slots)[0].tolist() == [2.0, 4.0]
    assert float(table.gain) == 3.0
    assert float(number) == 2.0
    again, _, _ = weighting.close_epoch(table)
    assert again.weights.tolist() == table.weights.tolist()
    table, _, _ = weighting.close_epoch(put(again, 5.0, 7.0))
    assert weighting.look_up(table, slots)[0].tolist() == [5.0, 7.0]


@law(seed=seeds, dtype=dtypes)
def test_the_guard_replaces_what_does_not_descend(backend, seed, dtype):
    r = rng(seed)
    grad = r.standard_normal((2, 3))
    across = r.standard_normal((2, 3))
    across -= grad * np.sum(across * grad) / np.sum(grad * grad)
    for along, fires in ((0.5, False), (-0.5, True)):
        u = across + along * grad
        arrays = (backend.array(x, dtype) for x in (u, grad, np.asarray(0.25)))
        got, fired = backend.call(weighting.descent_guard, *arrays)
        assert bool(backend.numpy(fired)) is fires
        assert_close(backend.numpy(got), 0.25 * grad if fires else u, dtype=dtype)


def test_the_guard_leaves_zero_and_broken_gradients_alone():
    zero, one = np.zeros(2), np.asarray(1.0)
    u, fired = weighting.descent_guard(zero, zero, one)
    assert u.tolist() == [0.0, 0.0]
    assert not fired
    u, fired = weighting.descent_guard(np.asarray([np.nan, 1.0]), np.ones(2), one)
    assert np.isnan(u[0])
    assert not fired


def test_stale_coefficients_need_the_guard():
    """2.10: coefficients of one batch on another need not give descent; exact ones always do."""
    r, stale, exact = rng(0), 0, 0
    for _ in range(200):
        (_, U), (_, V) = layer(r, FC), layer(r, FC)
        c, d = reference.fngd_coefficients(U, 1e-3), reference.fngd_coefficients(V, 1e-3)
        stale += bool(np.mean(V, axis=1) @ (V @ c) <= 0)
        exact += bool(np.mean(V, axis=1) @ (V @ d) <= 0)
    assert exact == 0
    assert stale > 0


LIKE = np.zeros(())


def slots(share, count, index=None, **options):
    return lambda: weighting.table_slots(share, count, index, like=LIKE, **options)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (slots("row", 2), ValueError, "share is 'row'; expected one of 'position', 'iteration'"),
        (slots("position", 5, batch_size=4), ValueError, "5 examples, but batch_size is 4"),
        (slots("sample", 2), ValueError, "share='sample' needs the examples' indices"),
        (
            slots("iteration", 2, batch_size=2),
            ValueError,
            "share='iteration' needs the iteration's number",
        ),
        (slots("sample", 2, np.zeros(2)), TypeError, "index has dtype float64; expected an int"),
        (slots("sample", 2, np.zeros(3, int)), ValueError, r"index has shape \(3,\); expected \(2"),
        (slots("iteration", 2, 1, batch_size=2), TypeError, "index is a builtins int; expected an"),
        (lambda: weighting.coefficients(np.eye(2), -1.0), ValueError, "damping is -1.0; expected"),
        (
            lambda: weighting.layer_damping(np.eye(2), 1.0, mode="trace"),
            ValueError,
            "mode is 'trace'; expected one of 'relative', 'absolute'",
        ),
        (
            lambda: weighting.weighted_gradient(FC, layer(rng(0), FC)[0], np.ones(3)),
            ValueError,
            r"weights has shape \(3,\); expected \(4,\): one an example",
        ),
        (
            lambda: weighting.weighted_gradient(FC, layer(rng(0), FC)[0], np.ones((4, 1))),
            ValueError,
            r"weights has shape \(4, 1\); expected \(1, 4\): one a vector and example",
        ),
    ],
)
def test_mistakes_get_one_clear_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


def test_coefficients_of_another_batch_are_another_direction():
    """The two batches of the tests above are far apart, so agreement there says something."""
    (_, U), (_, V) = layer(rng(1), FC), layer(rng(2), FC)
    assert_far(V @ reference.fngd_coefficients(U, 0.1), reference.fngd_direction(V, 0.1), least=0.2)
