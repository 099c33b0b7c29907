"""Mistakes in taking a step: products with the Fisher, the quadratic model, its damping, KFC-pre."""

from mutants.mutant import Mutant

AVERAGING = "ngd_core/step/averaging.py"
CLIP = "ngd_core/step/clip.py"
DECAY = "ngd_core/step/weight_decay.py"
DIRECTIONAL = "ngd_core/factors/directional.py"
KFC_PRE = "ngd_core/step/kfc_pre.py"
MARQUARDT = "ngd_core/step/levenberg_marquardt.py"
MOMENTUM = "ngd_core/step/momentum.py"
QUADRATIC = "ngd_core/step/quadratic.py"
SCHEDULE = "ngd_core/step/schedule.py"
DENSE = (
    "tests/core/test_directional.py::"
    "test_derivatives_and_products_are_the_dense_joint_fishers[numpy]"
)
TEST_KFC_PRE = "tests/core/test_kfc_pre.py::"
TEST_QUADRATIC = "tests/core/test_quadratic.py::"
TEST_STEP = "tests/core/test_step.py::"
DUE = TEST_STEP + "test_due_at_multiples_and_early_at_powers_of_four_below_the_interval"
PATH = TEST_KFC_PRE + "test_the_path_is_that_of_the_printed_algorithm[numpy]"

