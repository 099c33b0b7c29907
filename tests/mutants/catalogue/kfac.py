"""Mistakes in K-FAC and KFC: factors, sharing, averages, the split of the damping, inverses."""

from mutants.mutant import Mutant

AVERAGE = "ngd_core/factors/average.py"
COMMON = "ngd_core/methods/_common.py"
DAMPED_KRONECKER = "ngd_core/inversion/damped_kronecker.py"
DAMPING = "ngd_core/inversion/damping.py"
FACTORS_KRONECKER = "ngd_core/factors/kronecker.py"
GRADIENT_FACTORS = "ngd_core/methods/_gradient_factors.py"
INVERSION_KRONECKER = "ngd_core/inversion/kronecker.py"
KFAC = "ngd_core/methods/kfac.py"
MOMENT = "ngd_core/factors/moment.py"
PATCHES = "ngd_core/factors/patches.py"
SHARING = "ngd_core/factors/sharing.py"
SPD = "ngd_core/inversion/spd.py"
TRIANGULAR = "ngd_core/inversion/triangular.py"
XP = "ngd_core/_xp.py"

TEST_FACTORS = "tests/core/test_factors.py::"
TEST_GRADIENT_FACTORS = "tests/core/test_gradient_factors.py::"
TEST_INVERSION = "tests/core/test_inversion.py::"
TEST_KFAC = "tests/core/test_kfac.py::"
TEST_PATCHES = "tests/core/test_patches.py::"

