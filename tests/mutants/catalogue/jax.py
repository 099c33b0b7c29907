"""Mistakes in the adapter for JAX: axes, uses, scales, schedule."""

from mutants.mutant import Mutant

CAPTURE = "backends/ngd_jax/_capture.py"
EVALUATE = "backends/ngd_jax/_evaluate.py"
GRAPH = "backends/ngd_jax/_graph.py"
DIGITS = "backends/ngd_jax/_digits.py"
FOLDS = "backends/ngd_jax/_folds.py"
KEPT = "backends/ngd_jax/_kept_axes.py"
LAYERS = "backends/ngd_jax/_layers.py"
DEALT = "backends/ngd_jax/_dealt.py"
PLACED = "backends/ngd_jax/_placed.py"
SHARDS = "backends/ngd_jax/_shards.py"
STACKS = "backends/ngd_jax/_stacks.py"
SITES = "backends/ngd_jax/_sites.py"
TRANSFORM = "backends/ngd_jax/_transform.py"
VIEWS = "backends/ngd_jax/_views.py"
TEST = "tests/backends/test_jax_capture.py::"
EACH = TEST + "test_records_are_those_of_each_examples_gradient"
ORDER = TEST + "test_the_order_of_the_examples_is_followed_or_refused"
TEST_LAB = "tests/backends/test_jax_lab.py::"
TEST_STACKS = "tests/backends/test_jax_stacks.py::"
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
        "return value if uses == 1 else value._replace(output=None, biased=None, shift=None)",
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
        "*free[side], *contracted[side])\n",
        "*contracted[side], *free[side])\n",
        EACH + "[mlp]",
    ),
    Mutant(
        "axis shared with other positions taken for the examples",
        SITES,
        "    if old[grown[0]] != rows.examples and not rows.fold:\n",
        "    if False:\n",
        ORDER + "[<lambda>-examples share an axis]",
    ),
    Mutant(
        "folded examples taken for those behind all positions",
        LAYERS,
        "key=lambda k: -site.fold[k][1])",
        "key=lambda k: 0)",
        EACH + "[folded]",
    ),
    Mutant(
        "reshape that tears examples apart trusted by what grows",
        FOLDS,
        "by = name if torn else _by(inputs, name)",
        "by = _by(inputs, name)",
        EACH + "[disordered]",
    ),
    Mutant(
        "order of folded examples forgotten to be unknown",
        FOLDS,
        'return before[0] if before else name if folded else ""',
        'return ""',
        EACH + "[disordered]",
    ),
    Mutant(
        "operation along an axis taken for one of each row",
        KEPT,
        "if k not in gone} if {_rank(v)} == ranks else {}",
        "} if {_rank(v)} == ranks else {}",
        ORDER + "[<lambda>-unknown after cumsum]",
    ),
    Mutant(
        "leading digit not halved",
        DIGITS,
        "(n // 2 if (n, s) == slowest else n, s)",
        "(n, s)",
        EACH + "[folded]",
    ),
    Mutant(
        "user's own rule replaced by the function's derivative",
        EVALUATE,
        "    function.defjvp(of)\n    return function",
        "    return lambda operands, _: list(rule.function(*operands))",
        EACH + "[rules]",
    ),
    Mutant(
        "backward pass replaced by its linear part",
        EVALUATE,
        'derive = _pushed if eqn.primitive.name == "custom_jvp_call" else _pulled',
        "derive = _pushed",
        TEST + "test_a_backward_pass_of_its_own_is_kept_whole",
    ),
    Mutant(
        "weight that vmap repeats not known again",
        SITES,
        "repeated = {k for k in batched[side] if view.axes[k] is None and shapes[side][k] != 1}",
        "repeated = set()",
        EACH + "[backward_rules]",
    ),
    Mutant(
        "parameter lost in a loop without gradients",
        GRAPH,
        'if name in ("stop_gradient", "while"):',
        'if name == "stop_gradient":',
        EACH + "[loops]",
    ),
    Mutant(
        "bias of a sum that is read twice joined",
        GRAPH,
        "value if uses == 1 else value._replace(output=None, biased=None, shift=None)",
        "value if uses == 1 else value._replace(output=None, biased=None)",
        TEST + "test_a_bias_may_be_added_to_more_data_first",
    ),
    Mutant(
        "deferred records computed in every step",
        TRANSFORM,
        "        if fngd and callable(records):",
        "        if callable(records):",
        TEST_OPTIMIZERS + "test_deferred_records_take_the_same_steps[kfac-exact]",
    ),
    Mutant(
        "rule inside a mark counted twice",
        GRAPH,
        "                self.excuse(layout.leaf, uses)\n",
        "                pass\n",
        EACH + "[rules]",
    ),
    Mutant(
        "inputs of a branch that is not taken are not zero",
        EVALUATE,
        "jnp.zeros(x.shape, x.dtype) for like",
        "jnp.ones(x.shape, x.dtype) for like",
        TEST + "test_a_branch_that_is_not_taken_leaves_zeros",
    ),
    Mutant(
        "positions of a branch that is not taken counted",
        LAYERS,
        "        if _idle(found, sites):\n",
        "        if False:\n",
        EACH + "[branches]",
    ),
    Mutant(
        "groups of a kernel taken for one",
        LAYERS,
        'if group.kind == "rows" and groups > 1:',
        "if False:",
        EACH + "[grouped_volumes]",
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
        "when(step.due(count, factor_every",
        "when(step.due(count + 1, factor_every",
        TEST_OPTIMIZERS + "test_directions_are_the_methods_own[False]",
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
        "perturbation of one shard for the whole batch",
        SHARDS,
        "n * shards if k == example else n",
        "n",
        TEST + "test_records_of_shards_are_of_the_whole_batch[False]",
    ),
    Mutant(
        "scans around a shard_map counted as its own",
        SHARDS,
        "axes[1][0] - outside",
        "axes[1][0]",
        TEST + "test_records_of_shards_are_of_the_whole_batch[True]",
    ),
    Mutant(
        "split parameters taken for whole ones",
        SHARDS,
        "if leaves[k] and any(",
        "if False and any(",
        TEST + "test_shards_of_anything_else_are_told[which splits parameters-d-m-names0-matmul]",
    ),
    Mutant(
        "axes that do not split the examples passed over",
        SHARDS,
        "if over - set(names):",
        "if False:",
        TEST + "test_shards_of_anything_else_are_told"
        "[over mesh axes that do not split the examples-d-None-names1-matmul]",
    ),
    Mutant(
        "product that is seen counted beside its tag",
        GRAPH,
        "del self.found.sites[path]",
        "pass",
        TEST + "test_a_tagged_product_that_is_seen_counts_once",
    ),
    Mutant(
        "state left on one device",
        PLACED,
        "return jax.tree.map(put, tree)",
        "return tree",
        TEST_OPTIMIZERS + "test_a_state_starts_on_the_devices_of_its_parameters",
    ),
    Mutant(
        "inverses of other devices added to one's own",
        DEALT,
        "layer if k in mine else jax.tree.map(jnp.zeros_like, layer)",
        "layer",
        "tests/backends/test_jax_frameworks.py::test_four_devices_take_the_steps_of_one",
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
        "weighted, hyper, xp=NUMPY, **which",
        "weighted, hyper, xp=NUMPY, **{k: x[::-1] for k, x in which.items()}",
        TEST_OPTIMIZERS + "test_fngd_shares_by_iteration_and_by_sample[sample]",
    ),
    Mutant(
        "LAPACK called with a stack",
        STACKS,
        "math.prod(lead) < 2:",
        "math.prod(lead) < 9:",
        TEST_STACKS + "test_no_step_hands_lapack_a_stack[kfac]",
    ),
    Mutant(
        "refreshes by the library's own factorisations",
        DEALT,
        "method.refresh(state, hyper, xp=NUMPY)",
        "method.refresh(state, hyper)",
        TEST_STACKS + "test_no_step_hands_lapack_a_stack[ekfac]",
    ),
    Mutant(
        "leading axes joined after a factorisation",
        STACKS,
        "lambda x: x.reshape(*lead, *x.shape[1:])",
        "lambda x: x.reshape(-1, *x.shape[1:])",
        TEST_STACKS + "test_one_after_the_other_gives_what_a_stack_gives[lead2-cholesky]",
    ),
    Mutant(
        "statistics refreshed by the comparison",
        "ngd_core/lab/jax_train.py",
        "STILL, INTERVAL = 3, 2",
        "STILL, INTERVAL = 4, 2",
        TEST_LAB + "test_a_module_trains_as_the_core_network_does[kfac]",
    ),
)
