"""Mistakes in steps of a PyTorch model: schedule, micro-batches, clip, momentum, guard, ranks."""

from mutants.mutant import Mutant

CURVATURE = "backends/ngd_torch/_curvature.py"
GUARD = "backends/ngd_torch/_guard.py"
OPTIMIZERS = "backends/ngd_torch/_optimizers.py"
DEALT = "ngd_core/methods/dealt.py"
RANKS = "backends/ngd_torch/_ranks.py"
REPORT = "backends/ngd_torch/_report.py"
ROWS = "backends/ngd_torch/_rows.py"
SHARDS = "backends/ngd_torch/_shards.py"
SOFIM = "backends/ngd_torch/_sofim.py"
ATTENTION = "backends/ngd_torch/_weighted_attention.py"
NORMS = "backends/ngd_torch/_weighted_norms.py"
TEST_KINDS = "tests/backends/test_torch_weighted_kinds.py::"
JOINED = "backends/ngd_torch/_joined.py"
OPS = "backends/ngd_torch/_ops.py"
TEST_SOFIM = "tests/backends/test_torch_sofim.py::"
TEST = "tests/backends/test_torch_optimizers.py::"
TEST_CHANGES = "tests/backends/test_torch_changes.py::"
TEST_DISTRIBUTED = "tests/backends/test_torch_distributed.py::"
TEST_MALFORMED = "tests/backends/test_torch_malformed.py::"
TEST_MOVES = "tests/backends/test_torch_moves.py::"
TEST_PASSES = "tests/backends/test_torch_passes.py::"
TEST_REPORT = "tests/backends/test_torch_report.py::"
TEST_STAGGER = "tests/backends/test_torch_stagger.py::"
TEST_WEIGHTED = "tests/backends/test_torch_weighted.py::"
WEIGHTED = "backends/ngd_torch/_weighted.py"
TEST_ROWS = "tests/backends/test_torch_rows.py::"

