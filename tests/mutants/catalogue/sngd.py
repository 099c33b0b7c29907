"""Mistakes in SNGD: local Fisher matrices, damping, roots, coordinates and their re-projection."""

from mutants.mutant import Mutant

LOCAL = "ngd_core/factors/local.py"
RECONSTRUCTION = "ngd_core/reconstruction.py"
ROOTS = "ngd_core/inversion/roots.py"
SNGD = "ngd_core/methods/sngd.py"
SNGD_STATE = "ngd_core/methods/sngd_state.py"

TEST_RECONSTRUCTION = "tests/core/test_reconstruction.py::"
TEST_ROOTS = "tests/core/test_roots.py::"
TEST_SNGD = "tests/core/test_sngd.py::"
TEST_SNGD_STATE = "tests/core/test_sngd_state.py::"

MUTANTS = (
    Mutant(
        "inputs summed up by the layer's sharing, though every position is a row",
        LOCAL,
        'sharing="expand", xp=xp)',
        "sharing=spec.sharing, xp=xp)",
        TEST_SNGD + "test_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "slope of the ReLU metric entered once, not squared",
        LOCAL,
        "return weighted.mT @ weighted / (n * t)",
        "return weighted.mT @ (weighted / slope[..., None]) / (n * t)",
        TEST_SNGD + "test_slope_of_the_relu_metric_at_any_output[numpy]",
    ),
    Mutant(
        "slope of the hard ReLU",
        LOCAL,
        "slope = _sigmoid(xp.reshape(outputs, (*stack, n * t, spec.rows)).mT, xp=xp)",
        (
            "slope = xp.reshape(outputs, (*stack, n * t, spec.rows)).mT\n"
            "    slope = _xp.astype(slope > 0, x.dtype, xp=xp)"
        ),
        TEST_SNGD + "test_slope_of_the_relu_metric_at_any_output[numpy]",
    ),
    Mutant(
        "slope of the mirrored ReLU",
        LOCAL,
        "return xp.where(z < 0, small,",
        "return xp.where(z > 0, small,",
        TEST_SNGD + "test_slope_of_the_relu_metric_at_any_output[numpy]",
    ),
    Mutant(
        "slope of a sigmoid unit",
        LOCAL,
        "return xp.where(z < 0, small, _xp.ones((), like=z, xp=xp)) / (1 + small)",
        "return small / (1 + small) ** 2",
        TEST_SNGD + "test_slope_of_the_relu_metric_at_any_output[numpy]",
    ),
    Mutant(
        "ReLU metric summed over positions, not averaged",
        LOCAL,
        "return weighted.mT @ weighted / (n * t)",
        "return weighted.mT @ weighted / n",
        TEST_SNGD + "test_relu_metric_lies_below_the_linear[numpy]",
    ),
    Mutant(
        "bias column first in the ReLU metric",
        LOCAL,
        "x = xp.concat([x, _xp.ones((*stack, n * t, 1), like=x, xp=xp)], axis=-1)",
        "x = xp.concat([_xp.ones((*stack, n * t, 1), like=x, xp=xp), x], axis=-1)",
        TEST_SNGD + "test_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "relative damping by the trace in place of the mean eigenvalue",
        SNGD,
        'unit = {"relative": mean,',
        'unit = {"relative": fisher.shape[-1] * mean,',
        TEST_SNGD + "test_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "absolute damping taken as relative",
        SNGD,
        '"absolute": 1 + 0 * mean',
        '"absolute": mean',
        TEST_SNGD + "test_one_solve_with_g_serves_all_outputs[numpy]",
    ),
    Mutant(
        "damping forgotten",
        SNGD,
        "arguments[spec] = layer.inverse, fisher, self._eps(fisher, hyper.damping, xp=xp)",
        "arguments[spec] = layer.inverse, fisher, self._eps(fisher, 0.0, xp=xp)",
        TEST_SNGD + "test_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "stale root, the new one not stored",
        SNGD,
        "layers[spec] = layer._replace(inverse=inverse)",
        "layers[spec] = layer",
        TEST_SNGD + "test_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "literal mode applies the inverse root twice",
        SNGD,
        '                if self.mode == "direct":\n',
        '                if self.mode != "none":\n',
        TEST_RECONSTRUCTION + "test_literal_is_direct_over_refreshes[numpy]",
    ),
    Mutant(
        "direct mode applies the inverse root once",
        SNGD,
        '                if self.mode == "direct":\n',
        '                if self.mode == "none":\n',
        TEST_RECONSTRUCTION + "test_literal_is_direct_over_refreshes[numpy]",
    ),
    Mutant(
        "linear_layers ignored",
        SNGD,
        'return self.metric == "relu" and spec.name not in self.linear_layers',
        'return self.metric == "relu"',
        TEST_SNGD + "test_settings_of_the_authors[numpy]",
    ),
    Mutant(
        "literal inner product of a coordinate's and a weight's gradient",
        SNGD,
        'info = Info(info.code, {"inner": xp.sum(own * own)})',
        "info = Info(info.code, info.measures)",
        TEST_SNGD + "test_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "re-projection without the old root",
        RECONSTRUCTION,
        "return map_rows(map_rows(coordinates, old.inverse, xp=xp), new.root, xp=xp)",
        "return map_rows(coordinates, new.root, xp=xp)",
        TEST_RECONSTRUCTION + "test_reprojection_keeps_the_function[numpy]",
    ),
    Mutant(
        "no re-projection",
        RECONSTRUCTION,
        "return map_rows(map_rows(coordinates, old.inverse, xp=xp), new.root, xp=xp)",
        "return coordinates",
        TEST_RECONSTRUCTION + "test_reprojection_keeps_the_function[numpy]",
    ),
    Mutant(
        "re-projection backwards",
        RECONSTRUCTION,
        "return map_rows(map_rows(coordinates, old.inverse, xp=xp), new.root, xp=xp)",
        "return map_rows(map_rows(coordinates, old.root, xp=xp), new.inverse, xp=xp)",
        TEST_RECONSTRUCTION + "test_reprojection_keeps_the_function[numpy]",
    ),
    Mutant(
        "re-projection with its factors in the wrong order",
        RECONSTRUCTION,
        "return map_rows(map_rows(coordinates, old.inverse, xp=xp), new.root, xp=xp)",
        "return map_rows(map_rows(coordinates, new.root, xp=xp), old.inverse, xp=xp)",
        TEST_RECONSTRUCTION + "test_reprojection_keeps_the_function[numpy]",
    ),
    Mutant(
        "gradient at the coordinates by the root, not its inverse",
        RECONSTRUCTION,
        "return map_rows(grad, layer.inverse, xp=xp)  # R is symmetric",
        "return map_rows(grad, layer.root, xp=xp)",
        TEST_RECONSTRUCTION + "test_gradient_at_the_coordinates[numpy]",
    ),
    Mutant(
        "weights by the root, not its inverse",
        RECONSTRUCTION,
        "return map_rows(coordinates, layer.inverse, xp=xp)",
        "return map_rows(coordinates, layer.root, xp=xp)",
        TEST_RECONSTRUCTION + "test_the_reconstructed_layer_computes_the_same[numpy]",
    ),
    Mutant(
        "matrices of the outputs in reverse order",
        RECONSTRUCTION,
        "return (block[..., None, :] @ matrix)[..., 0, :]",
        "return (block[..., None, :] @ xp.flip(matrix, axis=-3))[..., 0, :]",
        TEST_RECONSTRUCTION + "test_the_reconstructed_layer_computes_the_same[numpy]",
    ),
    Mutant(
        "Denman-Beavers with the new Y in Z",
        ROOTS,
        "y, z = 0.5 * (y + xp.linalg.inv(z)), 0.5 * (z + xp.linalg.inv(y))",
        ("y = 0.5 * (y + xp.linalg.inv(z))\n        z = 0.5 * (z + xp.linalg.inv(y))"),
        TEST_ROOTS + "test_condition_bound_is_kept_and_tight[denman-beavers]",
    ),
    Mutant(
        "Denman-Beavers inverse scaled the wrong way",
        ROOTS,
        "return Roots(y * xp.sqrt(mu), z / xp.sqrt(mu))",
        "return Roots(y * xp.sqrt(mu), z * xp.sqrt(mu))",
        TEST_ROOTS + "test_the_root_squares_to_the_matrix_and_the_inverse_undoes_it[numpy]",
    ),
    Mutant(
        "Newton-Schulz without its second product",
        ROOTS,
        "y, z = y @ t, t @ z",
        "y, z = y @ t, z",
        TEST_ROOTS + "test_the_root_squares_to_the_matrix_and_the_inverse_undoes_it[numpy]",
    ),
    Mutant(
        "Newton-Schulz scaled by the mean eigenvalue, where it diverges",
        ROOTS,
        "s = frobenius_norm(m, xp=xp)",
        "s = mean_diagonal(m, xp=xp)[..., None, None]",
        TEST_ROOTS + "test_the_root_squares_to_the_matrix_and_the_inverse_undoes_it[numpy]",
    ),
    Mutant(
        "Nystrom's singular values taken as eigenvalues",
        ROOTS,
        "return s * s, q",
        "return s, q",
        TEST_ROOTS + "test_nystrom_is_exact_up_to_its_rank[numpy]",
    ),
    Mutant(
        "Nystrom's core inverted, not rooted",
        ROOTS,
        "factor = xp.where(known, 1 / xp.sqrt(xp.where(known, w, one)), zero)",
        "factor = xp.where(known, 1 / xp.where(known, w, one), zero)",
        TEST_ROOTS + "test_nystrom_is_exact_up_to_its_rank[numpy]",
    ),
    Mutant(
        "power of a shifted low-rank matrix counts the shift twice",
        ROOTS,
        "inside = (values + shift) ** p - rest",
        "inside = (values + shift) ** p",
        TEST_ROOTS + "test_power_rule[numpy]",
    ),
    Mutant(
        "landmarks without the bias",
        ROOTS,
        "return tuple((k + 1) * n // rank - 1 for k in range(rank))",
        "return tuple(k * n // rank for k in range(rank))",
        TEST_ROOTS + "test_landmarks_are_distinct_and_hold_the_last",
    ),
    Mutant(
        "eigenvalues clipped at the damping, not shifted by it",
        ROOTS,
        "values = xp.maximum(values, _xp.zeros((), like=values, xp=xp)) + part.shift[..., None]",
        "values = xp.maximum(values, part.shift[..., None])",
        TEST_ROOTS + "test_the_root_squares_to_the_matrix_and_the_inverse_undoes_it[numpy]",
    ),
    Mutant(
        "whole inverse in place of its root",
        ROOTS,
        "side = xp.sqrt(values)[..., None, :]",
        "side = values[..., None, :]",
        TEST_ROOTS + "test_the_root_squares_to_the_matrix_and_the_inverse_undoes_it[numpy]",
    ),
    Mutant(
        "a root that has not converged is used",
        ROOTS,
        (
            "ok = part.usable & (_norm(new @ inverse - identity, xp=xp) < RESIDUAL)\n"
            "    ok = ok & (_norm(new @ new - safe, xp=xp) < RESIDUAL)"
        ),
        "ok = part.usable",
        TEST_ROOTS + "test_a_root_that_has_not_converged_is_not_used[m0]",
    ),
    Mutant(
        "root scaled back as the matrix, not as its root",
        ROOTS,
        "scale = xp.sqrt(part.scale)[..., None, None]",
        "scale = part.scale[..., None, None]",
        TEST_ROOTS + "test_the_root_squares_to_the_matrix_and_the_inverse_undoes_it[numpy]",
    ),
    Mutant(
        "identity of the authors' start never fades",
        SNGD_STATE,
        "prior = layer.prior * _xp.scalar(hyper.decay, like=layer.prior, xp=xp)",
        "prior = layer.prior",
        TEST_SNGD + "test_average_over_batches[numpy]",
    ),
    Mutant(
        "identity of the authors' start added, not averaged in",
        SNGD_STATE,
        "fisher = layer.fisher + layer.prior * (identity - layer.fisher)",
        "fisher = layer.fisher + layer.prior * identity",
        TEST_SNGD + "test_average_over_batches[numpy]",
    ),
    Mutant(
        "identity of the authors' start not known before a batch",
        SNGD_STATE,
        "xp.where((layer.weight > 0) | (layer.prior > 0), fisher, nan)",
        "xp.where(layer.weight > 0, fisher, nan)",
        TEST_SNGD + "test_from_the_identity_a_refresh_needs_no_batch[linear]",
    ),
    Mutant(
        "a batch that is not finite enters the average",
        "ngd_core/methods/_common.py",
        "ops.select(ok, x, getattr(layer, name), xp=xp)",
        'x if name == "fisher" else ops.select(ok, x, getattr(layer, name), xp=xp)',
        TEST_SNGD_STATE + "test_a_non_finite_batch_is_refused_and_counted[numpy]",
    ),
    Mutant(
        "averages count batches, not examples",
        SNGD,
        "count = record.a.shape[0] * hyper.share",
        "count = 1",
        TEST_SNGD + "test_what_a_step_does_not_depend_on[numpy]",
    ),
)
