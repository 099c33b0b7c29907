"""Square roots of damped matrices (sngd_fngd.md 1.5 and 1.11 #10): four ways, one definition."""

import numpy as np
import pytest
from core.sngd_cases import law_over, traced
from harness import dtypes, rng, seeds, spd
from hypothesis import strategies as st

from ngd_core import inversion, reference
from ngd_core.inversion import EAGER, PURE, Roots
from ngd_core.testing import assert_close, tolerance

ROOTS = {  # as many steps as conditions up to 1e3 need: compilers unroll them
    "eigh": {"root": "eigh"},
    "denman-beavers": {"root": "denman-beavers", "steps": 10},
    "newton-schulz": {"root": "newton-schulz", "steps": 16},
    "nystrom": {"root": "nystrom", "rank": 3},
}
EXACT = [name for name in ROOTS if name != "nystrom"]


def roots(backend, m, damping, in_dtype="float64", previous=1.0, good=False, **options):
    """damped_roots of NumPy arrays through the backend, back as NumPy arrays."""
    old = previous * np.broadcast_to(np.eye(m.shape[-1]), m.shape)
    out = backend.call(
        lambda *arrays, xp: inversion.damped_roots(
            arrays[0], arrays[1], Roots(arrays[2], arrays[2]), arrays[3], xp=xp, **options
        ),
        backend.array(m, in_dtype),
        backend.array(np.asarray(damping), in_dtype),
        backend.array(old, in_dtype),
        backend.array(np.full(m.shape[:-2], good)),
    )
    return backend.numpy(out)


def approximation(m, rank):
    """Nystrom approximation by its definition, with the pseudo-inverse."""
    index = list(inversion.landmarks(len(m), rank))
    columns = m[:, index]
    return columns @ np.linalg.pinv(m[np.ix_(index, index)], hermitian=True) @ columns.T


@law_over(
    {"name": ROOTS, "log_condition": [3, 0]},
    seed=seeds,
    scale=st.sampled_from([1.0, 1e-8, 1e8]),
    dtype=dtypes,
)
def test_the_root_squares_to_the_matrix_and_the_inverse_undoes_it(
    backend, seed, name, log_condition, scale, dtype
):
    """1.11 #10: R R = M, Rinv M Rinv = I, both symmetric, at every scale; the oracle's powers."""
    n, damping = 6, 1e-2 * scale
    m = scale * spd(rng(seed), n, 10.0**log_condition)
    m = m.astype(dtype).astype(np.float64)
    (root, inverse), good, code = roots(backend, m, damping, dtype, **ROOTS[name])
    assert (bool(good), int(code)) == (True, 0)
    assert str(root.dtype) == str(inverse.dtype) == dtype
    base = approximation(m, 3) if name == "nystrom" else m
    damped = base + damping * np.eye(n)
    kappa = np.linalg.cond(damped)
    root, inverse = root.astype(np.float64), inverse.astype(np.float64)
    assert_close(root @ root, damped, dtype=dtype, size=n, kappa=kappa)
    assert_close(inverse @ damped @ inverse, np.eye(n), dtype=dtype, size=n, kappa=kappa)
    for x, p in ((root, 0.5), (inverse, -0.5)):
        assert_close(x, x.T, dtype=dtype)
        expected = reference.symmetric_power(damped, p)
        assert_close(x, expected, dtype=dtype, size=n, kappa=kappa)


@law_over({"rank": [3, 4]}, seed=seeds, dtype=dtypes)
def test_nystrom_is_exact_up_to_its_rank(backend, seed, rank, dtype):
    """1.11 #10: equal to G if rank(G) <= m, with generic columns; also if m is all columns."""
    r, n = rng(seed), 6
    factor = r.standard_normal((n, 3))
    low, full = factor @ factor.T, spd(r, n, 10.0)
    columns = inversion.landmarks(n, rank)
    core = np.linalg.svd(factor[list(columns)], compute_uv=False)
    kappa = (core[0] / core[-1]) ** 2
    for m, picked, cond in ((low, columns, kappa), (full, inversion.landmarks(n, n), 10.0)):
        values, Q = backend.numpy(
            backend.call(
                lambda m, *, xp, picked=picked: inversion.nystrom(m, picked, xp=xp),
                backend.array(m, dtype),
            )
        )
        assert values.shape == (len(picked),)
        assert np.all(values >= 0)
        assert_close(Q.T @ Q, np.eye(len(picked)), dtype=dtype, size=n)
        assert_close((Q * values) @ Q.T, m, dtype=dtype, size=n, kappa=10 * cond)