MUTANTS = (
    Mutant(
        "all layers refreshed at the begin of a staggered interval",
        CURVATURE,
        "if self.stagger and self.steps >= self.inverse_every:",
        "if self.stagger and self.steps > 10 * self.inverse_every:",
        TEST_STAGGER + "test_each_layer_is_refreshed_at_its_own_step",
    ),
    Mutant(
        "staggered refreshes at steps that take statistics",
        CURVATURE,
        "return [(at + (at % factor_every == 0)) % inverse_every for at in even]",
        "return [at % inverse_every for at in even]",
        TEST_STAGGER + "test_turns_are_even_and_seldom_at_statistics[3-100-10]",
    ),
    Mutant(
        "gradient at the input weighted too",
        WEIGHTED,
        "to_x = g @ weight.to(g.dtype)",
        "to_x = (g * per_row(v, g)) @ weight.to(g.dtype)",
        TEST_WEIGHTED + "test_the_gradient_is_the_weighted_sum_of_per_example_gradients[6]",
    ),
    Mutant(
        "gradient of the bias not weighted",
        WEIGHTED,
        "to_bias = v.to(g.dtype) @ (g if",
        "to_bias = torch.ones_like(v).to(g.dtype) @ (g if",
        TEST_WEIGHTED + "test_the_gradient_is_the_weighted_sum_of_per_example_gradients[6]",
    ),
    Mutant(
        "bias of a convolution not weighted",
        WEIGHTED,
        "to_bias = v.to(g.dtype) @ g.flatten(2).sum(2)",
        "to_bias = g.flatten(2).sum((0, 2))",
        TEST_WEIGHTED + "test_steps_are_those_of_weighted_sums_formed_beside_the_gradients"
        "[position-float64]",
    ),
    Mutant(
        "second batch of a step weighted like the first",
        CURVATURE,
        "if spec.name in self.seen and self._begun(spec.name):",
        "if False:",
        TEST_WEIGHTED + "test_two_batches_in_one_step_are_refused_as_ever",
    ),
    Mutant(
        "report counts a weighted sum that is the gradient",
        REPORT,
        "0.0 if in_backward else cost.weighting",
        "cost.weighting",
        TEST_WEIGHTED + "test_the_report_counts_no_sum_beside_the_gradient",
    ),
    Mutant(
        "older statistics forgotten at every micro-batch",
        CURVATURE,
        "decay = 1.0 if name in self.seen else self.decay",
        "decay = self.decay",
        "tests/backends/test_torch_capture.py::"
        "test_steps_do_not_depend_on_how_the_batch_comes[exact]",
    ),
    Mutant(
        "statistics at the last step of an interval",
        CURVATURE,
        "return every or self._due(self.factor_every)",
        "return every or due(self.steps + 1, self.factor_every, early=self.early)",
        TEST + "test_the_schedule_is_that_of_the_core[2-3-False]",
    ),
    Mutant(
        "refresh at the last step of an interval",
        CURVATURE,
        "whole = self.due or self._due(self.inverse_every)",
        "whole = self.due or due(self.steps + 1, self.inverse_every, early=self.early)",
        TEST + "test_the_schedule_is_that_of_the_core[2-3-False]",
    ),
    Mutant(
        "early steps asked for and forgotten",
        CURVATURE,
        "return bool(due(self.steps, every, early=self.early))",
        "return bool(due(self.steps, every, early=False))",
        TEST + "test_the_schedule_is_that_of_the_core[3-5-True]",
    ),
    Mutant(
        "share of the vectors left out",
        CURVATURE,
        "hyper = Hyper(damping=self.damping, decay=decay, share=share)",
        "hyper = Hyper(damping=self.damping, decay=decay)",
        TEST_PASSES + "test_some_examples_and_one_vector_at_a_time[kfac-twice-exact]",
    ),
    Mutant(
        "schedule goes on over a first step that is not finite",
        CURVATURE,
        "        if finite:\n",
        "        if True:\n",
        TEST_MALFORMED + "test_each_at_the_first_step[SNGD-NaN batch]",
    ),
    Mutant(
        "labels sampled from the beginning when layers are added",
        CURVATURE,
        "        self.capture.generators = generators\n        self.capture.switch",
        "        self.capture.switch",
        TEST_CHANGES + "test_sampled_labels_go_on_where_they_were",
    ),
    Mutant(
        "statistics of all layers lost when one is added",
        CURVATURE,
        "spec: self.state.layers[stay[spec]] if spec in stay else state",
        "spec: state",
        TEST_CHANGES + "test_layers_added_later_are_trained_and_old_ones_keep_their_state[kfac]",
    ),
    Mutant(
        "hooks of before left on the model",
        CURVATURE,
        "        self.capture.close()\n        self.capture = self._capture(",
        "        self.capture = self._capture(",
        TEST_CHANGES + "test_growing_leaves_no_old_hooks",
    ),
    Mutant(
        "stream of the labels not restored",
        CURVATURE,
        "generators[torch.device(device)].set_state(state.cpu())",
        "generators[torch.device(device)].get_state()",
        TEST + "test_a_stored_state_goes_on_bit_by_bit[kfac]",
    ),
    Mutant(
        "damping of now not stored",
        CURVATURE,
        'self.damping, self.decay = stored["damping"], stored["decay"]',
        'self.decay = stored["decay"]',
        TEST + "test_a_damping_set_later_is_in_copies_and_stored_states",
    ),
    Mutant(
        "factors in half precision",
        CURVATURE,
        "torch.float64 if like.dtype == torch.float64 else torch.float32",
        "like.dtype",
        TEST + "test_half_precision_keeps_factors_in_float32",
    ),
    Mutant(
        "first power of the rates in the clip",
        OPTIMIZERS,
        'info.measures["inner"] * rate**2',
        'info.measures["inner"] * rate',
        TEST + "test_kl_clip_bounds_the_step",
    ),
    Mutant(
        "clip by the largest layer in place of the sum",
        OPTIMIZERS,
        "torch.stack(parts).sum()",
        "torch.stack(parts).max()",
        TEST + "test_kl_clip_bounds_the_step",
    ),
    Mutant(
        "clip left out",
        GUARD,
        "torch.mul(direction, scale, out=",
        "torch.mul(direction, 1, out=",
        TEST_MOVES + "test_a_move_is_its_formula_in_every_layout[contiguous-contiguous-0.9]",
    ),
    Mutant(
        "rate of the first group for all",
        OPTIMIZERS,
        'lr, mu = group["lr"], group["momentum"]',
        'lr, mu = self.param_groups[0]["lr"], group["momentum"]',
        TEST + "test_groups_and_a_scheduler",
    ),
    Mutant(
        "weight decay without the rate",
        OPTIMIZERS,
        '1 - lr * group["weight_decay"]',
        '1 - group["weight_decay"]',
        TEST + "test_groups_and_a_scheduler",
    ),
    Mutant(
        "gradient that is not finite hidden from the scaler",
        OPTIMIZERS,
        "p.grad.copy_(torch.where(torch.isfinite(p.grad).all(), d, p.grad))",
        "p.grad.copy_(d)",
        TEST_MALFORMED
        + "test_a_preconditioner_leaves_what_is_not_finite_for_the_scaler_to_see[False]",
    ),
    Mutant(
        "closure without gradients",
        OPTIMIZERS,
        "            with torch.enable_grad():\n",
        "            with torch.no_grad():\n",
        TEST + "test_a_closure",
    ),
    Mutant(
        "refused group kept",
        OPTIMIZERS,
        "            self.param_groups.pop()\n            raise",
        "            raise",
        TEST_CHANGES + "test_a_parameter_outside_the_model_is_refused[later]",
    ),
    Mutant(
        "momentum moves where the step is left out",
        GUARD,
        "found_inf=(~ok).float(),",
        "found_inf=None,",
        TEST_MALFORMED + "test_each_at_the_first_step[KFAC-rate is infinite]",
    ),
    Mutant(
        "parameter shrinks where the step is left out",
        GUARD,
        "torch.where(ok, shrink * one, one)",
        "shrink * one",
        TEST_MOVES + "test_one_bad_move_keeps_all[vouched-contiguous]",
    ),
    Mutant(
        "direction taken as it lies in memory",
        GUARD,
        "elif direction.stride() != p.stride():",
        "elif False:",
        TEST_MOVES + "test_a_move_is_its_formula_in_every_layout[contiguous-turned-None]",
    ),
    Mutant(
        "copy of a parameter with gaps not written back",
        GUARD,
        "move.p.copy_(copy.p)",
        "pass",
        TEST_MOVES + "test_a_move_is_its_formula_in_every_layout[with gaps-contiguous-None]",
    ),
    Mutant(
        "codes of the directions not looked at",
        GUARD,
        "found = found if vouched is None else found & vouched.to(found.device)",
        "found = found & True",
        TEST_MALFORMED + "test_each_at_the_first_step[KFAC-a NaN gradient]",
    ),
    Mutant(
        "gradients not looked at, directions alone",
        GUARD,
        "found = found & torch.isfinite(_sizes(grads)).all()",
        "found = found & True",
        TEST_MOVES + "test_one_bad_move_keeps_all[gradient that nothing vouches for-contiguous]",
    ),
    Mutant(
        "rate not in the bound on what will be",
        GUARD,
        "abs(shrink) * _sizes([move.p for move in some]) + lr * reach",
        "abs(shrink) * _sizes([move.p for move in some]) + reach",
        TEST_MALFORMED + "test_each_at_the_first_step[KFAC-rate leads out]",
    ),
    Mutant(
        "new direction damped by the momentum",
        GUARD,
        "dampening=0.0,",
        "dampening=float(mu),",
        TEST + "test_momentum_is_heavy_ball[None]",
    ),
    Mutant(
        "weight decay of what has moved already",
        GUARD,
        "torch._foreach_mul_(ps, torch.where(ok, shrink * one, one))",
        "torch._foreach_mul_(ps, torch.where(ok, (2 - shrink) * one, one))",
        TEST + "test_groups_and_a_scheduler",
    ),
    Mutant(
        "directions of the first group for all",
        SOFIM,
        "directions[len(moves) + k]",
        "directions[k]",
        TEST + "test_sofim_is_its_definition_over_groups_and_through_a_checkpoint",
    ),
    Mutant(
        "weight decay of SOFIM without the rate",
        SOFIM,
        '1 - group["lr"] * group["weight_decay"]',
        '1 - group["weight_decay"]',
        TEST + "test_sofim_is_its_definition_over_groups_and_through_a_checkpoint",
    ),
    Mutant(
        "momentum begins anew when a group is added",
        SOFIM,
        "tensors={**fresh.tensors, **self.moments.tensors}",
        "tensors={**self.moments.tensors, **fresh.tensors}",
        TEST_CHANGES + "test_sofim_takes_further_groups_and_keeps_its_momentum",
    ),
    Mutant(
        "examples of a layer norm count alike",
        NORMS,
        "deviation = deviation * per_row(v, deviation)",
        "deviation = deviation * per_row(v, deviation).mean()",
        TEST_KINDS + "test_layer_norms",
    ),
    Mutant(
        "examples of a group norm count alike",
        NORMS,
        "v.to(u.dtype) @ u.view(n, c)",
        "v.mean().to(u.dtype) * u.view(n, c).sum(0)",
        TEST_KINDS + "test_group_norms",
    ),
    Mutant(
        "weights of the query for key and value too",
        ATTENTION,
        "g.shape[-1] // parts) * v)",
        "g.shape[-1] // parts) * v[:, :1])",
        TEST_KINDS + "test_attention[itself]",
    ),
    Mutant(
        "squares that vanish in float32 are lost",
        OPS,
        "return square if SQUARES[0] <= float(square) <= SQUARES[1] else PURE.square(x, xp=xp)",
        "return square",
        TEST_SOFIM + "test_squares_are_those_in_float64[1000-1e-25]",
    ),
    Mutant(
        "squares behind the last whole block left out",
        OPS,
        "square = PURE.square(norms, xp=xp) + PURE.square(flat[whole:], xp=xp)",
        "square = PURE.square(norms, xp=xp)",
        TEST_SOFIM + "test_squares_are_those_in_float64[1000-1.0]",
    ),
    Mutant(
        "a divisor that float32 does not have",
        OPS,
        "if DIVISORS[0] <= abs(number) <= DIVISORS[1]:",
        "if number:",
        TEST_SOFIM + "test_quotients_are_those_in_float64[1e-310]",
    ),
    Mutant(
        "a rate that float32 does not have",
        SOFIM,
        "if LIMITS[0] <= float(divisor) <= LIMITS[1]:",
        "if float(divisor):",
        TEST_SOFIM + "test_steps_are_the_quotient_whatever_its_divisor[dtype0-1e-40-1e-30]",
    ),
    Mutant(
        "momentum handed out is the one that goes on",
        JOINED,
        "_replace(moment=x.clone())",
        "_replace(moment=x)",
        TEST_SOFIM + "test_momentum_that_was_handed_out_stays",
    ),
    Mutant(
        "a gradient that was refused is stepped along",
        SOFIM,
        "vouched = torch.stack(taken).all()",
        "vouched = torch.stack(taken).any() | True",
        TEST_SOFIM + "test_a_refused_gradient_leaves_the_momentum_as_it_was",
    ),
    Mutant(
        "statistics counted at every step",
        REPORT,
        "(statistics + further) / often + weighting",
        "statistics + further + weighting",
        TEST_REPORT + "test_whole_steps_cost_what_the_report_says[KFAC-mc]",
    ),
    Mutant(
        "refresh counted at every step",
        REPORT,
        "cost.refresh / curvature.inverse_every",
        "cost.refresh",
        TEST_REPORT + "test_the_table_as_text",
    ),
    Mutant(
        "forward pass counted for every vector",
        REPORT,
        "vectors * cost.own / 3",
        "vectors * cost.own * 2 / 3",
        TEST_REPORT + "test_whole_steps_cost_what_the_report_says[KFAC-mc]",
    ),
    Mutant(
        "bytes of float64 taken for those of float32",
        REPORT,
        '"bytes": sum(x.numel() * x.element_size() for x in arrays.values())',
        '"bytes": sum(x.numel() * 4 for x in arrays.values())',
        TEST_REPORT + "test_memory_is_the_state_s[KFAC-0.0]",
    ),
    Mutant(
        "frozen parameter told as uncovered",
        REPORT,
        'found[name] = untrained if why in UNTRAINED else "uncovered"',
        'found[name] = "uncovered"',
        TEST_REPORT + "test_every_parameter_comes_exactly_once",
    ),
    Mutant(
        "cheapest layer dealt out first",
        DEALT,
        "key=lambda spec: (-_cost(spec), spec.name)",
        "key=lambda spec: (_cost(spec), spec.name)",
        "tests/core/test_dealt.py::test_layers_are_dealt_out_evenly",
    ),
    Mutant(
        "diagonal factor counted as a matrix",
        DEALT,
        'columns = spec.columns if spec.kind == "embedding" else spec.columns**3',
        "columns = spec.columns**3",
        "tests/core/test_dealt.py::test_layers_are_dealt_out_evenly",
    ),
    Mutant(
        "bucket closed when it is too full already",
        RANKS,
        "sum(sizes[j] for j in some) + sizes[k] > BUCKET",
        "sum(sizes[j] for j in some) > BUCKET",
        TEST_DISTRIBUTED + "test_buckets_hold_all_in_order_and_no_more_than_fits",
    ),
    Mutant(
        "last bucket lost",
        RANKS,
        "    if some:\n        yield some\n",
        "",
        TEST_DISTRIBUTED + "test_buckets_hold_all_in_order_and_no_more_than_fits",
    ),
    Mutant(
        "averages of ranks weigh alike, whatever their examples",
        RANKS,
        "x * torch.where(totals[spec] > 0, weights[spec] / totals[spec], 0.0)",
        "x / self.group.size",
        TEST_DISTRIBUTED + "test_unequal_batches_weigh_by_their_examples[kfac]",
    ),
    Mutant(
        "parts of a spread momentum taken for copies",
        SHARDS,
        "if not placement.is_replicate():",
        "if placement.is_replicate():",
        TEST_DISTRIBUTED + "test_sharded_ranks_are_one_process[2-sofim-None]",
    ),
    Mutant(
        "gradient elsewhere in memory taken for what the rows made",
        ROWS,
        "            and grad.data_ptr() == self.made.data_ptr()\n",
        "",
        TEST_ROWS + "test_a_gradient_that_is_no_longer_the_product_goes_the_usual_way[replaced]",
    ),
    Mutant(
        "what was written to a gradient not looked at",
        ROWS,
        "(self.x._version, self.g._version, grad._version) == self.versions",
        "(self.x._version, self.g._version) == self.versions[:2]",
        TEST_ROWS
        + "test_a_gradient_that_is_no_longer_the_product_goes_the_usual_way[written_as_it_was]",
    ),
    Mutant(
        "rows given for weights of several modules",
        ROWS,
        "and not layer.others",
        "and True",
        TEST_ROWS + "test_a_shared_weight_goes_the_usual_way",
    ),
    Mutant(
        "rows kept after the step",
        "backends/ngd_torch/_curvature.py",
        "        self.records.clear()\n        self.rows.clear()\n",
        "        self.records.clear()\n",
        TEST_ROWS + "test_no_rows_outlive_a_step_and_no_optimizer_its_model",
    ),
    Mutant(
        "rows watched on steps with statistics alone",
        "backends/ngd_torch/_curvature.py",
        "return self.wanted() or (self._factoring and not self.capture.compiled)",
        "return self.wanted()",
        TEST_ROWS + "test_twenty_steps_are_those_of_the_usual_optimizer[mc]",
    ),
)
