"""Mistakes in the further kinds of layers, embeddings and scales, and in layers put in one stack."""

from mutants.mutant import Mutant

BATCHED = "ngd_core/methods/_batched.py"
DAMPING = "ngd_core/inversion/damping.py"
DIAGONAL = "ngd_core/inversion/diagonal.py"
GRAM = "ngd_core/factors/gram.py"
KFAC = "ngd_core/methods/kfac.py"
KRONECKER = "ngd_core/factors/kronecker.py"
SHARING = "ngd_core/factors/sharing.py"
TEST = "tests/core/test_kinds.py::"
TEST_BATCHED = "tests/core/test_batched.py::"

MUTANTS = (
    Mutant(
        "tokens counted, not divided by their number",
        KRONECKER,
        "dtype, xp=xp) / flat.shape[0]",
        "dtype, xp=xp)",
        TEST + "test_factors_equal_the_loops[numpy]",
    ),
    Mutant(
        "tokens divided by the examples, not the positions too",
        KRONECKER,
        "dtype, xp=xp) / flat.shape[0]",
        "dtype, xp=xp) / tokens.shape[0]",
        TEST + "test_factors_equal_the_loops[numpy]",
    ),
    Mutant(
        "tokens searched to the right, so that each counts for the one before",
        KRONECKER,
        "like=flat, xp=xp))",
        'like=flat, xp=xp), side="right")',
        TEST + "test_factors_equal_the_loops[numpy]",
    ),
    Mutant(
        "tokens not sorted before they are searched",
        KRONECKER,
        "    flat = xp.sort(flat)\n",
        "",
        TEST + "test_factors_equal_the_loops[numpy]",
    ),
    Mutant(
        "tokens outside of the vocabulary counted for its ends",
        KRONECKER,
        "    flat = xp.sort(flat)\n",
        "    flat = xp.clip(xp.sort(flat), 0, vocabulary - 1)\n",
        TEST + "test_tokens_outside_of_the_vocabulary_count_as_no_input[numpy]",
    ),
    Mutant(
        "tokens outside of the vocabulary alike in the Gram matrix",
        GRAM,
        "_equal(flat) & known, y.dtype",
        "_equal(flat), y.dtype",
        TEST + "test_tokens_outside_of_the_vocabulary_count_as_no_input[numpy]",
    ),
    Mutant(
        "negative tokens known in the Gram matrix",
        GRAM,
        "known = (flat >= 0) & (flat < spec.in_features)",
        "known = flat < spec.in_features",
        TEST + "test_tokens_outside_of_the_vocabulary_count_as_no_input[numpy]",
    ),
    Mutant(
        "output factor of a scale not 1",
        KRONECKER,
        "_xp.ones((features, 1, 1), like=u, xp=xp)",
        "2 * _xp.ones((features, 1, 1), like=u, xp=xp)",
        TEST + "test_factors_equal_the_loops[numpy]",
    ),
    Mutant(
        "scale over vectors too",
        KRONECKER,
        "second_moment(u, n, xp=xp)",
        "second_moment(u, m * n, xp=xp)",
        TEST + "test_factors_equal_the_loops[numpy]",
    ),
    Mutant(
        "damping of a scale split by pi",
        KFAC,
        '"exact" if spec.kind == "scale" else self.damping_split',
        "self.damping_split",
        TEST + "test_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "table of an embedding not transposed",
        SHARING,
        "        return xp.matrix_transpose(weight)\n",
        "        return xp.reshape(weight, spec.block_shape)\n",
        TEST + "test_a_block_is_the_table_transposed_and_joins_and_splits",
    ),
    Mutant(
        "damping shared by the sum of a diagonal, not its mean",
        DAMPING,
        "a = xp.mean(A, axis=-1) if",
        "a = xp.sum(A, axis=-1) if",
        TEST + "test_a_diagonal_shares_the_damping_by_its_trace",
    ),
    Mutant(
        "floor of a diagonal's damping from its mean",
        DIAGONAL,
        "floor = xp.sum(FLOOR",
        "floor = xp.mean(FLOOR",
        TEST + "test_a_diagonal_is_inverted_by_the_rules_of_the_matrix[numpy]",
    ),
    Mutant(
        "negative eigenvalues of a diagonal kept",
        DIAGONAL,
        "xp.maximum(m, zero), one)",
        "m, one)",
        TEST + "test_a_diagonal_shares_the_damping_by_its_trace",
    ),
    Mutant(
        "first layer of a stack for all of them",
        BATCHED,
        "found[key] = _pick(result, k)",
        "found[key] = _pick(result, 0)",
        TEST_BATCHED + "test_together_is_one_by_one[numpy]",
    ),
    Mutant(
        "layers of the first stack taken for every other",
        BATCHED,
        "f(*_stack([arguments[key] for key in part], xp=xp))",
        "f(*_stack([arguments[key] for key in keys[: len(part)]], xp=xp))",
        TEST_BATCHED + "test_stacks_are_bounded",
    ),
    Mutant(
        "stacks bounded by their smallest array",
        BATCHED,
        "return max(_numbers(part) for part in tree)",
        "return min(_numbers(part) for part in tree)",
        TEST_BATCHED + "test_stacks_are_bounded",
    ),
    Mutant(
        "layers in the order of their stacks",
        BATCHED,
        "return {key: found[key] for key in arguments}",
        "return found",
        TEST_BATCHED + "test_layers_of_other_shapes_are_left_alone_and_the_order_stays",
    ),
)
