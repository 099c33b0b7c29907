"""Mistakes in the natural gradient by definition: losses, per-example gradients, dense Fisher."""

from mutants.mutant import Mutant

DENSE = "ngd_core/methods/dense.py"
LOSSES = "ngd_core/losses.py"
PER_EXAMPLE = "ngd_core/factors/per_example.py"

TEST_EXACTNESS = "tests/core/test_exactness.py::"
TEST_FACTORS = "tests/core/test_factors.py::"
TEST_KFAC = "tests/core/test_kfac.py::"
TEST_LOSSES = "tests/core/test_losses.py::"

MUTANTS = (
    Mutant(
        "Fisher summed over examples, not averaged",
        DENSE,
        "batch = second_moment(u, count, xp=xp)",
        "batch = second_moment(u, 1, xp=xp)",
        TEST_KFAC + "test_dense_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "Fisher averaged over back-propagated vectors as well",
        DENSE,
        "batch = second_moment(u, count, xp=xp)",
        "batch = second_moment(u, u.shape[0], xp=xp)",
        TEST_KFAC + "test_vectors_are_summed_and_micro_batches_count_by_their_examples[dense full]",
    ),
    Mutant(
        "damping forgotten",
        DENSE,
        "                hyper.damping,\n                block.inverse,",
        "                0.0,\n                block.inverse,",
        TEST_KFAC + "test_dense_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "stale inverse, the new one not stored",
        DENSE,
        "blocks[span] = block._replace(inverse=inverse, good=good)",
        "blocks[span] = block._replace(good=good)",
        TEST_KFAC + "test_dense_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "last batch in place of the average",
        DENSE,
        'new, _ = folded(block, {"fisher": batch}, count * hyper.share, hyper.decay, xp=xp)',
        'new, _ = folded(block, {"fisher": batch}, count * hyper.share, 0.0, xp=xp)',
        TEST_KFAC
        + "test_vectors_are_summed_and_micro_batches_count_by_their_examples[dense layer]",
    ),
    Mutant(
        "one block a layer where one for all is asked",
        DENSE,
        'spans = [specs] if self.blocks == "full" else',
        'spans = [specs] if self.blocks == "layer" else',
        TEST_KFAC + "test_dense_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "flattened by columns in the Fisher, by rows in the gradient",
        DENSE,
        "gradients.append(xp.reshape(u, (*u.shape[:2], -1)))",
        "gradients.append(xp.reshape(u.mT, (*u.shape[:2], -1)))",
        TEST_KFAC + "test_dense_direction_is_the_dense_damped_solve[numpy]",
    ),
    Mutant(
        "every layer gets the first one's part of the direction",
        DENSE,
        "start += part.shape[0]",
        "start += 0",
        TEST_KFAC + "test_without_statistics_the_direction_is_the_gradient[numpy]",
    ),
    Mutant(
        "a refused batch counts in the average's weight",
        "ngd_core/methods/_common.py",
        "ops.select(ok, x, getattr(layer, name), xp=xp)",
        'ops.select(ok | (name == "weight"), x, getattr(layer, name), xp=xp)',
        TEST_KFAC + "test_a_non_finite_batch_is_refused_and_counted[numpy]",
    ),
    Mutant(
        "zero Fisher inverted as if it were known",
        DENSE,
        "fisher = xp.where(block.weight > 0, block.fisher, nan)",
        "fisher = block.fisher",
        TEST_KFAC + "test_without_statistics_the_direction_is_the_gradient[numpy]",
    ),
    Mutant(
        "bias column first in per-example gradients",
        PER_EXAMPLE,
        "u = xp.concat([u, xp.sum(y, axis=-2)[..., None]], axis=-1)",
        "u = xp.concat([xp.sum(y, axis=-2)[..., None], u], axis=-1)",
        TEST_FACTORS + "test_per_example_gradients_equal_the_loops[numpy]",
    ),
    Mutant(
        "softmax Fisher diag(p) without - p p^T",
        LOSSES,
        "(identity - p[..., None]) * root",
        "identity * root",
        TEST_LOSSES + "test_root_times_itself_is_the_hessian[numpy]",
    ),
    Mutant(
        "variance in place of its root for the sigmoid",
        LOSSES,
        "identity * xp.sqrt(variance)[..., None]",
        "identity * variance[..., None]",
        TEST_LOSSES + "test_root_times_itself_is_the_hessian[numpy]",
    ),
    Mutant(
        "sampled vectors divided by the number of samples, not by its root",
        LOSSES,
        "/ noise.shape[0] ** 0.5",
        "/ noise.shape[0]",
        TEST_LOSSES + "test_fisher_vectors_equal_the_oracle[numpy]",
    ),
    Mutant(
        "most likely class in place of a sample",
        LOSSES,
        "below = cumulative[..., :-1] <= _noise(noise, outputs, xp=xp)[..., None]",
        "below = cumulative[..., :-1] <= 0.5 + 0 * _noise(noise, outputs, xp=xp)[..., None]",
        TEST_LOSSES + "test_samples_follow_the_model[categorical]",
    ),
    Mutant(
        "positions of an example interact in the exact Fisher",
        LOSSES,
        "    if t == 1:\n",
        "    if t >= 1:\n        columns = xp.reshape(columns, (k, n, *positions, c))\n",
        TEST_EXACTNESS + "test_a_1x1_convolution_is_a_dense_layer_at_every_position",
    ),
    Mutant(
        "square loss without its half",
        LOSSES,
        "0.5 * (outputs - _values(targets, outputs, xp=xp)) ** 2",
        "(outputs - _values(targets, outputs, xp=xp)) ** 2",
        TEST_LOSSES + "test_value_and_gradient_equal_the_oracle[numpy]",
    ),
    Mutant(
        "gradient of the square loss with the wrong sign",
        LOSSES,
        "return outputs - _values(targets, outputs, xp=xp)",
        "return _values(targets, outputs, xp=xp) - outputs",
        TEST_LOSSES + "test_value_and_gradient_equal_the_oracle[numpy]",
    ),
)
