"""Mistakes in FNGD: Gram matrices, coefficients, the weighted sum, tables and sharing."""

from mutants.mutant import Mutant

FNGD = "ngd_core/methods/fngd.py"
GRAM = "ngd_core/factors/gram.py"
TABLES = "ngd_core/weighting/tables.py"
PER_EXAMPLE = "ngd_core/factors/per_example.py"
WOODBURY = "ngd_core/weighting/woodbury.py"

TEST_FNGD = "tests/core/test_fngd.py::"
TEST_GRAM = "tests/core/test_gram.py::"
TEST_USES = "tests/core/test_uses.py::"
TEST_WEIGHTING = "tests/core/test_weighting.py::"

MUTANTS = (
    Mutant(
        "damping not multiplied by n beside the Gram matrix",
        WOODBURY,
        "shift = n * _xp.scalar(damping, like=K, xp=xp)",
        "shift = _xp.scalar(damping, like=K, xp=xp)",
        TEST_WEIGHTING + "test_closed_forms[numpy]",
    ),
    Mutant(
        "Gram matrix averaged and its damping not",
        WOODBURY,
        "inverse, ok, code = damped_inverse(K, shift,",
        "inverse, ok, code = damped_inverse(K / n, shift,",
        TEST_WEIGHTING + "test_closed_forms[numpy]",
    ),
    Mutant(
        "one column of the inverse in place of its row sums",
        WOODBURY,
        "return xp.sum(inverse, axis=-1), ok, code",
        "return inverse[..., 0], ok, code",
        TEST_WEIGHTING + "test_weighted_gradients_are_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "diagonal of the inverse in place of its row sums",
        WOODBURY,
        "return xp.sum(inverse, axis=-1), ok, code",
        "return xp.linalg.diagonal(inverse), ok, code",
        TEST_WEIGHTING + "test_weighted_gradients_are_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "relative damping by tr K / n, not tr K / n^2",
        WOODBURY,
        "asked = asked * (mean_diagonal(K, xp=xp) / K.shape[-1])",
        "asked = asked * mean_diagonal(K, xp=xp)",
        TEST_WEIGHTING + "test_damping_relative_and_absolute[numpy]",
    ),
    Mutant(
        "no floor under the damping",
        WOODBURY,
        "return xp.maximum(asked, _xp.full(K.shape[:-2], floor, like=K, xp=xp))",
        "return asked + 0 * _xp.full(K.shape[:-2], floor, like=K, xp=xp)",
        TEST_WEIGHTING + "test_damping_relative_and_absolute[numpy]",
    ),
    Mutant(
        "c kept in place of n c",
        FNGD,
        "weights = K.shape[-1] * c",
        "weights = c",
        TEST_FNGD + "test_epochs_are_those_of_the_definition[numpy]",
    ),
    Mutant(
        "unit gain divided by lambda",
        FNGD,
        "weights = weights * damping[:, None]",
        "weights = weights / damping[:, None]",
        TEST_FNGD + "test_large_damping_is_sgd[numpy]",
    ),
    Mutant(
        "unit gain normalised to a mean weight of 1",
        FNGD,
        "weights = weights * damping[:, None]",
        "weights = weights / xp.mean(weights, axis=-1, keepdims=True)",
        TEST_FNGD + "test_epochs_are_those_of_the_definition[numpy]",
    ),
    Mutant(
        "first layer's coefficients for all layers",
        FNGD,
        "record_weights(old.table, slots, weights[k, :], ok[k], xp=xp)",
        "record_weights(old.table, slots, weights[0, :], ok[k], xp=xp)",
        TEST_FNGD + "test_a_layer_has_its_own_coefficients[numpy]",
    ),
    Mutant(
        "Gram matrices added over the layers",
        FNGD,
        "K = xp.stack(grams)",
        ("K = xp.stack(grams)\n        K = xp.sum(K, axis=0, keepdims=True) + 0 * K"),
        TEST_FNGD + "test_a_layer_has_its_own_coefficients[numpy]",
    ),
    Mutant(
        "all layers damped by the first one's trace",
        FNGD,
        "damping = layer_damping(K, hyper.damping, mode=self.damping_mode,",
        "damping = layer_damping(K[:1, :, :] + 0 * K, hyper.damping, mode=self.damping_mode,",
        TEST_FNGD + "test_epochs_are_those_of_the_definition[numpy]",
    ),
    Mutant(
        "Gram matrix in the dtype of the records",
        FNGD,
        "grams.append(gram(spec, record, dtype=dtype, xp=xp))",
        "grams.append(gram(spec, record, xp=xp))",
        TEST_FNGD + "test_gram_matrices_of_float32_records_are_float64",
    ),
    Mutant(
        "a short batch divided by the full batch size",
        FNGD,
        "u = weighted_gradient(spec, records[spec], weights, xp=xp) / n",
        "u = weighted_gradient(spec, records[spec], weights, xp=xp) / (self.batch_size or n)",
        TEST_FNGD + "test_constant_coefficients_are_sgd_exactly[numpy]",
    ),
    Mutant(
        "negative coefficients mirrored, not clipped",
        FNGD,
        "c = xp.maximum(c, _xp.zeros((), like=c, xp=xp))",
        "c = xp.abs(c)",
        TEST_FNGD + "test_negative_coefficients_are_kept_unless_clipped",
    ),
    Mutant(
        "recording again one epoch late",
        FNGD,
        "epoch % self.refresh_epochs == 0)",
        "epoch % self.refresh_epochs == 1)",
        TEST_FNGD + "test_recording_again_by_the_definition[position]",
    ),
    Mutant(
        "coefficients of a layer without gradients recorded",
        FNGD,
        "return weights, ok & some & xp.all(xp.isfinite(weights), axis=-1), code",
        "return weights, ok & xp.all(xp.isfinite(weights), axis=-1), code",
        TEST_FNGD + "test_a_refused_batch_is_counted_and_not_recorded[numpy]",
    ),
    Mutant(
        "bias left out of the Gram matrix",
        GRAM,
        "inputs = x @ x.mT + int(spec.bias)",
        "inputs = x @ x.mT",
        TEST_GRAM + "test_gram_by_either_route_is_the_gradients_own[numpy]",
    ),
    Mutant(
        "positions summed before the Gram matrix, as in TENGraD",
        GRAM,
        "    *stack, m, n, t, outputs = y.shape",
        (
            "    x, y = xp.sum(x, axis=-2, keepdims=True), xp.sum(y, axis=-2, keepdims=True)\n"
            "    *stack, m, n, t, outputs = y.shape"
        ),
        TEST_GRAM + "test_gram_by_either_route_is_the_gradients_own[numpy]",
    ),
    Mutant(
        "positions taken as features of the Gram matrix, as in ASDL",
        GRAM,
        "    *stack, m, n, t, _ = y.shape\n",
        "    x, y = (xp.reshape(v, (*v.shape[:-2], 1, -1)) for v in (x, y))\n    *stack, m, n, t, _ = y.shape\n",
        TEST_GRAM + "test_gram_by_either_route_is_the_gradients_own[numpy]",
    ),
    Mutant(
        "only equal positions paired in the Gram matrix",
        GRAM,
        "return xp.sum(xp.reshape(pairs, (*stack, m * n, t, m * n, t)), axis=(-3, -1))",
        "same = _xp.eye(t, like=y, xp=xp)[:, None, :]\n    return xp.sum(xp.reshape(pairs, (*stack, m * n, t, m * n, t)) * same, axis=(-3, -1))",
        TEST_GRAM + "test_gram_by_either_route_is_the_gradients_own[numpy]",
    ),
    Mutant(
        "Gram matrix of the first group alone",
        GRAM,
        "return xp.sum(k, axis=0) if stack else k",
        "return k[0, ...] if stack else k",
        TEST_GRAM + "test_gram_by_either_route_is_the_gradients_own[numpy]",
    ),
    Mutant(
        "tokens of an embedding not told apart",
        GRAM,
        "same = _xp.astype(_equal(xp.reshape(tokens, (-1,))), y.dtype, xp=xp)",
        "same = 1 + 0 * _xp.astype(_equal(xp.reshape(tokens, (-1,))), y.dtype, xp=xp)",
        TEST_GRAM + "test_gram_of_an_embedding[numpy]",
    ),
    Mutant(
        "shift left out of a normalisation's Gram matrix",
        GRAM,
        "u = xp.concat([u, xp.sum(y, axis=1)], axis=-1)",
        "u = xp.concat([u, 0 * xp.sum(y, axis=1)], axis=-1)",
        TEST_GRAM + "test_gram_of_a_norm_scale[numpy]",
    ),
    Mutant(
        "inputs weighted in place of gradients, so that the bias is not",
        PER_EXAMPLE,
        "_summed(spec, x, y * _xp.astype(weights, y.dtype, xp=xp)[..., None, None], xp=xp)",
        "_summed(spec, x * _xp.astype(weights, y.dtype, xp=xp)[..., None, None], y, xp=xp)",
        TEST_WEIGHTING + "test_one_product_gives_the_weighted_sum[numpy]",
    ),
    Mutant(
        "inputs and gradients both weighted",
        PER_EXAMPLE,
        "[..., None, None], xp=xp)",
        "[..., None, None] ** 2, xp=xp)",
        TEST_WEIGHTING + "test_one_product_gives_the_weighted_sum[numpy]",
    ),
    Mutant(
        "weighted sum averaged over positions",
        PER_EXAMPLE,
        "[..., None, None], xp=xp)",
        "[..., None, None] / y.shape[-2], xp=xp)",
        TEST_WEIGHTING + "test_one_product_gives_the_weighted_sum[numpy]",
    ),
    Mutant(
        "weights of the first vector for all vectors",
        PER_EXAMPLE,
        "_xp.astype(weights, y.dtype, xp=xp)[..., None, None]",
        "_xp.astype(weights, y.dtype, xp=xp)[(0,) * (weights.ndim - 1)][:, None, None]",
        TEST_USES + "test_the_joint_fisher_of_a_tied_table_is_exact[numpy]",
    ),
    Mutant(
        "guard with the wrong sign",
        WOODBURY,
        "fired = (xp.sum(direction * grad) <= 0) & xp.any(grad != 0)",
        "fired = (xp.sum(direction * grad) >= 0) & xp.any(grad != 0)",
        TEST_WEIGHTING + "test_the_guard_replaces_what_does_not_descend[numpy]",
    ),
    Mutant(
        "guard without the mean weight",
        WOODBURY,
        "return xp.where(fired, gain * grad, direction), fired",
        "return xp.where(fired, grad, direction), fired",
        TEST_WEIGHTING + "test_the_guard_replaces_what_does_not_descend[numpy]",
    ),
    Mutant(
        "stride of the iterations is their number, not the batch size",
        TABLES,
        "index % iterations * batch_size + places",
        "index % iterations * iterations + places",
        TEST_WEIGHTING + "test_an_epoch_of_full_batches_fills_the_table_once[numpy]",
    ),
    Mutant(
        "iterations of later epochs beyond the table",
        TABLES,
        "index % iterations * batch_size + places",
        "index * batch_size + places",
        TEST_WEIGHTING + "test_an_epoch_of_full_batches_fills_the_table_once[numpy]",
    ),
    Mutant(
        "means by position go on over epochs",
        TABLES,
        "mean = mean._replace(count=_xp.zeros((), like=weights, xp=xp))",
        "mean = mean._replace(count=mean.count)",
        TEST_FNGD + "test_recording_again_by_the_definition[position]",
    ),
    Mutant(
        "last batch in place of the mean by position",
        TABLES,
        "weights = xp.where(mean.good, mean.weights, weights)",
        "weights = xp.where(mean.good, weights, weights)",
        TEST_FNGD + "test_by_position_the_weights_become_one_gain",
    ),
    Mutant(
        "means by position forget older batches",
        TABLES,
        "together, count = average(mean.weights, mean.count, weights, 1, 1, xp=xp)",
        "together, count = average(mean.weights, mean.count, weights, 1, 0.5, xp=xp)",
        TEST_FNGD + "test_by_position_the_weights_become_one_gain",
    ),
    Mutant(
        "weights written in the order of the table",
        TABLES,
        "written = xp.take(weights, xp.take(order, at, axis=0), axis=0)",
        "written = xp.take(weights, at, axis=0)",
        TEST_WEIGHTING + "test_tables_return_what_was_recorded[numpy]",
    ),
    Mutant(
        "a refused batch recorded",
        TABLES,
        "new = xp.where(hit & ok, written, table.weights)",
        "new = xp.where(hit, written, table.weights)",
        TEST_FNGD + "test_a_refused_batch_is_counted_and_not_recorded[numpy]",
    ),
    Mutant(
        "examples without a coefficient dropped",
        TABLES,
        "return xp.where(found, xp.take(table.weights, slots, axis=0), table.gain), found",
        "return xp.where(found, xp.take(table.weights, slots, axis=0), 0 * table.gain), found",
        TEST_FNGD + "test_examples_without_a_coefficient_get_the_mean_weight",
    ),
    Mutant(
        "examples without a coefficient get the weight 1",
        TABLES,
        "gain = xp.where(some, total / xp.maximum(number, one), one)",
        "gain = xp.where(some, one, one)",
        TEST_FNGD + "test_examples_without_a_coefficient_get_the_mean_weight",
    ),
    Mutant(
        "mean weight over entries that were never recorded",
        TABLES,
        "gain = xp.where(some, total / xp.maximum(number, one), one)",
        "gain = xp.where(some, total / weights.shape[0], one)",
        TEST_WEIGHTING + "test_tables_return_what_was_recorded[numpy]",
    ),
)