MUTANTS = (
    Mutant(
        "entries of an inverse far below rounding kept, subnormal ones among them",
        SPD,
        "    return _cleared(inverse, largest, m.dtype, ops=ops, xp=xp), ok, part.raised",
        "    return _xp.astype(inverse, m.dtype, xp=xp), ok, part.raised",
        TEST_INVERSION + "test_entries_far_below_rounding_are_zero[numpy]",
    ),
    Mutant(
        "a damping that one matrix of a stack allows taken to be enough for all",
        SPD,
        "return xp.all(least <= _xp.scalar(damping, like=m, xp=xp))",
        "return xp.any(least <= _xp.scalar(damping, like=m, xp=xp))",
        TEST_INVERSION
        + "test_a_damping_that_allows_it_chooses_the_factors_own_dtype[0.99-False-float32-eager]",
    ),
    Mutant(
        "bound on the condition number from the mean eigenvalue instead of the trace",
        SPD,
        "least = xp.sum(share * xp.linalg.diagonal(m), axis=-1)",
        "least = xp.mean(share * xp.linalg.diagonal(m), axis=-1)",
        TEST_INVERSION
        + "test_a_damping_that_allows_it_chooses_the_factors_own_dtype[0.99-False-float32-eager]",
    ),
    Mutant(
        "a failure in float64 tried once more",
        "ngd_core/inversion/spd.py",
        "settled = xp.all(ok) | ~enough",
        "settled = xp.all(ok)",
        "tests/core/test_inversion.py::test_what_failed_in_float64_is_not_tried_again",
    ),
    Mutant(
        "a failure in the dtype chosen by the damping not repeated in float64",
        SPD,
        "if double is not None and (chosen or double != work):",
        "if double is not None and double != work:",
        TEST_INVERSION + "test_a_failure_in_the_factors_own_dtype_is_repeated_in_float64",
    ),
    Mutant(
        "G averaged over positions, so that T is in neither factor",
        FACTORS_KRONECKER,
        "return second_moment(xp.reshape(y, (*stack, m * n * t, outputs)), n, xp=xp)",
        "return second_moment(xp.reshape(y, (*stack, m * n * t, outputs)), n * t, xp=xp)",
        TEST_FACTORS + "test_kronecker_factors_equal_the_loops[numpy]",
    ),
    Mutant(
        "A summed over positions, so that T is in both factors",
        FACTORS_KRONECKER,
        "(*stack, n * t, inputs)), n * t, bias=bias",
        "(*stack, n * t, inputs)), n, bias=bias",
        TEST_FACTORS + "test_kronecker_factors_equal_the_loops[numpy]",
    ),
    Mutant(
        "G averaged over back-propagated vectors",
        FACTORS_KRONECKER,
        "outputs)), n, xp=xp)",
        "outputs)), m * n, xp=xp)",
        TEST_KFAC + "test_vectors_are_summed_and_micro_batches_count_by_their_examples[kfac pi]",
    ),
    Mutant(
        "reduce with inputs summed like gradients, T squared",
        FACTORS_KRONECKER,
        "        x = xp.mean(x, axis=-2, keepdims=True)",
        "        x = xp.sum(x, axis=-2, keepdims=True)",
        TEST_FACTORS + "test_kronecker_factors_equal_the_loops[numpy]",
    ),
    Mutant(
        "reduce with gradients averaged like inputs",
        FACTORS_KRONECKER,
        "        y = xp.sum(y, axis=-2, keepdims=True)",
        "        y = xp.mean(y, axis=-2, keepdims=True)",
        TEST_FACTORS + "test_kronecker_factors_equal_the_loops[numpy]",
    ),
    Mutant(
        "expand and reduce mixed up in A",
        FACTORS_KRONECKER,
        ('    x = canonical.x\n    if sharing == "reduce":'),
        ('    x = canonical.x\n    if sharing == "expand":'),
        TEST_FACTORS + "test_kronecker_factors_equal_the_loops[numpy]",
    ),
    Mutant(
        "bias column first in A",
        MOMENT,
        "total = xp.concat([total, x_sum.mT], axis=-1)",
        "total = xp.concat([x_sum.mT, total], axis=-1)",
        TEST_FACTORS + "test_kronecker_factors_equal_the_loops[numpy]",
    ),
    Mutant(
        "bias column first in the block",
        SHARING,
        "return xp.concat([block, xp.reshape(bias, (*spec.stack, spec.rows, 1))], axis=-1)",
        "return xp.concat([xp.reshape(bias, (*spec.stack, spec.rows, 1)), block], axis=-1)",
        TEST_FACTORS + "test_join_and_split_are_inverse_and_fit_the_patches[numpy]",
    ),
    Mutant(
        "rows that fill no block forgotten",
        MOMENT,
        "return [*parts, x[..., None, count * size :, :]] if left else parts",
        "return parts",
        TEST_FACTORS + "test_moment_of_many_rows_is_semidefinite_to_rounding[numpy]",
    ),
    Mutant(
        "the odd block of a sum in pairs forgotten",
        MOMENT,
        "if count % 2:",
        "if count % 2 and count < 3:",
        TEST_FACTORS + "test_moment_of_many_rows_is_semidefinite_to_rounding[numpy]",
    ),
    Mutant(
        "many rows multiplied in one block, losing digits in float32",
        MOMENT,
        "ROWS_A_COLUMN, LEAST = 2, 64",
        "ROWS_A_COLUMN, LEAST = 2, 2**20",
        TEST_FACTORS + "test_moment_of_many_rows_is_semidefinite_to_rounding[numpy]",
    ),
    Mutant(
        "bias counted as one row",
        MOMENT,
        "_xp.full((*y_sum.shape[:-1], 1), x.shape[-2], like",
        "_xp.full((*y_sum.shape[:-1], 1), 1, like",
        TEST_FACTORS + "test_kronecker_factors_equal_the_loops[numpy]",
    ),
    Mutant(
        "columns of patches in the order (tap, channel)",
        PATCHES,
        "return xp.matrix_transpose(xp.reshape(read, (n, columns, positions)))",
        (
            "read = xp.permute_dims(read, (0, 2, 1, 3, 4))\n"
            "        return xp.matrix_transpose(xp.reshape(read, (n, columns, positions)))"
        ),
        TEST_PATCHES + "test_patches_times_the_flat_kernel_is_the_convolution[numpy]",
    ),
    Mutant(
        "dilation ignored along the rows",
        PATCHES,
        "rows = slice(i * dh, i * dh + (out_height - 1) * sh + 1, sh)",
        "rows = slice(i, i + (out_height - 1) * sh + 1, sh)",
        TEST_PATCHES + "test_patches_times_the_flat_kernel_is_the_convolution[numpy]",
    ),
    Mutant(
        "channels of a grouped convolution interleaved",
        SHARING,
        "y = xp.reshape(g, (m, n, spec.groups, spec.rows, -1))",
        "y = xp.reshape(g, (m, n, spec.rows, spec.groups, -1))\n        y = xp.permute_dims(y, (0, 1, 3, 2, 4))",
        TEST_FACTORS + "test_kronecker_factors_equal_the_loops[numpy]",
    ),
    Mutant(
        "height and width swapped in the output gradients",
        SHARING,
        "y = xp.permute_dims(y, (2, 0, 1, 4, 3))",
        "y = xp.permute_dims(xp.reshape(g.mT, y.shape), (2, 0, 1, 4, 3))",
        TEST_FACTORS + "test_per_example_gradients_equal_the_loops[numpy]",
    ),
    Mutant(
        "no bias correction of the moving average",
        AVERAGE,
        "share = _xp.astype(share, mean.dtype, xp=xp)",
        "share = _xp.astype(1 - _xp.scalar(decay, like=weight, xp=xp), mean.dtype, xp=xp)",
        TEST_FACTORS + "test_average_is_the_bias_corrected_ema_over_examples[numpy]",
    ),
    Mutant(
        "averages count batches, not examples",
        AVERAGE,
        "weight * _xp.scalar(decay, like=weight, xp=xp) + count\n    return count / total",
        "weight * _xp.scalar(decay, like=weight, xp=xp) + 1\n    return 1 / total",
        TEST_KFAC + "test_vectors_are_summed_and_micro_batches_count_by_their_examples[kfac exact]",
    ),
    Mutant(
        "decay and its complement mixed up",
        XP,
        "return (1 - share) * old + share * new",
        "return share * old + (1 - share) * new",
        TEST_FACTORS + "test_average_is_the_bias_corrected_ema_over_examples[numpy]",
    ),
    Mutant(
        "incremental form of the average, which cancels where much is forgotten",
        XP,
        "return (1 - share) * old + share * new",
        "return old + share * (new - old)",
        TEST_FACTORS + "test_average_that_forgets_is_the_batch[numpy]",
    ),
    Mutant(
        "G averaged with the weight that A has left behind",
        "ngd_core/methods/_common.py",
        "getattr(layer, name), layer.weight, mean, count, decay, mix",
        'getattr(layer, name), new.get("weight", layer.weight), mean, count, decay, mix',
        TEST_KFAC + "test_vectors_are_summed_and_micro_batches_count_by_their_examples[kfac pi]",
    ),
    Mutant(
        "pi upside down",
        DAMPING,
        "return root * (a / g), root * (g / a)",
        "return root * (g / a), root * (a / g)",
        TEST_INVERSION + "test_factored_damping_exceeds_the_exact_by_a_psd_residual[numpy]",
    ),
    Mutant(
        "pi squared",
        DAMPING,
        "a, g = xp.sqrt(xp.where(both, a, one)), xp.sqrt(xp.where(both, g, one))",
        "a, g = xp.where(both, a, one), xp.where(both, g, one)",
        TEST_INVERSION + "test_scale_split_changes_nothing[numpy]",
    ),
    Mutant(
        "pi left out",
        DAMPING,
        "return root * (a / g), root * (g / a)",
        "return root + 0 * a, root + 0 * g",
        TEST_INVERSION + "test_scale_split_changes_nothing[numpy]",
    ),
    Mutant(
        "pi from traces that are not divided by the factors' orders",
        DAMPING,
        "    g = mean_diagonal(G, xp=xp)\n    both",
        "    a, g = A.shape[-1] * a, G.shape[-1] * mean_diagonal(G, xp=xp)\n    both",
        TEST_INVERSION + "test_factored_damping_exceeds_the_exact_by_a_psd_residual[numpy]",
    ),
    Mutant(
        "lambda in place of its root on each factor",
        DAMPING,
        "root = xp.sqrt(_xp.scalar(damping, like=A, xp=xp))",
        "root = _xp.scalar(damping, like=A, xp=xp)",
        TEST_KFAC + "test_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "the two factors' dampings swapped",
        DAMPED_KRONECKER,
        "for_a, for_g = factored_damping(A, G, damping, xp=xp)",
        "for_g, for_a = factored_damping(A, G, damping, xp=xp)",
        TEST_KFAC + "test_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "exact split without its damping",
        DAMPED_KRONECKER,
        "used = xp.where(raised, floor, asked)",
        "used = floor",
        TEST_KFAC + "test_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "eigenvalues of the two factors added, not multiplied",
        INVERSION_KRONECKER,
        "spectrum = g[..., :, None] * a[..., None, :]",
        "spectrum = g[..., :, None] + a[..., None, :]",
        TEST_INVERSION + "test_kronecker_algebra_equals_the_dense[numpy]",
    ),
    Mutant(
        "wrong transpose of the eigenvectors",
        INVERSION_KRONECKER,
        "return (Q_G @ (((Q_G.mT @ V) @ Q_A) / spectrum)) @ Q_A.mT",
        "return (Q_G.mT @ (((Q_G @ V) @ Q_A) / spectrum)) @ Q_A.mT",
        TEST_INVERSION + "test_kronecker_algebra_equals_the_dense[numpy]",
    ),
    Mutant(
        "missing symmetrisation before the factorisation",
        SPD,
        "    m = 0.5 * (m + m.mT)\n",
        "    m = 0.5 * (m + m)\n",
        TEST_INVERSION + "test_only_the_symmetric_part_is_inverted[numpy]",
    ),
    Mutant(
        "inverse from the Cholesky root with the wrong transpose",
        TRIANGULAR,
        "return xp.where(ok[..., None, None], root.mT @ root, nan)",
        "return xp.where(ok[..., None, None], root @ root.mT, nan)",
        TEST_INVERSION + "test_inverse_solves[numpy]",
    ),
    Mutant(
        "inverse not scaled back",
        SPD,
        "    inverse = inverse / part.scale[..., None, None]\n",
        "",
        TEST_INVERSION + "test_inverse_solves[numpy]",
    ),
    Mutant(
        "stale inverse, the new one not stored",
        KFAC,
        "layers[spec] = layer._replace(inverse=inverse)",
        "layers[spec] = layer",
        TEST_KFAC + "test_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "new inverse of one factor beside the old one of the other",
        DAMPED_KRONECKER,
        "        ops.select(_like_factor(ok, diagonal), a, old.a, xp=xp),\n        ops.select(_like_factor(ok, False), g, old.g, xp=xp),\n",
        "        a,\n        g,\n",
        TEST_INVERSION + "test_one_unusable_factor_keeps_both_of_the_last_refresh[numpy]",
    ),
    Mutant(
        "a zero factor leaves the other one in the damped product",
        DAMPED_KRONECKER,
        "present = _xp.astype(both, A.dtype, xp=xp)",
        "present = _xp.ones(both.shape, like=A, xp=xp)",
        TEST_INVERSION + "test_a_zero_factor_leaves_the_damping[numpy]",
    ),
    Mutant(
        "a batch that is not finite enters the average",
        "ngd_core/methods/_common.py",
        "ops.select(ok, x, getattr(layer, name), xp=xp)",
        'x if name == "a" else ops.select(ok, x, getattr(layer, name), xp=xp)',
        TEST_KFAC + "test_a_non_finite_batch_is_refused_and_counted[numpy]",
    ),
    Mutant(
        "code of the best group in place of the worst",
        KFAC,
        "infos[spec] = Info(xp.max(code), measures)",
        "infos[spec] = Info(xp.min(code), measures)",
        TEST_KFAC + "test_the_code_of_a_layer_is_that_of_its_worst_group[pi]",
    ),
    Mutant(
        "norm of the direction reported as its product with the gradient",
        COMMON,
        "inner = flat @ beside",
        "inner = flat @ flat",
        TEST_KFAC + "test_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "a part of the vectors weighs as much as all of them",
        KFAC,
        "count = record.a.shape[0] * hyper.share",
        "count = record.a.shape[0]",
        "tests/core/test_invariance.py::test_parts_of_the_vectors_weigh_parts_of_the_examples[KFAC]",
    ),
    Mutant(
        "bias' gradient taken to be the sum of the rows given",
        GRADIENT_FACTORS,
        "left = xp.concat([left, grad[:, -1:].mT], axis=0)",
        "left = xp.concat([left, xp.sum(left, axis=0, keepdims=True)], axis=0)",
        TEST_GRADIENT_FACTORS + "test_the_direction_from_rows_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "rows summed, not averaged over the examples",
        GRADIENT_FACTORS,
        "return x if n == 1 else x / n",
        "return x",
        TEST_GRADIENT_FACTORS + "test_the_direction_from_rows_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "rows taken for the gradient's unseen",
        GRADIENT_FACTORS,
        "return xp.all((xp.abs(gap) <= bound) & xp.isfinite(bound))",
        "return xp.all(xp.isfinite(bound + gap))",
        TEST_GRADIENT_FACTORS
        + "test_a_gradient_that_is_no_product_goes_the_usual_way[a penalty in the loss-eager]",
    ),
    Mutant(
        "norms by squares that are lost or overflow",
        GRADIENT_FACTORS,
        "return xp.linalg.vector_norm(x / unit, axis=axis) * unit",
        "return xp.linalg.vector_norm(x, axis=axis)",
        TEST_GRADIENT_FACTORS + "test_numbers_of_any_size_give_the_usual_direction[1e+25]",
    ),
    Mutant(
        "half of the digits compared",
        GRADIENT_FACTORS,
        "bound = 2 * _xp.eps(a.dtype, xp=xp) * size",
        "bound = 2 * _xp.eps(a.dtype, xp=xp) ** 0.5 * size",
        TEST_GRADIENT_FACTORS + "test_a_small_penalty_is_seen_in_float32",
    ),
    Mutant(
        "rows of the bias' column not counted",
        GRADIENT_FACTORS,
        "rank = rows * (c - spec.bias) * c, rows + spec.bias",
        "rank = rows * (c - spec.bias) * c, rows",
        TEST_GRADIENT_FACTORS + "test_the_rows_are_used_where_they_cost_less[spec0-1]",
    ),
)
