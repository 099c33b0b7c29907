"""Mistakes in SNGD taken literally: re-projection, pull-back, statistics, what is put back."""

from mutants.mutant import Mutant

LOCAL = "backends/ngd_torch/_local_fisher.py"
RECONSTRUCT = "backends/ngd_torch/_reconstruct.py"
REFRESH = "backends/ngd_torch/_refresh.py"
TEST = "tests/backends/test_torch_reconstruct.py::"
SAME = TEST + "test_a_copy_computes_the_same_and_folds_back"
DESCENT = TEST + "test_descent_through_the_layers_is_sngd"

MUTANTS = (
    Mutant(
        "coordinates not re-projected",
        REFRESH,
        "x.copy_(reconstruction.reproject(old, new, x.to(new.root.dtype)))",
        "x.copy_(x.clone())",
        TEST + "test_a_refresh_changes_nothing_that_the_weights_see[dense]",
    ),
    Mutant(
        "coordinates re-projected the other way",
        REFRESH,
        "reconstruction.reproject(old, new, x.to",
        "reconstruction.reproject(new, old, x.to",
        TEST + "test_a_refresh_changes_nothing_that_the_weights_see[dense]",
    ),
    Mutant(
        "momentum not re-projected",
        REFRESH,
        "for x in (p, *_momenta(p, me)):",
        "for x in (p,):",
        DESCENT + "[dense-0.9]",
    ),
    Mutant(
        "gradients that are there not carried over",
        REFRESH,
        "    if p.grad is not None:\n",
        "    if False:\n",
        TEST + "test_gradients_that_are_there_already_are_carried_over_a_refresh",
    ),
    Mutant(
        "gradient carried over like a displacement",
        REFRESH,
        "p.grad.copy_(reconstruction.pull_back(new, grad))",
        "p.grad.copy_(reconstruction.reproject(old, new, p.grad.to(new.root.dtype)))",
        TEST + "test_gradients_that_are_there_already_are_carried_over_a_refresh",
    ),
    Mutant(
        "second moments of Adam re-projected too",
        REFRESH,
        'BUFFERS = ("momentum_buffer", "exp_avg")',
        'BUFFERS = ("momentum_buffer", "exp_avg", "exp_avg_sq")',
        TEST + "test_first_moments_of_adam_are_carried_and_second_ones_stay",
    ),
    Mutant(
        "uses of a layer weigh alike, whatever their rows",
        REFRESH,
        "batch = sum(matrix * (n / rows) for n, matrix in uses)",
        "batch = sum(matrix / len(uses) for n, matrix in uses)",
        TEST + "test_statistics_of_several_uses_are_means_over_all_rows[linear]",
    ),
    Mutant(
        "batches weigh by their positions",
        REFRESH,
        "fold(local.state, batch, examples or rows, me.hyper, xp=xp)",
        "fold(local.state, batch, rows, me.hyper, xp=xp)",
        TEST + "test_batches_weigh_by_their_examples",
    ),
    Mutant(
        "refresh at the last pass of an interval",
        REFRESH,
        "now = now or due(local.passes, me.inverse_every",
        "now = now or due(local.passes + 1, me.inverse_every",
        DESCENT + "[dense-0.0]",
    ),
    Mutant(
        "statistics in evaluation mode",
        REFRESH,
        "me.running = model.training and torch.is_grad_enabled()",
        "me.running = torch.is_grad_enabled()",
        TEST + "test_what_is_not_training_leaves_no_trace",
    ),
    Mutant(
        "gradient not pulled back",
        LOCAL,
        "return reconstruction.pull_back(ctx.local.map, own).to(grad.dtype), None",
        "return own.to(grad.dtype), None",
        TEST + "test_a_step_is_the_dense_natural_gradient[linear-relative]",
    ),
    Mutant(
        "number of passes not stored",
        LOCAL,
        'return {"passes": self.passes}',
        'return {"passes": 0}',
        TEST + "test_a_stored_state_goes_on_bit_by_bit",
    ),
    Mutant(
        "statistics cast to half precision with the model",
        LOCAL,
        "            if x.dtype in LOW:\n",
        "            if False:\n",
        TEST + "test_other_dtypes",
    ),
    Mutant(
        "layer keeps a bias beside that in the block",
        LOCAL,
        'for name in ("weight", "bias") if layer.spec.bias else ("weight",):',
        'for name in ("weight",):',
        DESCENT + "[dense-0.0]",
    ),
    Mutant(
        "shape of the weight not put back",
        LOCAL,
        "weight = rule.restore(module, weight).reshape(shape)",
        "weight = weight.reshape(shape)",
        SAME + "[transposed]",
    ),
    Mutant(
        "weight in several modules rebuilt",
        RECONSTRUCT,
        "if any(places[p] > 1 for p in layer.parameters)",
        "if any(places[p] > 9 for p in layer.parameters)",
        TEST + "test_parameters_in_several_modules_stay_as_they_are",
    ),
    Mutant(
        "the user's own model rebuilt",
        RECONSTRUCT,
        "new = copy.deepcopy(model)\n    found, left",
        "new = model\n    found, left",
        SAME + "[dense]",
    ),
    Mutant(
        "hooks left on the folded model",
        RECONSTRUCT,
        "                del hooks[key]\n",
        "                hooks[key]\n",
        SAME + "[dense]",
    ),
)