@law_over({"rank": [3, 1, 5]}, seed=seeds, dtype=dtypes)
def test_nystrom_never_exceeds_the_matrix(backend, seed, rank, dtype):
    """1.11 #10: G - Ghat is positive semi-definite, and zero on the landmarks."""
    n = 6
    m = spd(rng(seed), n, 1e2)
    columns = inversion.landmarks(n, rank)
    values, Q = backend.numpy(
        backend.call(lambda m, *, xp: inversion.nystrom(m, columns, xp=xp), backend.array(m, dtype))
    )
    rest = m - (Q.astype(np.float64) * values) @ Q.T
    slack = tolerance(dtype, n, 1e2)
    assert np.linalg.eigvalsh(rest).min() >= -slack
    assert np.abs(rest[list(columns)]).max() <= slack
    assert np.linalg.eigvalsh(rest).max() > 1e-3


@law_over({"rank": [1, 3], "p": [-1.0, -0.5, 0.5, 1.0]}, seed=seeds, dtype=dtypes)
def test_power_rule(backend, seed, rank, p, dtype):
    """1.11 #10: eps^p I + Q diag((s + eps)^p - eps^p) Q^T is the dense power of Ghat + eps I."""
    r = rng(seed)
    Q = np.linalg.qr(r.standard_normal((6, rank)))[0]
    values, shift = r.uniform(0.0, 4.0, rank), 0.5
    got = backend.call(
        lambda *arrays, xp: inversion.shifted_power(*arrays, p, xp=xp),
        *(backend.array(x, dtype) for x in (values, Q, np.asarray(shift))),
    )
    dense = (Q * values) @ Q.T + shift * np.eye(6)
    expected = reference.symmetric_power(dense, p)
    assert_close(backend.numpy(got), expected, dtype=dtype, size=6, kappa=10)


@law_over({"name": ROOTS}, seed=seeds, dtype=dtypes)
def test_a_stack_is_a_loop_and_each_matrix_fails_alone(backend, seed, name, dtype):
    r = rng(seed)
    m, damping = np.stack([spd(r, 4, 10.0) for _ in range(3)]), np.asarray([0.1, 0.2, 0.3])
    m[1] = np.nan
    (root, inverse), good, code = roots(
        backend, m, damping, dtype, previous=3.0, good=True, **ROOTS[name]
    )
    assert code.tolist() == [0, 3, 0]
    assert good.all()
    assert_close(root[1], 3.0 * np.eye(4))
    assert_close(inverse[1], 3.0 * np.eye(4))
    for k in (0, 2):
        base = approximation(m[k], 3) if name == "nystrom" else m[k]
        expected = reference.symmetric_power(base + damping[k] * np.eye(4), 0.5)
        assert_close(root[k], expected, dtype=dtype, size=4, kappa=1e2)


BROKEN = {
    "nan": (np.full((3, 3), np.nan), 0.1),
    "inf": (np.full((3, 3), np.inf), 0.1),
    "nothing": (np.zeros((3, 3)), 0.0),
    "damping nan": (np.eye(3), np.nan),
    "damping below zero": (np.eye(3), -1.0),
}


@law_over({"case": BROKEN, "name": ROOTS}, good=st.booleans(), dtype=dtypes)
def test_what_has_no_root_leaves_the_last_good_one(backend, case, name, good, dtype):
    m, damping = BROKEN[case]
    (root, inverse), still, code = roots(
        backend, m, damping, dtype, previous=2.0, good=good, **ROOTS[name]
    )
    assert (bool(still), int(code)) == (good, 3 if good else 4)
    assert_close(root, 2.0 * np.eye(3))
    assert_close(inverse, 2.0 * np.eye(3))


SINGULAR = {
    "1x1": np.asarray([[2.0]]),
    "zero": np.zeros((3, 3)),
    "rank one": np.outer(np.arange(1.0, 4.0), np.arange(1.0, 4.0)),
    "dead unit": np.diag([1.0, 0.0, 2.0]),
    "twice the same": np.asarray([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 1.0]]),
    "huge": 1e30 * np.ones((3, 3)),
}


@law_over({"case": SINGULAR, "name": ROOTS}, dtype=dtypes)
def test_singular_matrices_are_ordinary(backend, case, name, dtype):
    m = SINGULAR[case]
    damping = 1e28 if case == "huge" else 0.25
    (root, inverse), good, code = roots(backend, m, damping, dtype, **ROOTS[name])
    assert (bool(good), int(code)) == (True, 0)
    damped = m + damping * np.eye(len(m))
    for x, p in ((root, 0.5), (inverse, -0.5)):
        assert_close(x, reference.symmetric_power(damped, p), dtype=dtype, size=3, kappa=500)


@law_over({"name": EXACT}, seed=seeds)
def test_an_undamped_singular_matrix_is_damped_at_the_floor(backend, seed, name):
    """Code 1, and roots that are inverse to each other, in float32 with a float64 solve."""
    if traced(backend):
        return
    v = rng(seed).standard_normal(4)
    (root, inverse), good, code = roots(backend, np.outer(v, v), 0.0, "float32", root=name)
    assert (bool(good), int(code)) == (True, 1)
    product = root.astype(np.float64) @ inverse.astype(np.float64)
    assert np.abs(product - np.eye(4)).max() < 1e-2


