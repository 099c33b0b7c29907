"""Mistakes in the adapter for CuPy and NumPy: schedule, labels, files, epochs."""

from mutants.mutant import Mutant

FIT = "backends/ngd_cupy/_fit.py"
OPTIMIZERS = "backends/ngd_cupy/_optimizers.py"
OPS = "backends/ngd_cupy/_ops.py"
TEST = "tests/backends/test_cupy.py::"
OPS_TEST = "tests/backends/test_cupy_ops.py::"

MUTANTS = (
    Mutant(
        "statistics at the last step of an interval",
        OPTIMIZERS,
        "if step.due(self.steps, self.factor_every",
        "if step.due(self.steps + 1, self.factor_every",
        TEST + "test_steps_are_those_of_the_torch_adapter[kfac]",
    ),
    Mutant(
        "weight decay without the rate",
        OPTIMIZERS,
        "step.decoupled_weight_decay(self.params, self.lr, self.weight_decay)",
        "step.decoupled_weight_decay(self.params, 1.0, self.weight_decay)",
        TEST + "test_steps_are_those_of_the_torch_adapter[kfac]",
    ),
    Mutant(
        "clip computed and forgotten",
        OPTIMIZERS,
        "found = {key: scale * d for key, d in found.items()}",
        "found = {key: 0 * scale + d for key, d in found.items()}",
        TEST + "test_steps_are_those_of_the_torch_adapter[kfac]",
    ),
    Mutant(
        "the same labels at every step",
        OPTIMIZERS,
        "np.random.default_rng([self.seed, self.steps])",
        "np.random.default_rng([self.seed])",
        TEST + "test_every_step_draws_labels_of_its_own",
    ),
    Mutant(
        "gradient that is not finite in the momentum",
        OPTIMIZERS,
        "return xp.where(xp.all(xp.isfinite(g)), g, xp.zeros_like(g))",
        "return g",
        TEST + "test_a_batch_that_is_not_finite_moves_nothing[fngd]",
    ),
    Mutant(
        "momentum not taken from the file",
        OPTIMIZERS,
        'self.params, self.velocity = found["params"], found["velocity"]',
        'self.params = found["params"]',
        TEST + "test_a_run_broken_off_goes_on_as_if_it_had_not[kfac]",
    ),
    Mutant(
        "one order for all epochs",
        FIT,
        "np.random.default_rng([seed, epoch])",
        "np.random.default_rng([seed])",
        TEST + "test_fit_sees_every_example_once_an_epoch_and_evaluates",
    ),
    Mutant(
        "shorter last batch counted in full",
        FIT,
        "part = part * (rows.shape[0] / n)",
        "part = part * (batch_size / n)",
        TEST + "test_fit_sees_every_example_once_an_epoch_and_evaluates",
    ),
    Mutant(
        "shorter last batch left out",
        FIT,
        "for start in range(0, n, batch_size):",
        "for start in range(0, n - n % batch_size, batch_size):",
        TEST + "test_fit_sees_every_example_once_an_epoch_and_evaluates",
    ),
    Mutant(
        "slice beyond the end",
        FIT,
        "stop = min(start + CHUNK, x.shape[0])",
        "stop = start + CHUNK",
        TEST + "test_every_library_trains_evaluates_and_resumes_as_numpy_does[kfac-strict:device1]",
    ),
    Mutant(
        "loss of the last chunk alone",
        FIT,
        "loss = part if loss is None else loss + part",
        "loss = part",
        TEST + "test_evaluation_in_chunks_is_that_of_the_whole",
    ),
    Mutant(
        "epochs of before trained once more",
        FIT,
        "for epoch in range(optimizer.epochs, epochs):",
        "for epoch in range(epochs):",
        TEST + "test_a_run_broken_off_goes_on_as_if_it_had_not[kfac]",
    ),
    Mutant(
        "pivots of a factor not looked at, nor its product",
        OPS,
        "return xp.all(pivots > 0, axis=-1) & xp.all(residual <= bound, axis=(-2, -1))",
        "return xp.all(xp.isfinite(pivots), axis=-1)",
        OPS_TEST
        + "test_a_matrix_that_is_not_positive_definite_comes_back_non_finite[last-5-float64-silent]",
    ),
    Mutant(
        "a factor known by its pivots alone",
        OPS,
        "xp.all(pivots > 0, axis=-1) & xp.all(residual <= bound, axis=(-2, -1))",
        "xp.all(pivots > 0, axis=-1)",
        OPS_TEST
        + "test_a_matrix_that_is_not_positive_definite_comes_back_non_finite[last-5-float64-garbage]",
    ),
    Mutant(
        "rounding of a factor without its size",
        OPS,
        "* sizes * (sizes.mT @ probe)",
        "",
        OPS_TEST + "test_the_inverse_is_that_of_the_pure_twin[130-10000.0-float32-silent]",
    ),
)
