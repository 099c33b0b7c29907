"""The inverse by products alone: its convergence, its start, and what happens where it fails."""

import math

import numpy as np
import pytest
from core.eager import eager_law
from core.test_exactness import examples
from core.test_kfac import FC, batch, gradients, only_fc, run
from harness import BACKENDS, dtypes, law, rng, seeds, spd
from hypothesis import given
from hypothesis import strategies as st

from ngd_core import KFAC, Hyper, inversion
from ngd_core.inversion import EAGER, PURE, NewtonSchulz, newton_schulz_inverse, newton_schulz_ops
from ngd_core.testing import assert_close

NUMPY = BACKENDS[0]
FACTORISATIONS = {"cholesky", "eigh", "triangular_solve", "lu", "qr", "svd", "householder_product"}


def norm_over_least(m):
    """kappa of the module: Frobenius norm over the least eigenvalue."""
    return np.linalg.norm(m) / np.linalg.eigvalsh(m)[0]


@law(
    seed=seeds,
    n=st.sampled_from([6, 1, 3]),
    log_condition=st.sampled_from([2, 0, 4]),
    dtype=dtypes,
)
def test_it_is_the_inverse_through_cholesky(backend, seed, n, log_condition, dtype):
    """For stacks, in every library; symmetric."""
    if backend.library == "jax" or backend.variant == "compile":  # one program
        n, dtype = 6, "float32"
    steps = 22
    r = rng(seed)
    m = np.stack([spd(r, n, 10.0**log_condition), 3.0 * spd(r, n, 10.0)])
    array = backend.array(m, dtype)
    got = backend.numpy(backend.call(newton_schulz_inverse, array, steps=steps))
    want = backend.numpy(PURE.spd_inverse(array, xp=backend.xp))
    assert str(got.dtype) == dtype
    assert np.array_equal(got, np.swapaxes(got, -1, -2))
    for x, y, kappa in zip(got, want, (10.0**log_condition, 10.0), strict=True):
        assert_close(x, y, dtype=dtype, size=n, kappa=kappa)


