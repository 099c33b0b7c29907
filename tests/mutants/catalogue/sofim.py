"""Mistakes in SOFIM: momentum, its norm, the rank-one solve, scopes."""

from mutants.mutant import Mutant

PER_EXAMPLE = "ngd_core/factors/per_example.py"
OPS = "ngd_core/inversion/ops.py"
RANK_ONE = "ngd_core/rank_one.py"
SOFIM = "ngd_core/methods/sofim.py"

TEST_FACTORS = "tests/core/test_factors.py::"
TEST_SOFIM = "tests/core/test_sofim.py::"

MUTANTS = (
    Mutant(
        "norm of the momentum not squared",
        RANK_ONE,
        "bottom = rho / scale + scale * square",
        "bottom = rho / scale + scale * xp.sqrt(square)",
        TEST_SOFIM + "test_the_step_is_collinear_with_the_momentum[numpy]",
    ),
    Mutant(
        "rho forgotten",
        RANK_ONE,
        "bottom = rho / scale + scale * square",
        "bottom = scale * square",
        TEST_SOFIM + "test_the_bound_of_a_step[numpy]",
    ),
    Mutant(
        "rho squared",
        RANK_ONE,
        "bottom = rho / scale + scale * square",
        "bottom = rho * rho / scale + scale * square",
        TEST_SOFIM + "test_limits_of_rho[numpy]",
    ),
    Mutant(
        "root of the denominator, as in Adam",
        RANK_ONE,
        "bottom = rho / scale + scale * square",
        "bottom = xp.sqrt(rho / scale + scale * square)",
        TEST_SOFIM + "test_the_bound_of_a_step[numpy]",
    ),
    Mutant(
        "the two-term form, which cancels and overflows",
        RANK_ONE,
        "        u = {key: ops.divide(v, bottom, xp=xp) for key, v in unit.items()}",
        (
            "        z = scale * scale * square\n"
            "        z = scale * (1 / rho - z / (rho * rho + rho * z))\n"
            "        u = {key: v * z for key, v in unit.items()}"
        ),
        TEST_SOFIM + "test_without_float64_nothing_overflows[30]",
    ),
    Mutant(
        "norm accumulated in float32",
        OPS,
        "_xp.astype(x, _xp.widest(x.dtype, xp=xp), xp=xp), (-1,)",
        "_xp.astype(x, _xp.working(x.dtype, xp=xp), xp=xp), (-1,)",
        TEST_SOFIM + "test_float32_keeps_its_digits_where_the_two_terms_cancel",
    ),
    Mutant(
        "squares of large entries overflow",
        RANK_ONE,
        "scale = xp.where(largest > limit, largest, one)",
        "scale = one",
        TEST_SOFIM + "test_the_norm_does_not_overflow[numpy]",
    ),
    Mutant(
        "norm of the last array in place of all",
        RANK_ONE,
        "return one, _total([ops.square(x, xp=xp) for x in arrays.values()])",
        "return one, ops.square([*arrays.values()][-1], xp=xp)",
        TEST_SOFIM + "test_the_general_solve[numpy]",
    ),
    Mutant(
        "no bias correction of the momentum",
        SOFIM,
        "self.ops.mix(old.moment, grad, share, xp=xp)",
        "decay * old.moment + (1 - decay) * grad",
        TEST_SOFIM + "test_the_first_step_and_no_momentum[numpy]",
    ),
    Mutant(
        "heavy-ball momentum without the factor 1 - beta",
        SOFIM,
        "self.ops.mix(old.moment, grad, share, xp=xp)",
        "decay * old.moment + grad",
        TEST_SOFIM + "test_the_stability_bound[numpy]",
    ),
    Mutant(
        "momentum forgotten",
        SOFIM,
        "new_share(old.weight, 1, decay, xp=xp)",
        "new_share(0 * old.weight, 1, decay, xp=xp)",
        TEST_SOFIM + "test_the_stability_bound_in_the_long_run",
    ),
    Mutant(
        "sign of the old momentum",
        SOFIM,
        "self.ops.mix(old.moment, grad, share, xp=xp)",
        "self.ops.mix(-old.moment, grad, share, xp=xp)",
        TEST_SOFIM + "test_directions_are_the_dense_solve[numpy]",
    ),
    Mutant(
        "beta ignored for the decay of the other methods",
        SOFIM,
        "decay = hyper.decay if self.beta is None else self.beta",
        "decay = hyper.decay",
        TEST_SOFIM + "test_the_first_step_and_no_momentum[numpy]",
    ),
    Mutant(
        "rho ignored for the damping of the other methods",
        SOFIM,
        "return hyper.damping if self.rho is None else self.rho",
        "return hyper.damping",
        TEST_SOFIM + "test_directions_are_the_dense_solve[numpy]",
    ),
    Mutant(
        "scopes mixed up",
        SOFIM,
        'scopes = [list(grads)] if self.scope == "global" else [[key] for key in grads]',
        'scopes = [list(grads)] if self.scope == "tensor" else [[key] for key in grads]',
        TEST_SOFIM + "test_directions_are_the_dense_solve[numpy]",
    ),
    Mutant(
        "gradient preconditioned in place of the momentum",
        SOFIM,
        'if self.precondition == "gradient":',
        'if self.precondition == "momentum":',
        TEST_SOFIM + "test_directions_are_the_dense_solve[numpy]",
    ),
    Mutant(
        "gradient in place of the momentum in F",
        SOFIM,
        "moments = {key: state.tensors[key].moment for key in keys}",
        "moments = {key: grads[key] for key in keys}",
        TEST_SOFIM + "test_directions_are_the_dense_solve[numpy]",
    ),
    Mutant(
        "everything divided by rho + |M|^2",
        RANK_ONE,
        "rest[key] / rho + (along / scale)",
        "rest[key] * scale / bottom + (along / scale)",
        TEST_SOFIM + "test_the_general_solve[numpy]",
    ),
    Mutant(
        "everything divided by rho",
        RANK_ONE,
        "(along / scale) * (v / bottom)",
        "(along / scale) * (v * scale / rho)",
        TEST_SOFIM + "test_the_general_solve[numpy]",
    ),
    Mutant(
        "component along the momentum added, not taken out",
        RANK_ONE,
        "return along, {key: x[key] - along * v for key, v in unit.items()}",
        "return along, {key: x[key] + along * v for key, v in unit.items()}",
        TEST_SOFIM + "test_the_general_solve[numpy]",
    ),
    Mutant(
        "projection divided by the norm, not by its square",
        RANK_ONE,
        "along = dot / xp.where(square > 0, square, one)",
        "along = dot / xp.sqrt(xp.where(square > 0, square, one))",
        TEST_SOFIM + "test_the_general_solve[numpy]",
    ),
    Mutant(
        "inner product of the first array alone",
        RANK_ONE,
        "dot = _total([xp.sum(x[key] * v) for key, v in unit.items()])",
        "dot = [xp.sum(x[key] * v) for key, v in unit.items()][0]",
        TEST_SOFIM + "test_the_general_solve[numpy]",
    ),
    Mutant(
        "only one array of a bad step refused in the global scope",
        SOFIM,
        "finite = dict.fromkeys(finite, together)",
        "finite = dict(finite)",
        TEST_SOFIM + "test_a_non_finite_gradient_poisons_nothing[numpy]",
    ),
    Mutant(
        "a gradient that is not finite enters the momentum",
        SOFIM,
        "grad = self.ops.select(ok, grad, _xp.zeros((), like=grad, xp=xp), xp=xp)",
        "grad = grad + 0",
        TEST_SOFIM + "test_a_non_finite_gradient_poisons_nothing[numpy]",
    ),
    Mutant(
        "a refused gradient counts in the weight",
        SOFIM,
        "xp.where(ok, weight, old.weight)",
        "weight",
        TEST_SOFIM + "test_a_non_finite_gradient_poisons_nothing[numpy]",
    ),
    Mutant(
        "gradient summed over examples, not averaged",
        PER_EXAMPLE,
        "return _summed(spec, x, y, xp=xp) / x.shape[-3]",
        "return _summed(spec, x, y, xp=xp)",
        TEST_FACTORS + "test_per_example_gradients_equal_the_loops[numpy]",
    ),
    Mutant(
        "gradient averaged over positions as well",
        PER_EXAMPLE,
        "return _summed(spec, x, y, xp=xp) / x.shape[-3]",
        "return _summed(spec, x, y, xp=xp) / (x.shape[-3] * x.shape[-2])",
        TEST_FACTORS + "test_per_example_gradients_equal_the_loops[numpy]",
    ),
    Mutant(
        "bias column first in the mean gradient",
        PER_EXAMPLE,
        "x = xp.concat([x, _xp.ones((*stack, n * t, 1), like=x, xp=xp)], axis=-1)",
        "x = xp.concat([_xp.ones((*stack, n * t, 1), like=x, xp=xp), x], axis=-1)",
        TEST_FACTORS + "test_per_example_gradients_equal_the_loops[numpy]",
    ),
    Mutant(
        "no step before there is momentum",
        SOFIM,
        "u = self.ops.select(code == OK, u, grad, xp=xp)",
        "u = u + 0 * grad",
        TEST_SOFIM + "test_without_momentum_the_direction_is_the_gradient[numpy]",
    ),
    Mutant(
        "squared norm reported as the norm",
        SOFIM,
        'infos[key].measures["norm"] = _xp.astype(norm, u.dtype, xp=xp)',
        'infos[key].measures["norm"] = _xp.astype(norm * norm, u.dtype, xp=xp)',
        TEST_SOFIM + "test_directions_are_the_dense_solve[numpy]",
    ),
)
