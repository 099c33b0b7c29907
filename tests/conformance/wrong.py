"""For each check of the suite a subject that is wrong in just what the check looks at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ngd_core import EKFAC, FNGD, KFAC, SNGD, SOFIM, DenseNGD, TridiagonalKFAC, factors
from ngd_core.inversion import EAGER, Ops
from ngd_core.testing import PreconditionerUnderTest, find_backend
from ngd_core.testing.protocol import tree_map

NUMPY = find_backend("numpy")
XP = NUMPY.xp


class Namespace:
    """NumPy with some functions replaced; None takes one away."""

    def __init__(self, base=XP, **others):
        self.base, self.others = base, others

    def __getattr__(self, name):
        found = self.others[name] if name in self.others else getattr(self.base, name)
        if found is None:
            raise AttributeError(name)
        return found


def library(**others):
    """A backend whose namespace has these functions in place of its own."""
    return lambda _: replace(NUMPY, xp=Namespace(**others))


def linalg(**others):
    return library(linalg=Namespace(XP.linalg, **others))


def table(**entries):
    """A backend with these operations."""
    return lambda _: replace(NUMPY, ops=Ops(**{"cond": EAGER.cond, **entries}))


def patched(place, name, wrong):
    """NumPy, with a function of the core replaced by ``wrong(its result, *its arguments)``."""

    def sabotage(monkeypatch):
        right = getattr(place, name)

        def replacement(*args, **options):
            return wrong(right(*args, **options), *args, **options)

        monkeypatch.setattr(place, name, replacement)
        return NUMPY

    return sabotage


def directed(method, change):
    """NumPy, with ``change(direction, records)`` for the directions of a method."""

    def wrong(result, _self, _state, _grads, batch, *_, **__):
        found, info = result
        count = next((len(record.a) for record in batch.values()), 1)
        return {spec: change(u, count) for spec, u in found.items()}, info

    return patched(method, "direction", wrong)


def twice(method):
    return directed(method, lambda u, _: 2 * u)


def captured(change):
    """NumPy, with ``change(record, problem)`` for every captured record."""

    def capture(problem):
        found = NUMPY.capture(problem)
        return {name: change(record, problem) for name, record in found.items()}

    return lambda _: replace(NUMPY, capture=capture)


def compiler(wrong):
    """NumPy with a "compiler" that changes what it is given."""
    return lambda _: replace(NUMPY, compile=wrong, compilations=lambda _: 1)


def frozen(f):
    """Forget that arguments may change: the second call gives what the first one gave."""
    kept = []

    def first(*args):
        kept.append(f(*args))
        return kept[0]

    return first


def _only_the_first(m, **_):
    inverse = np.linalg.inv(m)
    if m.ndim > 2:
        inverse[1:] = inverse[:1]
    return inverse


def _eigh(change):
    def eigh(m):
        return change(*np.linalg.eigh(m))

    return eigh


def per_count(u, count):
    return u * count


def unit(u, _):
    with np.errstate(invalid="ignore"):
        return u / np.linalg.norm(u)


def calls_left():
    """Records whose gradients grow with every capture."""
    times = []

    def change(record, _):
        times.append(1)
        return record._replace(g=record.g * (1 + len(times)))

    return change


def alive(record, _):
    class Alive(np.ndarray):
        requires_grad = True

    return record._replace(a=record.a.view(Alive))


def one_vector_short(record, problem):
    return record._replace(a=record.a, g=record.g / len(problem.x))


def averaged(record, _):
    """Every example has the mean gradient: the sum is right, the examples are not."""
    return record._replace(a=record.a, g=0 * record.g + record.g.mean(axis=0))


def halves(record, problem):
    """Every second half of a longer batch is lost."""
    n = max(1, len(problem.x) // 2)
    return record._replace(a=record.a[:n], g=record.g[:n])


def written(result, _self, _state, records, *_, **__):
    """An accumulate that writes to the records it was given."""
    for record in records.values():
        record.a[...] += 1
    return result


BACKENDS = {
    "namespace_has_what_the_core_calls": library(searchsorted=None),
    "arrays_follow_their_template": library(zeros=lambda shape, **_: np.zeros(shape)),
    "sums_and_products_are_numpys": library(mean=np.sum),
    "cholesky_factorises_stacks": linalg(
        cholesky=lambda m: np.swapaxes(np.linalg.cholesky(m), -1, -2)
    ),
    "eigh_diagonalises_stacks": linalg(eigh=_eigh(lambda w, q: (w[..., ::-1], q[..., ::-1]))),
    "spd_inverse_inverts": table(spd_inverse=lambda m, **_: 1.01 * np.linalg.inv(m)),
    "spd_inverse_is_the_pure_twin": table(
        spd_inverse=lambda m, **_: np.linalg.inv(m + 0.01 * np.eye(m.shape[-1], dtype=m.dtype))
    ),
    "a_stack_is_inverted_as_its_matrices": table(spd_inverse=_only_the_first),
    "damped_inverse_survives_anything": table(
        within=lambda x, *_, axis=None, **__: np.ones_like(np.any(x, axis=axis))
    ),
    "cond_takes_the_branch": table(cond=lambda pred, true, false, **_: false() if pred else true()),
    "roots_square_to_the_matrix": linalg(eigh=_eigh(lambda w, q: (2 * w, q))),
    "factors_are_the_loops": patched(
        factors, "kronecker_factors", lambda found, *_, **__: (found[0], 2 * found[1])
    ),
    "factors_are_symmetric_and_semidefinite": patched(
        factors, "kronecker_factors", lambda found, *_, **__: (np.triu(found[0]), found[1])
    ),
    "factors_scale_with_the_loss": patched(
        factors, "kronecker_factors", lambda f, *_, **__: (f[0], f[1] / np.max(np.abs(f[1])))
    ),
    "factors_forget_duplicates_and_order": patched(
        factors, "kronecker_factors", lambda f, _, record, **__: (f[0], f[1] * len(record.a))
    ),
    "example_gradients_are_the_loops": patched(
        factors, "per_example_gradients", lambda u, _, record, **__: u / (1 + len(record.a))
    ),
    "gram_is_that_of_the_gradients": patched(factors, "gram", lambda K, *_, **__: K + 0.1),
    "averages_of_the_same_batch_are_its_own": patched(
        factors, "average", lambda f, mean, _, batch, *__, **___: (0.9 * mean + 0.1 * batch, f[1])
    ),
    "kfac_is_the_dense_damped_solve": twice(KFAC),
    "ekfac_is_the_dense_solve_in_its_basis": twice(EKFAC),
    "sngd_is_the_dense_local_solve": twice(SNGD),
    "fngd_is_the_dense_damped_solve": twice(FNGD),
    "sofim_is_the_dense_rank_one_solve": twice(SOFIM),
    "dense_is_the_natural_gradient": twice(DenseNGD),
    "projective_with_full_rank_is_kfac": twice(KFAC),
    "tridiagonal_is_the_dense_chain_solve": twice(TridiagonalKFAC),
    "steps_forget_duplicates_and_order": directed(KFAC, per_count),
    "steps_forget_micro_batches": directed(KFAC, per_count),
    "steps_scale_with_the_loss": directed(KFAC, unit),
    "states_keep_their_structure": patched(KFAC, "accumulate", written),
    "bad_batches_are_refused": library(isfinite=lambda x: np.ones(np.shape(x), dtype=bool)),
    "degenerate_batches_give_finite_directions": directed(KFAC, lambda u, _: u / (0 * u)),
    "records_give_the_gradient": captured(one_vector_short),
    "records_are_of_each_example": captured(averaged),
    "records_have_the_true_factors": captured(lambda r, _: r._replace(a=r.a, g=-2 * r.g)),
    "duplicates_are_recorded_twice": captured(halves),
    "capture_repeats": captured(calls_left()),
    "records_are_detached": captured(alive),
    "factors_compile": compiler(lambda f: lambda *args: tree_map(lambda x: 1.1 * x, f(*args))),
    "steps_compile": compiler(lambda f: lambda *args: tree_map(lambda x: 1.1 * x, f(*args))),
    "hypers_compile_nothing": compiler(frozen),
}
"""By the name of a check: a function of pytest's monkeypatch that makes a subject for it."""


