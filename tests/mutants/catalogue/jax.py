"""Mistakes in the adapter for JAX: axes, uses, scales, schedule."""

from mutants.mutant import Mutant

CAPTURE = "backends/ngd_jax/_capture.py"
EVALUATE = "backends/ngd_jax/_evaluate.py"
GRAPH = "backends/ngd_jax/_graph.py"
LAYERS = "backends/ngd_jax/_layers.py"
SITES = "backends/ngd_jax/_sites.py"
TRANSFORM = "backends/ngd_jax/_transform.py"
VIEWS = "backends/ngd_jax/_views.py"
TEST = "tests/backends/test_jax_capture.py::"
EACH = TEST + "test_records_are_those_of_each_examples_gradient"
TEST_LAB = "tests/backends/test_jax_lab.py::"
TEST_OPTIMIZERS = "tests/backends/test_jax_optimizers.py::"

MUTANTS = (
    Mutant(
        "mean over the examples not undone",
        CAPTURE,
        'scale = trace.examples if loss_reduction == "mean" else 1',
        "scale = 1",
        EACH + "[mlp]",
    ),
    Mutant(
        "gradient of the loss in every vector",
        CAPTURE,
        "pull((jnp.zeros_like(loss), v))[1])(vectors)",
        "pull((jnp.ones_like(loss), v))[1])(vectors)",
        TEST + "test_the_exact_fisher_is_the_outputs_hessian_between_jacobians",
    ),
    Mutant(
        "perturbation in place of what a site gives",
        EVALUATE,
        "_bind(jaxpr, eqn, inputs)[0] + perturbations[here]",
        "perturbations[here]",
        EACH + "[mlp]",
    ),
    Mutant(
        "weight recorded for the data",
        EVALUATE,
        "read[here] = inputs[sites[here].data]",
        "read[here] = inputs[0]",
        EACH + "[per_example]",
    ),
    Mutant(
        "factor of the loss taken for a penalty",
        GRAPH,
        'eqn.primitive.name in ("add", "sub")',
        'eqn.primitive.name in ("add", "sub", "mul")',
        TEST + "test_a_factor_of_the_loss_is_no_penalty",
    ),
    Mutant(
        "bias of one use joined for all that read the result",
        GRAPH,
        "return value if uses == 1 else value._replace(output=None, biased=None)",
        "return value",
        EACH + "[branched]",
    ),
    Mutant(
        "bias of several weights joined to each",
        LAYERS,
        "alone = owners[one.leaf] == {leaf}",
        "alone = True",
        EACH + "[shared]",
    ),
    Mutant(
        "outputs of an equation's kernel behind its inputs",
        SITES,
        "*(len(scans) + k for k in (*batched[side], *free[side], *contracted[side])),",
        "*(len(scans) + k for k in (*batched[side], *contracted[side], *free[side])),",
        EACH + "[mlp]",
    ),
    Mutant(
        "axis shared with other positions taken for the examples",
        SITES,
        "    if old[grown[0]] != examples:\n",
        "    if False:\n",
        EACH + "[others]",
    ),
    Mutant(
        "permutation in place of its inverse",
        VIEWS,
        "tuple(how.index(k) for k in range(len(how)))",
        "how",
        TEST + "test_a_layout_is_undone",
    ),
    Mutant(
        "moves undone in the order of their making",
        VIEWS,
        "reversed(list(zip(self.ops, self.shapes, strict=False)))",
        "list(zip(self.ops, self.shapes, strict=False))",
        TEST + "test_a_layout_is_undone",
    ),
    Mutant(
        "statistics at the last step of an interval",
        TRANSFORM,
        "due = count % factor_every == 0",
        "due = (count + 1) % factor_every == 0",
        TEST_OPTIMIZERS + "test_schedules_compile_once_and_are_followed",
    ),
    Mutant(
        "rate of the first step in the clip",
        TRANSFORM,
        "rate = _value(learning_rate, state.count)",
        "rate = _value(learning_rate, 0 * state.count)",
        TEST_OPTIMIZERS + "test_the_clip_follows_the_rate",
    ),
    Mutant(
        "bias that is masked out kept in the block",
        TRANSFORM,
        "if bias and bias[0] not in leaves:",
        "if False:",
        TEST_OPTIMIZERS + "test_masks_leave_a_layer_of_its_weight",
    ),
    Mutant(
        "one iteration for all",
        TRANSFORM,
        "else count % steps_per_epoch}",
        "else 0 * count}",
        TEST_OPTIMIZERS + "test_fngd_shares_by_iteration_and_by_sample[iteration]",
    ),
    Mutant(
        "directions of other examples' coefficients",
        TRANSFORM,
        "hyper, **which\n        )",
        "hyper, **{k: x[::-1] for k, x in which.items()}\n        )",
        TEST_OPTIMIZERS + "test_fngd_shares_by_iteration_and_by_sample[sample]",
    ),
    Mutant(
        "statistics refreshed by the comparison",
        "ngd_core/lab/jax_train.py",
        "STILL, INTERVAL = 3, 2",
        "STILL, INTERVAL = 4, 2",
        TEST_LAB + "test_a_module_trains_as_the_core_network_does[kfac]",
    ),
)