MUTANTS = (
    Mutant(
        "bias forgotten where there are groups",
        DIRECTIONAL,
        "        if spec.bias:\n",
        "        if spec.bias and not stack:\n",
        DENSE,
    ),
    Mutant(
        "inner products over vectors too",
        DIRECTIONAL,
        "stacked @ stacked.mT / n",
        "stacked @ stacked.mT / stacked.shape[1]",
        DENSE,
    ),
    Mutant(
        "inner products summed over the examples",
        DIRECTIONAL,
        "stacked @ stacked.mT / n",
        "stacked @ stacked.mT",
        DENSE,
    ),
    Mutant(
        "first group alone",
        DIRECTIONAL,
        "xp.sum(part, axis=0) if stack",
        "part[0, ...] if stack",
        DENSE,
    ),
    Mutant(
        "blocks between layers left out of the product",
        DIRECTIONAL,
        "weighted_gradient(spec, record, weights, dtype=dtype, xp=xp)",
        "weighted_gradient(spec, record, _along({spec: record}, {spec: direction[spec]}, dtype, "
        "xp=xp), dtype=dtype, xp=xp)",
        DENSE,
    ),
    Mutant(
        "product summed over the examples",
        DIRECTIONAL,
        "dtype=dtype, xp=xp) / weights.shape[-1]",
        "dtype=dtype, xp=xp)",
        DENSE,
    ),
    Mutant(
        "coefficient of the penalty left out of the model",
        QUADRATIC,
        "fisher + (shift + eta) * _gram",
        "fisher + shift * _gram",
        TEST_QUADRATIC + "test_the_step_is_the_models_minimum_by_least_squares[numpy]",
    ),
    Mutant(
        "solution left in the scaled directions",
        QUADRATIC,
        "return -scale * (q @ solved)",
        "return -(q @ solved)",
        TEST_QUADRATIC + "test_the_step_is_the_models_minimum_by_least_squares[numpy]",
    ),
    Mutant(
        "slope of the model for its change",
        QUADRATIC,
        "-xp.sum(along * solved) / 2",
        "-xp.sum(along * solved)",
        TEST_QUADRATIC + "test_the_step_is_the_models_minimum_by_least_squares[numpy]",
    ),
    Mutant(
        "singular directions kept",
        QUADRATIC,
        "kept = w > MARGIN * model.shape[0] * _xp.eps(model.dtype, xp=xp)",
        "kept = w > -1.0",
        TEST_QUADRATIC + "test_singular_systems_are_those_of_one_direction[numpy]",
    ),
    Mutant(
        "directions at a small angle taken for one",
        QUADRATIC,
        "kept = w > MARGIN * model.shape[0] * _xp.eps(model.dtype, xp=xp)",
        "kept = w > 1e-2",
        TEST_QUADRATIC + "test_the_step_depends_on_the_span_alone[numpy]",
    ),
    Mutant(
        "nothing times infinity",
        QUADRATIC,
        "xp.where(c == 0, _xp.zeros((), like=v, xp=xp), c * v)",
        "c * v",
        TEST_QUADRATIC + "test_what_is_not_finite_gives_no_step[numpy]",
    ),
    Mutant(
        "damping lowered at the upper bound of the ratio itself",
        MARQUARDT,
        "ratio > 0.75",
        "ratio >= 0.75",
        TEST_QUADRATIC + "test_damping_follows_the_rule[numpy]",
    ),
    Mutant(
        "ratio that is no number leaves the damping",
        MARQUARDT,
        "_where(ratio >= 0.25, 1.0, 1 / omega,",
        "_where(ratio < 0.25, 1 / omega, 1.0,",
        TEST_QUADRATIC + "test_damping_follows_the_rule[numpy]",
    ),
    Mutant(
        "factor of one step for all steps between two looks",
        MARQUARDT,
        "omega = decay**interval",
        "omega = decay",
        TEST_QUADRATIC + "test_damping_follows_the_rule[numpy]",
    ),
    Mutant(
        "damping without its lower bound",
        MARQUARDT,
        "    damping = _where(damping < minimum, minimum, damping, like=damping, xp=xp)\n",
        "",
        TEST_QUADRATIC + "test_damping_moves_by_the_papers_factor_and_stops_at_its_bounds",
    ),
    Mutant(
        "damping's part of the model added, not taken away",
        MARQUARDT,
        "return change - damping * square / 2",
        "return change + damping * square / 2",
        TEST_QUADRATIC + "test_the_promise_with_and_without_the_damping_term[numpy]",
    ),
    Mutant(
        "damping's part of the model without the half",
        MARQUARDT,
        "return change - damping * square / 2",
        "return change - damping * square",
        TEST_QUADRATIC + "test_the_promise_with_and_without_the_damping_term[numpy]",
    ),
    Mutant(
        "damping in the promise where it should not be, and the other way round",
        MARQUARDT,
        "    if include_damping:\n",
        "    if not include_damping:\n",
        TEST_QUADRATIC + "test_the_promise_with_and_without_the_damping_term[numpy]",
    ),
    Mutant(
        "fall of the loss over its promised change",
        MARQUARDT,
        "(after - before) /",
        "(before - after) /",
        TEST_QUADRATIC + "test_the_ratio_is_of_the_change_to_its_prediction[numpy]",
    ),
    Mutant(
        "gamma of the highest model kept",
        MARQUARDT,
        "(change < lowest)",
        "(change > lowest)",
        TEST_QUADRATIC + "test_the_gamma_of_the_lowest_model_is_kept[numpy]",
    ),
    Mutant(
        "step size not squared in the quadratic",
        KFC_PRE,
        "quadratic = alpha**2 *",
        "quadratic = alpha *",
        PATH,
    ),
    Mutant(
        "penalty left out of the quadratic",
        KFC_PRE,
        "(fisher + penalty * inner(directions, directions, dtype, xp=xp))",
        "fisher",
        PATH,
    ),
    Mutant(
        "clip after momentum",
        KFC_PRE,
        "    factor = -alpha * scale\n"
        "    v = {key: in_dtype_of(u, factor, xp) * u for key, u in directions.items()}\n"
        "    steps, velocity = heavy_ball(state.velocity, v, decay=momentum, xp=xp)\n",
        "    v = {key: -in_dtype_of(u, alpha, xp) * u for key, u in directions.items()}\n"
        "    _, velocity = heavy_ball(state.velocity, v, decay=momentum, xp=xp)\n"
        "    steps = {key: in_dtype_of(p, scale, xp) * p for key, p in velocity.items()}\n",
        PATH,
    ),
    Mutant(
        "average of the parameters before the step",
        KFC_PRE,
        "iterate_average(state.average, moved, averaging",
        "iterate_average(state.average, params, averaging",
        PATH,
    ),
    Mutant(
        "average keeps what it should give away",
        AVERAGING,
        "xi * average[key] + (1 - xi) *",
        "(1 - xi) * average[key] + xi *",
        PATH,
    ),
    Mutant(
        "average begun with the parameters' own memory",
        AVERAGING,
        "xp.astype(p, _xp.working(p.dtype, xp=xp)) for",
        "_xp.astype(p, _xp.working(p.dtype, xp=xp), xp=xp) for",
        TEST_KFC_PRE + "test_the_average_is_a_copy_in_float32_at_least_and_keeps_what_is_left_out",
    ),
    Mutant(
        "decay of a timescale to first order",
        AVERAGING,
        "math.exp(-1 / timescale)",
        "1 - 1 / timescale",
        TEST_KFC_PRE + "test_the_decay_of_a_timescale[numpy]",
    ),
    Mutant(
        "decoupled weight decay without the step size",
        DECAY,
        "p - in_dtype_of(p, lr, xp) * in_dtype_of(p, coefficient, xp) * p",
        "p - in_dtype_of(p, coefficient, xp) * p",
        TEST_KFC_PRE + "test_weight_decay_coupled_and_decoupled[numpy]",
    ),
    Mutant(
        "penalty taken from the gradient",
        DECAY,
        "g + in_dtype_of(g, coefficient, xp)",
        "g - in_dtype_of(g, coefficient, xp)",
        TEST_KFC_PRE + "test_weight_decay_coupled_and_decoupled[numpy]",
    ),
    Mutant(
        "step scaled by the ratio, not its root",
        CLIP,
        "return xp.sqrt(xp.where(over, bound / xp.where(over, quadratic, one), one))",
        "return xp.where(over, bound / xp.where(over, quadratic, one), one)",
        TEST_STEP + "test_constraint_bounds_the_quadratic[numpy]",
    ),
    Mutant(
        "step size not squared in the divergence",
        CLIP,
        "constraint_scale(lr * lr * total,",
        "constraint_scale(lr * total,",
        TEST_STEP + "test_kl_clip_is_the_constraint_on_the_sum_over_layers[numpy]",
    ),
    Mutant(
        "Adam's second average not corrected for its start",
        MOMENTUM,
        "square = second[key] / _xp.astype(fix_two, dtype, xp=xp)",
        "square = second[key]",
        TEST_STEP + "test_adam_equals_torch[numpy]",
    ),
    Mutant(
        "early steps go on above the interval",
        SCHEDULE,
        "(step < every) & one_bit",
        "one_bit",
        DUE + "[10]",
    ),
    Mutant(
        "all powers of two are early steps",
        SCHEDULE,
        "one_bit & (step & POWERS_OF_FOUR > 0)",
        "one_bit",
        DUE + "[100]",
    ),
)