@pytest.mark.parametrize("name", ["denman-beavers", "newton-schulz"])
def test_condition_bound_is_kept_and_tight(name):
    """Published bound: residual below 1e-8 there, and no longer a hundred times beyond it."""
    iterate = getattr(inversion, name.replace("-", "_"))
    for steps in (8, 12, 16, 20):
        bound = inversion.condition_bound(name, steps)
        condition = 2 * bound - 1 if name == "denman-beavers" else bound
        for beyond, least, most in ((1.0, 0.0, 1e-8), (100.0, 1e-6, np.inf)):
            root, inverse = iterate(np.diag([1.0, 1 / (condition * beyond)]), steps=steps)
            assert least <= np.linalg.norm(root @ inverse - np.eye(2)) <= most


@pytest.mark.parametrize("m", [spd(rng(0), 5, 1e6), np.diag([1.0, 1.0, 1.0, 1.0, 1e-8])])
def test_a_root_that_has_not_converged_is_not_used(m):
    """Too few steps: code 4 and the identity, also if only one small eigenvalue is behind."""
    identity = Roots(np.eye(5), np.eye(5))
    for name in ("denman-beavers", "newton-schulz"):
        got, good, code = inversion.damped_roots(
            m, 0.0, identity, np.asarray(False), root=name, steps=8
        )
        assert (bool(good), int(code)) == (False, 4)
        assert np.array_equal(got.root, np.eye(5))


@law_over({"name": ROOTS}, seed=seeds)
def test_only_the_symmetric_part_counts(backend, seed, name):
    if traced(backend):
        return
    r = rng(seed)
    m, skew = spd(r, 6, 10.0), r.standard_normal((6, 6))
    (one, _), *_ = roots(backend, m, 0.1, **ROOTS[name])
    (other, _), *_ = roots(backend, m + 0.1 * (skew - skew.T), 0.1, **ROOTS[name])
    assert_close(other, one, size=6, kappa=1e3)


class Rubbish:
    """A namespace whose eigh answers without a word of warning, but wrongly."""

    def __init__(self, xp, only=None):
        self.xp, self.linalg, self.only = xp, self, only

    def __getattr__(self, name):
        return getattr(self.xp, name, None) or getattr(self.xp.linalg, name)

    def eigh(self, m):
        values, vectors = self.xp.linalg.eigh(m)
        return (values + 1, vectors) if self.only in (None, m.dtype) else (values, vectors)


def test_garbage_is_recognised_and_float64_is_tried():
    """Wrong eigenvalues are not believed: code 4, or 2 if only float32 was wrong."""
    import array_api_compat.numpy as xp

    m, identity = np.eye(2, dtype=np.float32), Roots(np.eye(2), np.eye(2))
    for only, expected in ((None, 4), (xp.float32, 2)):
        for ops in (PURE, EAGER):
            got, good, code = inversion.damped_roots(
                m, 0.5, identity, np.asarray(False), dtype="float32", ops=ops, xp=Rubbish(xp, only)
            )
            assert (int(code), bool(good)) == (expected, expected == 2)
            if expected == 2:
                assert_close(got.root, np.sqrt(1.5) * np.eye(2), dtype="float32")


@law_over({"name": ROOTS}, seed=seeds)
def test_eager_choice_equals_the_pure_twin(backend, seed, name):
    if traced(backend):
        return
    m = spd(rng(seed), 4, 1e3)
    (pure, *_), (eager, *_) = (
        roots(backend, m, 0.1, "float32", dtype="float32", ops=ops, **ROOTS[name])
        for ops in (PURE, EAGER)
    )
    assert np.array_equal(pure.root, eager.root)
    assert np.array_equal(pure.inverse, eager.inverse)


def test_landmarks_are_distinct_and_hold_the_last():
    for n in range(1, 12):
        for rank in range(1, 15):
            got = inversion.landmarks(n, rank)
            assert len(set(got)) == len(got) == min(n, rank)
            assert got[-1] == n - 1
            assert min(got) >= 0


IDENTITY = Roots(np.eye(2), np.eye(2))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"root": "schur"}, "root is 'schur'; expected one of 'eigh', 'denman-beavers'"),
        ({"root": "nystrom"}, "rank is None with root 'nystrom'; expected an integer >= 1"),
        ({"root": "nystrom", "rank": 0}, "rank is 0 with root 'nystrom'"),
        ({"rank": 2}, "rank is 2 with root 'eigh'"),
        ({"steps": 4}, "steps is 4 with root 'eigh'"),
        ({"root": "newton-schulz", "steps": 0}, "steps is 0 with root 'newton-schulz'"),
    ],
)
def test_mistakes_get_one_clear_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        inversion.damped_roots(np.eye(2), 0.1, IDENTITY, np.asarray(False), **options)
    with pytest.raises(ValueError, match="damping is -1; expected a number >= 0"):
        inversion.damped_roots(np.eye(2), -1, IDENTITY, np.asarray(False))
    with pytest.raises(ValueError, match="root is 'eigh'; expected one of 'denman-beavers'"):
        inversion.condition_bound("eigh", 3)