def exact(problem):
    return problem.kfac("empirical", "exact")


def scaled(problem):
    """K-FAC whose G forgot to undo the mean over the batch: 1/N^2 of the curvature."""
    return problem.kfac("empirical", "exact", 1 / len(problem.x) ** 2)


def restless():
    times = []

    def direction(problem):
        times.append(1)
        return {name: len(times) * u for name, u in exact(problem).items()}

    return direction


def weighed(problem):
    """Examples late in a batch count more."""
    weights = np.arange(1.0, 1 + len(problem.x))
    return exact(replace(problem, y=problem.y * weights[:, None]))


def changed(by):
    return lambda problem: {name: by(u, problem) for name, u in exact(problem).items()}


PRECONDITIONERS = {
    "direction_is_the_dense_damped_solve": scaled,
    "one_example_has_its_exact_natural_gradient": changed(lambda u, _: 2 * u),
    "direction_forgets_duplicates": scaled,
    "direction_forgets_the_order": weighed,
    "direction_repeats_and_leaves_its_arguments": restless(),
    "direction_descends": changed(lambda u, _: -u),
    "large_damping_leaves_the_gradient": changed(lambda u, p: u * (1 + p.damping)),
}
"""By the name of a check: a direction that is wrong there."""


def preconditioner(direction, name="theirs"):
    return PreconditionerUnderTest(name, direction)
