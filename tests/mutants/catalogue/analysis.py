"""Mistakes in the analysis: scales, ranges, quadrature, damping, what is compared with what."""

from mutants.mutant import Mutant

COMPARISON = "ngd_core/analysis/comparison.py"
DUALITY = "ngd_core/analysis/duality.py"
ESTIMATES = "ngd_core/analysis/estimates.py"
KRONECKER = "ngd_core/analysis/kronecker.py"
KRYLOV = "ngd_core/analysis/krylov.py"
MARGINALS = "ngd_core/analysis/marginals.py"
SPECTRUM = "ngd_core/analysis/spectrum.py"
TEST = "tests/core/test_analysis.py::"
TEST_AGREEMENT = "tests/core/test_agreement.py::"
TEST_SPECTRA = "tests/core/test_spectra.py::"

MUTANTS = (
    Mutant(
        "diagonal of one position over vectors too",
        MARGINALS,
        "xp.sum(x * x, axis=-2) / n",
        "xp.sum(x * x, axis=-2) / (m * n)",
        TEST_SPECTRA + "test_trace_estimates_and_their_variance[numpy]",
    ),
    Mutant(
        "diagonal over positions too",
        MARGINALS,
        "return total / n",
        "return total / (n * t)",
        TEST + "test_trace_and_diagonal_are_those_of_the_dense_fisher[numpy]",
    ),
    Mutant(
        "norms averaged over the vectors, not summed",
        MARGINALS,
        "alike = xp.sum(",
        "alike = xp.mean(",
        TEST + "test_trace_and_diagonal_are_those_of_the_dense_fisher[numpy]",
    ),
    Mutant(
        "vectors summed before the square",
        MARGINALS,
        "squares = xp.sum(y * y, axis=(-4, -2))",
        "squares = xp.sum(y, axis=(-4, -2)) ** 2",
        TEST_SPECTRA + "test_trace_estimates_and_their_variance[numpy]",
    ),
    Mutant(
        "positions taken for independent in the norms",
        MARGINALS,
        "    if t == 1:\n        inputs",
        "    if t >= 1:\n        inputs",
        TEST_SPECTRA + "test_trace_error_of_kfac[numpy]",
    ),
    Mutant(
        "smaller last piece of the examples lost",
        MARGINALS,
        "range(0, n, size)",
        "range(0, n - n % size or n, size)",
        TEST + "test_examples_come_in_chunks_of_any_size[100]",
    ),
    Mutant(
        "last example of every piece lost",
        MARGINALS,
        "min(start + size, n)",
        "min(start + size, n) - 1",
        TEST + "test_trace_and_diagonal_are_those_of_the_dense_fisher[numpy]",
    ),
    Mutant(
        "Gram matrix over vectors too",
        DUALITY,
        "return total / n",
        "return total / (m * n)",
        TEST_SPECTRA + "test_eigenvectors_of_the_gram_route_and_of_lanczos_give_the_same_largest",
    ),
    Mutant(
        "zeros that the Gram matrix has more kept",
        DUALITY,
        "count = min(values.shape[0], parameters(records))",
        "count = values.shape[0]",
        TEST + "test_the_gram_matrix_has_the_spectrum_of_the_fisher[numpy]",
    ),
    Mutant(
        "smallest eigenvalue first",
        DUALITY,
        "xp.flip(values)[:count]",
        "values[:count]",
        TEST_SPECTRA + "test_eigenvectors_of_the_gram_route_and_of_lanczos_give_the_same_largest",
    ),
    Mutant(
        "damping left out of the residual",
        DUALITY,
        "(v[spec] - damping * u[spec]) - product[spec]",
        "v[spec] - product[spec]",
        TEST_SPECTRA + "test_records_of_the_exact_fisher_give_the_network_s_own[categorical]",
    ),
    Mutant(
        "no correction",
        DUALITY,
        "range(refinements)",
        "range(0 * refinements)",
        TEST + "test_small_dampings_keep_a_small_residual_after_one_correction[size0]",
    ),
    Mutant(
        "half the damping added to the Gram matrix",
        DUALITY,
        "(values + damping)[:, None]",
        "(values + damping / 2)[:, None]",
        TEST_SPECTRA + "test_records_of_the_exact_fisher_give_the_network_s_own[categorical]",
    ),
    Mutant(
        "limit on the examples alone",
        DUALITY,
        "if m * n > limit",
        "if n > limit",
        TEST_SPECTRA + "test_mistakes_get_one_clear_sentence"
        "[<lambda>-6 rows, above the limit of 5_0]",
    ),
    Mutant(
        "determinant of the Gram matrix in place of the Fisher's",
        SPECTRUM,
        "return parameters * xp.log(damping)",
        "return count * xp.log(damping)",
        TEST + "test_the_gram_matrix_has_the_spectrum_of_the_fisher[numpy]",
    ),
    Mutant(
        "effective dimension of twice the damping",
        SPECTRUM,
        "xp.sum(eigenvalues / (eigenvalues + damping))",
        "xp.sum(eigenvalues / (eigenvalues + 2 * damping))",
        TEST + "test_the_gram_matrix_has_the_spectrum_of_the_fisher[numpy]",
    ),
    Mutant(
        "condition without the damping of the least eigenvalue",
        SPECTRUM,
        "xp.min(eigenvalues) + damping",
        "xp.min(eigenvalues)",
        TEST + "test_the_condition_number",
    ),
    Mutant(
        "reorthogonalised once",
        KRYLOV,
        "for _ in range(2):",
        "for _ in range(1):",
        TEST_SPECTRA + "test_full_reorthogonalisation_keeps_ghosts_away",
    ),
    Mutant(
        "orthogonalised against the last two vectors alone",
        KRYLOV,
        "w = w - (known.mT @ (known @ w[:, None]))[:, 0]",
        "w = w - (known[-2:, :].mT @ (known[-2:, :] @ w[:, None]))[:, 0]",
        TEST_SPECTRA + "test_lanczos_finds_the_spectrum_and_stops_where_it_ends[numpy]",
    ),
    Mutant(
        "end of the Krylov space not noticed",
        KRYLOV,
        "~(beta <= tolerance * norm)",
        "~(beta < 0 * norm)",
        TEST_SPECTRA + "test_lanczos_finds_the_spectrum_and_stops_where_it_ends[numpy]",
    ),
    Mutant(
        "negative Ritz values cut off",
        KRYLOV,
        "values = xp.where(place < found, values, zero)",
        "values = xp.where(values > 0, values, zero)",
        TEST_SPECTRA + "test_indefinite_maps_small_spaces_and_zero",
    ),
    Mutant(
        "weights of the quadrature not squared",
        ESTIMATES,
        "t.vectors[0, :] * t.vectors[0, :] / samples",
        "xp.abs(t.vectors[0, :]) / samples",
        TEST_SPECTRA + "test_quadrature_is_exact_for_polynomials[numpy]",
    ),
    Mutant(
        "weights of the quadrature summed over the samples",
        ESTIMATES,
        "t.vectors[0, :] * t.vectors[0, :] / samples",
        "t.vectors[0, :] * t.vectors[0, :]",
        TEST_SPECTRA + "test_quadrature_is_exact_for_polynomials[numpy]",
    ),
    Mutant(
        "last entries of the eigenvectors for weights",
        ESTIMATES,
        "t.vectors[0, :] * t.vectors[0, :] / samples",
        "t.vectors[-1, :] * t.vectors[-1, :] / samples",
        TEST_SPECTRA + "test_quadrature_is_exact_for_polynomials[numpy]",
    ),
    Mutant(
        "variance without its factor of 2",
        ESTIMATES,
        "return 2 * xp.maximum(rest",
        "return xp.maximum(rest",
        TEST_SPECTRA + "test_trace_estimates_and_their_variance[numpy]",
    ),
    Mutant(
        "variance of normal numbers for that of signs, the diagonal kept",
        ESTIMATES,
        "rest = norm * norm - xp.sum(xp.stack(squares))",
        "rest = norm * norm",
        TEST_SPECTRA + "test_trace_estimates_and_their_variance[numpy]",
    ),
    Mutant(
        "estimate over vectors too",
        ESTIMATES,
        "xp.sum(along * along) / along.shape[-1]",
        "xp.mean(along * along)",
        TEST_SPECTRA + "test_trace_estimates_and_their_variance[numpy]",
    ),
    Mutant(
        "bells not of mass 1",
        ESTIMATES,
        "/ (width * math.sqrt(2 * math.pi))",
        "/ math.sqrt(2 * math.pi)",
        TEST_SPECTRA + "test_density_is_a_sum_of_bells[numpy]",
    ),
    Mutant(
        "ranks added, not multiplied",
        KRONECKER,
        "_rank(alpha, xp=xp) * _rank(gamma, xp=xp)",
        "_rank(alpha, xp=xp) + _rank(gamma, xp=xp)",
        TEST_SPECTRA + "test_kronecker_spectrum_is_that_of_the_dense_product[numpy]",
    ),
    Mutant(
        "covariance as a difference of means",
        KRONECKER,
        "        inputs = inputs - xp.mean(inputs, axis=-1, keepdims=True)\n"
        "        outputs = outputs - xp.mean(outputs, axis=-1, keepdims=True)\n"
        "        return xp.sum(xp.mean(inputs * outputs, axis=-1))",
        "        both = xp.mean(inputs, axis=-1) * xp.mean(outputs, axis=-1)\n"
        "        return xp.sum(xp.mean(inputs * outputs, axis=-1) - both)",
        TEST_SPECTRA + "test_the_trace_error_does_not_cancel",
    ),
    Mutant(
        "damping left out of the curvature along a direction",
        COMPARISON,
        "    curvature = curvature + _xp.scalar(damping, like=uu, xp=xp) * uu\n",
        "",
        TEST_AGREEMENT + "test_agreement_is_that_of_the_dense_solve[numpy]",
    ),
    Mutant(
        "error relative to the direction that is judged",
        COMPARISON,
        "xp.sqrt(inner(rest, rest, xp=xp)), xp.sqrt(ee), infinite",
        "xp.sqrt(inner(rest, rest, xp=xp)), xp.sqrt(uu), infinite",
        TEST_AGREEMENT + "test_agreement_is_that_of_the_dense_solve[numpy]",
    ),
    Mutant(
        "cosine with the gradient",
        COMPARISON,
        "ratio(inner(u, exact, xp=xp), xp.sqrt(uu)",
        "ratio(inner(u, g, xp=xp), xp.sqrt(uu)",
        TEST_AGREEMENT + "test_agreement_is_that_of_the_dense_solve[numpy]",
    ),
    Mutant(
        "ascent counted like descent",
        COMPARISON,
        "down = xp.maximum(gu, zero)",
        "down = gu",
        TEST_AGREEMENT + "test_decrease_is_a_squared_cosine_and_knows_no_length[numpy]",
    ),
    Mutant(
        "records of the exact side ignored",
        COMPARISON,
        "exact_records = records if exact_records is None else exact_records",
        "exact_records = records",
        TEST_AGREEMENT + "test_kfac_does_not_agree_elsewhere[0]",
    ),
    Mutant(
        "state given, and not taken as it is",
        COMPARISON,
        "    if state is None:\n",
        "    if True:\n",
        TEST_AGREEMENT + "test_a_state_is_taken_as_it_is",
    ),
    Mutant(
        "batch seen once, whatever the rounds",
        COMPARISON,
        "for _ in range(rounds):",
        "for _ in range(1):",
        TEST_AGREEMENT + "test_a_fresh_state_knows_the_batch_as_well_as_it_can",
    ),
)