@examples()
@given(seed=seeds, n=st.integers(2, 8), log_condition=st.integers(0, 8))
def test_steps_by_the_rule_suffice_and_half_of_them_do_not(seed, n, log_condition):
    """log2(kappa) + 4 steps; what has not converged is NaN."""
    m = spd(rng(seed), n, 10.0**log_condition)
    rule = math.ceil(math.log2(norm_over_least(m))) + 4
    got = newton_schulz_inverse(m, steps=rule)
    assert_close(got, np.linalg.inv(m), size=n, kappa=10.0**log_condition)
    if log_condition > 3:
        assert np.isnan(newton_schulz_inverse(m, steps=rule // 2)).all()


@examples()
@given(seed=seeds, steps=st.sampled_from([3, 4]))
def test_each_step_squares_the_residual(seed, steps):
    """After k steps and the last one I - m X = (I - m / |m|_F)^(2^(k + 1)), before convergence."""
    m = spd(rng(seed), 4, 1.5) + 0.5 * np.eye(4)
    rest = np.linalg.matrix_power(np.eye(4) - m / np.linalg.norm(m), 2 ** (steps + 1))
    got = newton_schulz_inverse(m, steps=steps)
    assert_close(np.eye(4) - m @ got, rest, scale=1.0, size=4)
    if steps == 3:
        assert np.linalg.norm(rest) > 1e-6


@examples()
@given(seed=seeds, dtype=dtypes, change=st.sampled_from([1e-2, 1e-3]))
def test_a_good_start_needs_few_steps(seed, dtype, change):
    """As many as square the start's residual to rounding: 4 or 5 where from afresh 13 are short."""
    r = rng(seed)
    m = spd(r, 6, 1e3).astype(dtype)
    direction = spd(r, 6, 1e3)
    now = (m + change * 1e-3 * np.linalg.norm(m) * direction).astype(dtype)
    start = newton_schulz_inverse(m)
    residual = np.linalg.norm(np.eye(6) - now @ start)
    assert residual < 0.5
    few = max(1, math.ceil(math.log2(math.log(1e-16) / math.log(residual))) - 1)
    assert few <= 5
    got = newton_schulz_inverse(now, start=start, steps=few)
    assert_close(got, np.linalg.inv(now.astype(np.float64)), dtype=dtype, size=6, kappa=1e3)
    assert np.isnan(newton_schulz_inverse(now, steps=few)).all()


@eager_law(seed=seeds, dtype=dtypes)
def test_a_start_that_is_no_good_changes_nothing(backend, seed, dtype):
    """Bit for bit, matrix by matrix: the other of the stack has its own good start."""
    for factor in (0.0, 1.4, -1.0, np.nan, np.inf, 1e30):
        check_start(backend, seed, factor, dtype)


def check_start(backend, seed, factor, dtype):
    m = np.stack([spd(rng(seed), 4, 10.0), spd(rng(seed + 1), 4, 10.0)])
    starts = np.linalg.inv(m)
    starts[0] = factor * np.ones((4, 4)) if not np.isfinite(factor) else factor * starts[0]
    array = backend.array(m, dtype)
    start = backend.array(starts, dtype)
    got = backend.numpy(newton_schulz_inverse(array, steps=9, start=start, xp=backend.xp))
    cold = backend.numpy(newton_schulz_inverse(array, steps=9, xp=backend.xp))
    assert np.array_equal(got[0], cold[0])
    assert_close(got[1], np.linalg.inv(m[1]), dtype=dtype, size=4, kappa=10.0)


@eager_law(seed=seeds, dtype=dtypes)
def test_what_has_no_inverse_comes_back_as_nan_and_quietly(backend, seed, dtype):
    """Not finite, indefinite, singular or zero, next to one that has an inverse."""
    good = spd(rng(seed), 3, 10.0)
    bad = [np.full((3, 3), np.nan), np.diag([1.0, np.inf, 1.0]), np.diag([1.0, -1.0, 0.5])]
    bad += [np.diag([1.0, 1.0, -1e-9]), np.ones((3, 3))]
    m = backend.array(np.stack([good, *bad]), dtype)
    for steps in (12, 60):
        got = backend.numpy(newton_schulz_inverse(m, steps=steps, xp=backend.xp))
        assert_close(got[0], np.linalg.inv(good), dtype=dtype, size=3, kappa=10.0)
        assert np.isnan(got[1:]).all()


# in the chain of the damped inverse -----------------------------------------------------------


def damped(m, damping, ops, *, previous=None, good=False, dtype=None, backend=NUMPY, kind="f4"):
    """Inverse, good and code of a stack of matrices of float32."""
    identity = np.broadcast_to(np.eye(m.shape[-1]), m.shape)
    arrays = [backend.array(x, kind) for x in (m, np.asarray(damping))]
    arrays.append(backend.array(identity if previous is None else previous, kind))
    arrays.append(backend.array(np.full(m.shape[:-2], good)))
    out = inversion.damped_inverse(*arrays, dtype=dtype, ops=ops, xp=backend.xp)
    return backend.numpy(out)


@eager_law(seed=seeds)
def test_it_goes_down_the_same_chain(backend, seed):
    """Codes 0, 1 (raised), 3 (kept) and 4 (identity), as with Cholesky."""
    r = rng(seed)
    m = np.stack([spd(r, 5, 10.0), np.ones((5, 5)), np.full((5, 5), np.nan)])
    ops, damping = newton_schulz_ops(30), np.asarray([0.1, 0.0, 0.1])
    for good, last in ((False, 4), (True, 3)):
        inverse, _, code = damped(m, damping, ops, good=good, backend=backend)
        other, _, codes = damped(m, damping, PURE, good=good, backend=backend)
        assert code.tolist() == codes.tolist() == [0, 1, last]
        assert_close(inverse[0], other[0], dtype="float32", size=5, kappa=10.0)
        assert_close(inverse[1], other[1], dtype="float32", size=5, kappa=1e4)
        assert np.array_equal(inverse[2], np.eye(5))


@eager_law(seed=seeds, n=st.sampled_from([5, 40]))
def test_float32_is_accurate_or_gives_way_to_float64(backend, seed, n):
    """At the largest condition that the floor lets through (code 1 or 2), and at 1e4 (code 0)."""
    m = spd(rng(seed), n, 1e7)
    ops = newton_schulz_ops(26)
    for damping, codes in ((0.0, (1, 2)), (1e-4, (0,))):
        inverse, _, code = damped(m, damping, ops, dtype="float32", backend=backend)
        want, _, _ = damped(m, damping, PURE, dtype="float64", backend=backend)
        assert int(code) in codes
        kappa = 1 / (10 * 1.2e-7 * np.trace(m)) if damping == 0 else 1e4
        assert_close(inverse, want, dtype="float32", size=n, kappa=kappa)


@examples()
@given(seed=seeds)
def test_too_few_steps_keep_the_last_good_inverse(seed):
    """Codes 3 and 4, not a half-converged matrix."""
    m = spd(rng(seed), 5, 1e4)[None]
    ops = newton_schulz_ops(6)
    last = 2.0 * np.eye(5)[None]
    for good, code_wanted in ((True, 3), (False, 4)):
        inverse, _, code = damped(m, 1e-5, ops, previous=last, good=good)
        assert int(code[0]) == code_wanted
        assert np.array_equal(inverse, last)


def seen_ops(**options):
    """Operations that note whether a start was good enough, and look no further."""
    seen = []

    def cond(pred, true, false, *, xp):
        seen.append(bool(pred))
        return true() if bool(pred) else false()

    return newton_schulz_ops(**options, ops=inversion.Ops(cond=cond)), seen


@examples()
@given(seed=seeds, scale=st.sampled_from([1.0, 1e-12, 1e12]))
def test_the_last_inverse_is_the_start_of_the_next(seed, scale):
    """At every scale of the factor; six steps; a large change starts afresh."""
    r = rng(seed)
    m = scale * spd(r, 5, 100.0)[None]
    ops, seen = seen_ops()
    first, _, _ = damped(m, 1e-2 * scale, ops, kind="f8")
    near = 1.001 * m
    for now, previous in ((near, first), (3.0 * m, first)):
        got, _, code = damped(now, 1e-2 * scale, ops, previous=previous, good=True, kind="f8")
        want = np.linalg.inv(now + 1e-2 * scale * np.eye(5))
        assert_close(got, want, size=5, kappa=100.0)
        assert int(code[0]) == 0
    assert seen == [False, True, False]


# in K-FAC -------------------------------------------------------------------------------------


@eager_law(seed=seeds, dtype=dtypes)
def test_kfac_by_products_is_kfac(backend, seed, dtype):
    """Over two refreshes, the second from the first one's inverse."""
    r, hyper = rng(seed), Hyper(0.1, 0.9)
    records = [backend.tree(only_fc(batch(r, 5)), dtype) for _ in range(2)]
    grads = backend.tree(only_fc(gradients(r)), dtype)
    outs = []
    for ops in (newton_schulz_ops(14), PURE):
        method = KFAC(ops=ops)
        state = method.init([FC], backend.array(np.zeros(()), dtype))

        def twice(state, records, grads, hyper, *, xp, method=method):
            for record in records:
                state, u, refreshed, _ = run(method, state, [record], grads, hyper, xp=xp)
            return u, refreshed

        outs.append(backend.numpy(backend.call(twice, state, records, grads, hyper)))
    (got, codes), (want, _) = outs
    assert int(codes[FC].code) == 0
    assert_close(got[FC], want[FC], dtype=dtype, size=4, kappa=100.0)


def primitives(jaxpr):
    """Names of all primitives of a jaxpr and of those inside it."""
    import jax

    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(part, "jaxpr", part)
                if isinstance(inner, jax.extend.core.Jaxpr):
                    yield from primitives(inner)


def test_nothing_is_factorised():
    """The traced refresh of K-FAC holds products and no factorisation; the default one does."""
    import jax
    import jax.extend
    import jax.numpy as jnp
    import ngd_jax

    for ops, wanted in (
        (newton_schulz_ops(5, 2), False),
        (newton_schulz_ops(5, 2, ops=ngd_jax.NATIVE), False),
        (PURE, True),
        (ngd_jax.NATIVE, True),
    ):
        method = KFAC(ops=ops, solve_dtype="float32")
        state = method.init([FC], jnp.zeros((), jnp.float32))
        traced = jax.make_jaxpr(lambda s, method=method: method.refresh(s, Hyper(), xp=jnp)[0])
        names = set(primitives(traced(state).jaxpr))
        assert "dot_general" in names
        assert bool(names & FACTORISATIONS) == wanted


def test_tables_compare_and_keep_their_other_operations():
    """Equal options are equal methods: a compiled step is found again."""
    assert newton_schulz_ops(20) == newton_schulz_ops(20)
    assert hash(newton_schulz_ops(20)) == hash(newton_schulz_ops(20))
    assert newton_schulz_ops(20) != newton_schulz_ops(21)
    assert newton_schulz_ops(ops=EAGER).cond is EAGER.cond
    assert newton_schulz_ops(ops=EAGER).spd_inverse.cond is EAGER.cond


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (
            lambda: newton_schulz_inverse(np.eye(2), steps=0),
            ValueError,
            "steps is 0; expected an integer >= 1",
        ),
        (lambda: newton_schulz_ops(2.5), ValueError, "steps is 2.5; expected an integer"),
        (lambda: NewtonSchulz(warm_steps=-1), ValueError, "warm_steps is -1; expected"),
        (
            lambda: newton_schulz_inverse(np.eye(2), start=np.eye(3)),
            ValueError,
            r"start has shape \(3, 3\); expected \(2, 2\)",
        ),
        (lambda: newton_schulz_inverse(np.ones((2, 3))), ValueError, "square matrices"),
        (lambda: newton_schulz_inverse(np.eye(2, dtype=int)), TypeError, "m has dtype int64"),
        (lambda: newton_schulz_inverse([[1.0]]), TypeError, "m is a builtins list"),
    ],
)
def test_mistakes_get_one_clear_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
