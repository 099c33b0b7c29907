"""Mistakes in curvature as operators: range and rest, scales, bases, order."""

from mutants.mutant import Mutant

FISHER = "ngd_core/operators/fisher.py"
KRONECKER = "ngd_core/operators/kronecker.py"
MAPPED = "ngd_core/operators/mapped.py"
TORCH = "backends/ngd_torch/_operators.py"
JAX_LAYERS = "backends/ngd_jax/_layers.py"
TEST = "tests/core/test_operators.py::"
DENSE = TEST + "test_functions_of_the_fisher_are_those_of_the_matrix[numpy]"
TEST_TORCH = "tests/backends/test_torch_operators.py::"
BY_AUTOGRAD = TEST_TORCH + "test_the_operator_of_a_batch_is_the_matrix_by_autograd"
STEP = TEST_TORCH + "test_a_step_is_the_solution_with_the_optimizer_s_operator"
SAME = TEST_TORCH + "test_nothing_of_the_model_or_its_optimizer_changes"
BY_JACOBIANS = (
    "tests/backends/test_jax_operators.py::test_the_operator_of_a_batch_is_the_matrix_by_jacobians"
)

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
        "projected away by eigenvectors of few digits",
        FISHER,
        "least = _xp.eps(self.gram_values.dtype, xp=xp) ** 0.5",
        "least = _xp.eps(self.gram_values.dtype, xp=xp)",
        TEST + "test_rows_that_nearly_depend_on_each_other_do_not_spoil_a_damped_solution[0]",
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
    Mutant(
        "matrix in the order of the blocks",
        MAPPED,
        "return xp.take(xp.take(matrix, order, axis=0), order, axis=1)",
        "return matrix",
        BY_AUTOGRAD + "[mlp]",
    ),
    Mutant(
        "columns of the matrix in the order of the blocks",
        MAPPED,
        "return xp.take(xp.take(matrix, order, axis=0), order, axis=1)",
        "return xp.take(matrix, order, axis=0)",
        BY_JACOBIANS,
    ),
    Mutant(
        "parameters solved without damping",
        MAPPED,
        "self.operator.solve(self._taken(v), damping)",
        "self.operator.solve(self._taken(v))",
        STEP + "[mlp-KFAC]",
    ),
    Mutant(
        "blocks beside the diagonal",
        MAPPED,
        "((0, 0), (before, after))",
        "((0, 0), (after, before))",
        STEP + "[mlp-EKFAC]",
    ),
    Mutant(
        "parts of packed parameters one over the other",
        TORCH,
        "            layer.put(blocks[layer.spec], parts)",
        "            layer._replace(rows=layer.rows and slice(0, 2)).put(blocks[layer.spec], parts)",
        BY_AUTOGRAD + "[attention]",
    ),
    Mutant(
        "weights transposed",
        TORCH,
        "return {name: parts[p] for p, name in names.items()}",
        "return {name: parts[p].T if p.ndim == 2 else parts[p] for p, name in names.items()}",
        BY_AUTOGRAD + "[mlp]",
    ),
    Mutant(
        "bias in the place of a weight's first column",
        JAX_LAYERS,
        "        return factors.join(self.spec, weight, bias)",
        "        block = factors.join(self.spec, weight, bias)\n"
        "        return block if bias is None else jnp.roll(block, 1, -1)",
        BY_JACOBIANS,
    ),
    Mutant(
        "records of the last examples alone",
        TORCH,
        "chunk_bytes=None",
        "chunk_bytes=1",
        BY_AUTOGRAD + "[values]",
    ),
    Mutant(
        "training mode in place of the model's",
        TORCH,
        "twin = copy.deepcopy(model)",
        "twin = copy.deepcopy(model).train()",
        BY_AUTOGRAD + "[cnn]",
    ),
    Mutant(
        "model itself run, not a copy",
        TORCH,
        "twin = copy.deepcopy(model)",
        "twin = model",
        SAME,
    ),
    Mutant(
        "random numbers drawn from the user's stream",
        TORCH,
        "torch.random.fork_rng(list(devices)), torch.enable_grad()",
        "torch.enable_grad()",
        SAME,
    ),
    Mutant(
        "layers of a stack in reverse",
        JAX_LAYERS,
        "layout.back(jnp.stack(slices)) for",
        "layout.back(jnp.stack(slices[::-1])) for",
        BY_JACOBIANS,
    ),
)
