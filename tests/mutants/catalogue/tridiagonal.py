"""Mistakes in block-tridiagonal K-FAC: moments, links of the chain, failures, the oracle."""

from mutants.mutant import Mutant

CHAIN = "ngd_core/inversion/tridiagonal.py"
METHOD = "ngd_core/methods/tridiagonal.py"
MOMENT = "ngd_core/factors/moment.py"
ORACLE = "ngd_core/reference/tridiagonal.py"

TESTS = "tests/core/test_tridiagonal.py::"
DENSE = TESTS + "test_direction_is_the_dense_solve_with_the_completed_fisher[numpy]"
OPERATOR = TESTS + "test_the_operator_is_block_tridiagonal_and_symmetric"
BOUND = TESTS + "test_correlations_keep_to_their_bound"
KEPT = TESTS + "test_what_cannot_be_refreshed_keeps_its_last_good_part[numpy]"
COMPLETION = TESTS + "test_the_oracle_agrees_next_to_the_diagonal_and_inverts_to_a_tridiagonal"

MUTANTS = (
    Mutant(
        "Psi without the inverse of the next layer's factor",
        CHAIN,
        "right @ following.basis.mT",
        "moment",
        DENSE,
    ),
    Mutant(
        "Psi added in Xi",
        CHAIN,
        "v - (link.psi_g @ after) @ link.psi_a.mT",
        "v + (link.psi_g @ after) @ link.psi_a.mT",
        DENSE,
    ),
    Mutant(
        "Xi alone, its transpose forgotten",
        CHAIN,
        "u - (pair[0].psi_g.mT @ pair[1]) @ pair[0].psi_a",
        "u",
        OPERATOR,
    ),
    Mutant(
        "spectrum of a sum in place of a difference",
        CHAIN,
        "/ (g + a - g * a)) @ k_a.mT",
        "/ (2 - g - a + g * a)) @ k_a.mT",
        TESTS + "test_a_difference_of_kronecker_products_is_solved_in_the_common_bases",
    ),
    Mutant(
        "the rests multiplied, as if the correlations were",
        CHAIN,
        "/ (g + a - g * a)) @ k_a.mT",
        "/ (g * a)) @ k_a.mT",
        DENSE,
    ),
    Mutant(
        "correlations not cut at their bound",
        CHAIN,
        "rest = xp.minimum(xp.maximum(rest, least), one)",
        "rest = xp.minimum(rest, one)",
        TESTS + "test_correlations_that_cannot_be_are_cut_and_reported",
    ),
    Mutant(
        "a bound that knows one layer's damping only",
        CHAIN,
        "least = here.share + following.share - here.share * following.share",
        "least = here.share",
        BOUND,
    ),
    Mutant(
        "a bound too tight for one example",
        CHAIN,
        "least = here.share + following.share - here.share * following.share",
        "least = here.share + following.share",
        BOUND,
    ),
    Mutant(
        "moments of a layer without curvature kept",
        CHAIN,
        "A_next[i] * seen, G_next[i] * seen",
        "A_next[i], G_next[i]",
        TESTS + "test_a_layer_without_curvature_is_damped_and_separate",
    ),
    Mutant(
        "a raised damping unreported",
        CHAIN,
        "    raised = raised | here[0].raised | here[1].raised\n",
        "",
        TESTS + "test_undamped_directions_follow_a_linear_change_of_coordinates",
    ),
    Mutant(
        "a cut correlation unreported",
        CHAIN,
        "raised = over_a + over_g > SLACK * (least_a + least_g - least_a * least_g)",
        "raised = over_a + over_g > 1e9",
        TESTS + "test_correlations_that_cannot_be_are_cut_and_reported",
    ),
    Mutant(
        "a link used though the next layer's factors are bad",
        CHAIN,
        "ok = here[0].ok & here[1].ok & following[0].ok & following[1].ok",
        "ok = here[0].ok & here[1].ok",
        KEPT,
    ),
    Mutant(
        "a kept link forgets that it is good",
        CHAIN,
        "        old.good | ok,\n",
        "        ok,\n",
        KEPT,
    ),
    Mutant(
        "the damping of G on A",
        CHAIN,
        "_whiten(a * present[-1], for_a, work, xp=xp)",
        "_whiten(a * present[-1], for_g, work, xp=xp)",
        DENSE,
    ),
    Mutant(
        "the last layer inverted with the first one's factors",
        CHAIN,
        "refresh_inverse(old.last, A[-1], G[-1], damping",
        "refresh_inverse(old.last, A[0] + 0 * A[-1], G[0] + 0 * G[-1], damping",
        DENSE,
    ),
    Mutant(
        "factors damped twice",
        CHAIN,
        "xp=xp)) + part.shift\n",
        "xp=xp)) + 2 * part.shift\n",
        DENSE,
    ),
    Mutant(
        "solve_dtype forgotten",
        CHAIN,
        "work = solve_dtype(dtype, like=A[0], xp=xp)",
        "work = A[0].dtype",
        TESTS + "test_options_reach_the_factorisations[float64]",
    ),
    Mutant(
        "moments of gradients averaged over vectors",
        METHOD,
        '"g_next": [cross_moment(*pair, count, xp=xp)',
        '"g_next": [cross_moment(*pair, pair[0].shape[0], xp=xp)',
        DENSE,
    ),
    Mutant(
        "layers with a bad gradient beside them step alone",
        METHOD,
        "guarded(u + spoilt, grads",
        "guarded(u, grads",
        TESTS + "test_a_non_finite_gradient_gives_zero_directions_for_all_layers[numpy]",
    ),
    Mutant(
        "directions not held against the gradients' dtype together",
        METHOD,
        "_xp.fits(u, grads[spec].dtype, xp=xp)",
        "_xp.fits(u, u.dtype, xp=xp)",
        TESTS + "test_a_direction_beyond_one_gradients_dtype_is_zero_for_all_layers",
    ),
    Mutant(
        "a batch judged by its last moment",
        METHOD,
        "ok = ok & xp.all(xp.isfinite(new)) & xp.isfinite(weight)",
        "ok = xp.all(xp.isfinite(new)) & xp.isfinite(weight)",
        TESTS + "test_a_non_finite_batch_is_refused_for_all_layers_and_counted[numpy]",
    ),
    Mutant(
        "the chain in the order of names",
        METHOD,
        "        chain = check_specs(specs)\n",
        "        chain = tuple(sorted(check_specs(specs)))\n",
        DENSE,
    ),
    Mutant(
        "no statistics taken for zero curvature",
        METHOD,
        "xp.where(old.weight > 0, _xp.zeros((), like=old.weight, xp=xp), nan)",
        "_xp.zeros((), like=old.weight, xp=xp)",
        TESTS + "test_without_statistics_the_direction_is_the_gradient[numpy]",
    ),
    Mutant(
        "rows of a cross moment that do not belong together",
        MOMENT,
        "_blocks(y, size, xp=xp)",
        "_blocks(xp.flip(y, axis=-2), size, xp=xp)",
        TESTS + "test_moments_of_many_alike_rows_keep_their_digits[numpy]",
    ),
    Mutant(
        "completion from F~ in place of F^",
        ORACLE,
        "to_next @ completed[following, place]",
        "to_next @ F[following, place]",
        COMPLETION,
    ),
    Mutant(
        "Sigma without what the next layer explains",
        ORACLE,
        "Sigma = F[here, here] - Psi @ F[following, following] @ Psi.T",
        "Sigma = F[here, here]",
        COMPLETION,
    ),
    Mutant(
        "an oracle with exact damping",
        ORACLE,
        'damped(A[i][i], G[i][i], damping, "pi")',
        'damped(A[i][i], G[i][i], damping, "exact")',
        DENSE,
    ),
)
