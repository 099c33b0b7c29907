"""Mistakes in capturing a PyTorch model's passes: scales, uses, parts of a batch, outputs."""

from mutants.mutant import Mutant

CAPTURE = "backends/ngd_torch/_capture.py"
HEADS = "backends/ngd_torch/_heads.py"
PASSES = "backends/ngd_torch/_passes.py"
READS = "backends/ngd_torch/_reads.py"
TEST = "tests/backends/test_torch_capture.py::"
TEST_CONSTRUCTS = "tests/backends/test_torch_constructs.py::"
TEST_DTYPES = "tests/backends/test_torch_dtypes.py::"
TEST_HEADS = "tests/backends/test_torch_heads.py::"
TEST_KINDS = "tests/backends/test_torch_kinds.py::"
TEST_PASSES = "tests/backends/test_torch_passes.py::"

MUTANTS = (
    Mutant(
        "gradients of the loss taken with the place in the graph in hand",
        PASSES,
        "edge = get_gradient_edge(_source(z)) if sampled else None",
        "edge = get_gradient_edge(_source(z))",
        "tests/backends/test_torch_memory.py::test_no_use_of_a_layer_outlives_its_step"
        "[KFAC empirical]",
    ),
    Mutant(
        "mean over the examples undone by a root",
        CAPTURE,
        "scale = examples * spread**0.5 if",
        "scale = (examples * spread) ** 0.5 if",
        TEST + "test_records_give_the_gradient_of_each_example[linear-mean]",
    ),
    Mutant(
        "sum over the examples taken for a mean",
        CAPTURE,
        'if self.loss_reduction == "mean" else spread**-0.5',
        "if True else spread**-0.5",
        TEST + "test_records_give_the_gradient_of_each_example[linear-sum]",
    ),
    Mutant(
        "mean over the positions undone in full",
        CAPTURE,
        "scale = examples * spread**0.5",
        "scale = examples * spread",
        TEST_HEADS + "test_token_gradients_of_the_training_loss[mean-False]",
    ),
    Mutant(
        "multiplied by the scaler's factor",
        CAPTURE,
        "scale = scale / self.loss_scale()",
        "scale = scale * self.loss_scale()",
        TEST_CONSTRUCTS + "test_a_scaled_loss[empirical]",
    ),
    Mutant(
        "passes in evaluation mode recorded",
        CAPTURE,
        "if switch.armed and module.training and torch.is_grad_enabled():",
        "if switch.armed and torch.is_grad_enabled():",
        TEST + "test_what_is_not_training_is_not_recorded",
    ),
    Mutant(
        "extra pass under autocast",
        CAPTURE,
        "with torch.autocast(device, enabled=False):",
        "with torch.autocast(device, enabled=torch.is_autocast_enabled(device)):",
        TEST_DTYPES + "test_the_extra_pass_is_not_under_autocast",
    ),
    Mutant(
        "generator seeded anew at every pass",
        CAPTURE,
        "if device not in self.generators:",
        "if True:",
        TEST + "test_sampled_fishers_have_the_mean_of_the_exact_one",
    ),
    Mutant(
        "time of the outputs taken for the examples",
        CAPTURE,
        "if (examples, *rest[:1]) in self.time_first and examples != rest[0]:",
        "if False:",
        "tests/backends/test_torch_unrolled.py::test_outputs_with_time_first_are_refused[LSTM]",
    ),
    Mutant(
        "a part of the vectors scaled up in full",
        PASSES,
        "self.scale / share**0.5",
        "self.scale / share",
        TEST_PASSES + "test_a_part_of_the_vectors_weighs_a_part_of_the_examples",
    ),
    Mutant(
        "a part of the vectors weighs all examples",
        PASSES,
        '**({} if share == 1 else {"share": share})',
        "**{}",
        TEST_PASSES + "test_some_examples_and_one_vector_at_a_time[kfac-twice-exact]",
    ),
    Mutant(
        "pass of another optimizer taken for the loss's",
        PASSES,
        "return self.examples > 0 and torch._C._current_graph_task_id() not in SAMPLED",
        "return self.examples > 0",
        TEST_PASSES + "test_sampled_gradients_are_not_taken_for_those_of_the_loss[empirical]",
    ),
    Mutant(
        "the user's own backward passes taken for the extra one",
        PASSES,
        "            return self.carrying",
        "            return True",
        TEST_PASSES + "test_the_users_own_backward_passes_are_not_taken_for_the_extra_one",
    ),
    Mutant(
        "handed over at the first of several uses",
        PASSES,
        "== self.expected[name] * self.together:",
        "== self.together:",
        TEST + "test_the_step_is_the_core_with_the_exact_fisher[reused]",
    ),
    Mutant(
        "only the last of several vectors",
        PASSES,
        "else torch.stack(gs)",
        "else gs[-1][None]",
        TEST + "test_the_exact_fisher_is_the_sum_over_labels[linear]",
    ),
    Mutant(
        "smaller last part of the examples lost",
        PASSES,
        "for start in range(0, n, size):",
        "for start in range(0, n - n % size, size):",
        TEST_PASSES + "test_a_record_is_no_larger_than_asked_for[5-parts1]",
    ),
    Mutant(
        "folded positions taken for examples",
        PASSES,
        "t = t.reshape(examples, -1, *t.shape[1:])",
        "t = t.reshape(-1, examples, *t.shape[1:]).transpose(0, 1)",
        TEST + "test_records_give_the_gradient_of_each_example[folded-mean]",
    ),
    Mutant(
        "rows that are no whole number an example cut off",
        PASSES,
        "    if t.shape[0] % examples:",
        "    t = t[: len(t) - len(t) % examples]\n    if t.shape[0] % examples:",
        TEST_PASSES + "test_rows_that_are_no_examples_are_refused",
    ),
    Mutant(
        "weight of a loss not under a root",
        HEADS,
        "scale: Any = term.weight**0.5",
        "scale: Any = term.weight",
        TEST_HEADS + "test_several_outputs[dict]",
    ),
    Mutant(
        "mean over positions not under a root",
        HEADS,
        "scale = scale / term.positions() ** 0.5",
        "scale = scale / term.positions()",
        TEST_HEADS + "test_the_curvature_is_that_of_the_loss_as_it_is_averaged[positions-1-False]",
    ),
    Mutant(
        "masked positions carried back",
        HEADS,
        "v = torch.where(term.counted[..., None], v, 0.0)",
        "v = v * 1.0",
        TEST_HEADS + "test_the_curvature_is_that_of_the_loss_as_it_is_averaged[rows-1-True]",
    ),
    Mutant(
        "masked positions counted in the mean",
        HEADS,
        "return self.counted.sum(dtype=wide) / len(self.counted)",
        "return math.prod(self.counted.shape[1:])",
        TEST_HEADS + "test_the_curvature_is_that_of_the_loss_as_it_is_averaged[positions-1-True]",
    ),
    Mutant(
        "vectors of one loss mixed with those of another",
        HEADS,
        "yield [*zeros[:k], v, *zeros[k + 1 :]]",
        "yield [v if j == k else roots[j][0] for j in range(len(roots))]",
        TEST_HEADS + "test_several_outputs[tuple]",
    ),
    Mutant(
        "last axis taken for that of the classes",
        HEADS,
        "outputs.movedim(self.class_axis, -1)",
        "outputs.movedim(-1, -1)",
        TEST_HEADS + "test_the_curvature_is_that_of_the_loss_as_it_is_averaged[rows-1-False]",
    ),
    Mutant(
        "labels sampled in half precision",
        HEADS,
        "outputs = outputs.float()",
        "outputs = outputs.clone()",
        TEST_DTYPES + "test_labels_are_sampled_in_float32_for_outputs_in_half_precision",
    ),
    Mutant(
        "a weight counted once, however often it is read",
        READS,
        "counts[name] = counts.get(name, 0) + 1",
        "counts[name] = 1",
        TEST_KINDS + "test_a_table_read_as_output_layer_without_a_module_is_said[linear-mc]",
    ),
    Mutant(
        "second call of a layer taken for a read elsewhere",
        READS,
        "if count > calls.get(name, 0)",
        "if count > 1",
        TEST_KINDS + "test_calls_of_modules_are_all_seen[conv used twice]",
    ),
)
