"""Mistakes in curvature as operators: range and rest, scales, bases, order."""

from mutants.mutant import Mutant

FISHER = "ngd_core/operators/fisher.py"
KRONECKER = "ngd_core/operators/kronecker.py"
TEST = "tests/core/test_operators.py::"
DENSE = TEST + "test_functions_of_the_fisher_are_those_of_the_matrix[numpy]"

MUTANTS = (
    Mutant(
        "rest of the space forgotten",
        FISHER,
        "inside[spec] + self.rest * outside[spec]",
        "inside[spec]",
        DENSE,
    ),
    Mutant(
        "rest taken of the whole space",
        FISHER,
        "return {spec: x - inside[spec] for spec, x in v.items()}",
        "return dict(v)",
        DENSE,
    ),
    Mutant(
        "derivatives over the examples, not over their root",
        FISHER,
        "xp.reshape(along, (-1,)) / n**0.5",
        "xp.reshape(along, (-1,)) / n",
        DENSE,
    ),
    Mutant(
        "diagonal of first powers",
        FISHER,
        "d + excess[r] * row[spec] * row[spec]",
        "d + excess[r] * row[spec]",
        DENSE,
    ),
    Mutant(
        "rest counted for all parameters",
        FISHER,
        "xp.zeros_like(rest)) * (size - count)",
        "xp.zeros_like(rest)) * size",
        DENSE,
    ),
    Mutant(
        "nothing times an infinite logarithm",
        FISHER,
        "xp.where(count < size, rest, xp.zeros_like(rest)) * (size - count)",
        "rest * (size - count)",
        TEST + "test_a_range_that_is_everything_has_no_rest",
    ),
    Mutant(
        "rounding taken for range",
        FISHER,
        "xp.where(values > floor, values, xp.zeros_like(values))",
        "xp.where(values > 0, values, xp.zeros_like(values))",
        TEST + "test_a_range_that_is_everything_has_no_rest",
    ),
    Mutant(
        "smallest eigenvalue first",
        FISHER,
        "xp.flip(xp.sort(self.values))",
        "xp.sort(self.values)",
        DENSE,
    ),
    Mutant(
        "eigenvectors of the inputs where their squares belong",
        KRONECKER,
        "half @ (a * a).mT",
        "half @ a.mT",
        TEST + "test_a_kronecker_operator_is_its_matrix[0-kfac]",
    ),
    Mutant(
        "turned into the basis the wrong way",
        KRONECKER,
        "x = g.mT @ _xp.astype",
        "x = g @ _xp.astype",
        TEST + "test_a_kronecker_operator_is_its_matrix[0-kfac]",
    ),
    Mutant(
        "inputs left in the basis",
        KRONECKER,
        "else (g @ turned) @ a.mT",
        "else g @ turned",
        TEST + "test_a_kronecker_operator_is_its_matrix[0-ekfac]",
    ),
    Mutant(
        "eigenvalues of the factors added",
        KRONECKER,
        "g_values[..., :, None] * a_values[..., None, :]",
        "g_values[..., :, None] + a_values[..., None, :]",
        TEST + "test_a_kronecker_operator_is_its_matrix[0-kfac]",
    ),
    Mutant(
        "solved without damping",
        KRONECKER,
        "return self.inverse(damping) @ v",
        "return self.inverse() @ v",
        TEST + "test_the_direction_of_exact_damping_is_the_operator_s_solve",
    ),
)
