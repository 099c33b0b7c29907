"""Mistakes in reading PyTorch's modules: borders, kernels, groups, norms, gates, time."""

from mutants.mutant import Mutant

LAYERS = "backends/ngd_torch/_layers.py"
NORMS = "backends/ngd_torch/_norms.py"
PARTS = "backends/ngd_torch/_parts.py"
UNROLLED = "backends/ngd_torch/_unrolled.py"
EACH = "tests/backends/test_torch_capture.py::test_records_give_the_gradient_of_each_example"
KINDS = "tests/backends/test_torch_kinds.py::test_an_example_has_its_own_gradient"
TEST_KINDS = "tests/backends/test_torch_kinds.py::"
TEST_UNROLLED = "tests/backends/test_torch_unrolled.py::"
PARTWISE = TEST_UNROLLED + "test_records_give_the_gradient_of_each_example"
PLAIN = TEST_UNROLLED + "test_a_recorded_pass_is_the_plain_one"

MUTANTS = (
    Mutant(
        "dilation left out of a border that keeps the size",
        LAYERS,
        "total = dilation * (size - 1)",
        "total = size - 1",
        EACH + "[conv3d same-mean]",
    ),
    Mutant(
        "odd cell of the border before the image",
        LAYERS,
        "widths += [total // 2, total - total // 2]",
        "widths += [total - total // 2, total // 2]",
        EACH + "[replicate, same-mean]",
    ),
    Mutant(
        "axes of the border in the order of the image",
        LAYERS,
        "for k, (size, dilation) in reversed(list(enumerate(sizes))):",
        "for k, (size, dilation) in enumerate(sizes):",
        EACH + "[reflect-mean]",
    ),
    Mutant(
        "padded by hand and by the layer",
        LAYERS,
        '    if module.padding_mode != "zeros":\n        return "valid"\n',
        "",
        EACH + "[circular-mean]",
    ),
    Mutant(
        "padding of a signal across it",
        LAYERS,
        "tuple([(0, 0)] * (2 - len(pairs)) + pairs)",
        "tuple(pairs + [(0, 0)] * (2 - len(pairs)))",
        EACH + "[conv1d-mean]",
    ),
    Mutant(
        "kernel of a transposed convolution not turned round",
        LAYERS,
        "weight = weight.flip(tuple(range(2, weight.ndim)))",
        "weight = weight.clone()",
        EACH + "[transposed 2-D-mean]",
    ),
    Mutant(
        "padding of a transposed convolution as that of a plain one",
        LAYERS,
        "edge = dilation[k] * (kernel[k] - 1) - module.padding[k]",
        "edge = module.padding[k]",
        EACH + "[transposed 2-D-mean]",
    ),
    Mutant(
        "output padding before the image",
        LAYERS,
        "widths += [edge, edge + module.output_padding[k]]",
        "widths += [edge + module.output_padding[k], edge]",
        EACH + "[transposed 1-D-mean]",
    ),
    Mutant(
        "groups of a transposed kernel behind its inputs",
        LAYERS,
        "weight.reshape(module.groups, -1, o, *taps).transpose(1, 2)",
        "weight.reshape(-1, module.groups, o, *taps).transpose(0, 1).transpose(1, 2)",
        KINDS + "[transposed 2-D in groups]",
    ),
    Mutant(
        "fan-in of one group taken for that of all",
        LAYERS,
        "module.in_channels * math.prod(module.kernel_size),",
        "module.in_channels // module.groups * math.prod(module.kernel_size),",
        KINDS + "[conv3d in groups]",
    ),
    Mutant(
        "padding token looked up like any other",
        LAYERS,
        "return x if module.padding_idx is None else",
        "return x if True else",
        EACH + "[language-mean]",
    ),
    Mutant(
        "frozen bias joined to the block",
        LAYERS,
        "return module.bias is not None and module.bias.requires_grad",
        "return module.bias is not None",
        "tests/backends/test_torch_capture.py::test_a_frozen_bias_is_left_out_of_the_block",
    ),
    Mutant(
        "one of two biases joined to a shared weight",
        LAYERS,
        "if first.bias is not other.bias:",
        "if False:",
        KINDS + "[one weight, two biases]",
    ),
    Mutant(
        "stride of the first module for all that share its weight",
        LAYERS,
        "return next((other for other in self.others if other.module is module), self)",
        "return self",
        KINDS + "[conv weight in two modules]",
    ),
    Mutant(
        "factors of a tied table made of parts of the batch",
        LAYERS,
        "first._replace(whole=True), other._replace(whole=True)",
        "first, other",
        TEST_KINDS
        + "test_records_of_some_examples_at_a_time_give_the_same_factors[tied-empirical]",
    ),
    Mutant(
        "running statistics in training",
        NORMS,
        "own = module.training or module.running_mean is None\n",
        "own = module.running_mean is None\n",
        KINDS + "[batch norm 2-D]",
    ),
    Mutant(
        "running statistics taken once more",
        NORMS,
        "    own = module.training or module.running_mean is None\n    mean, var = (None, None) if own else",
        "    own = module.training or module.running_mean is None\n    mean, var = (None, None) if False else",
        TEST_KINDS + "test_running_statistics_are_those_of_a_run_without_us[mc-0.1]",
    ),
    Mutant(
        "unbiased variance of the batch",
        NORMS,
        "functional.batch_norm(x, mean, var, training=own, eps=module.eps).movedim(1, -1)",
        "functional.batch_norm(x, mean, var, training=own, eps=module.eps).movedim(1, -1) * (\n"
        "        1 - x.shape[1] / x.numel()\n"
        "    ) ** 0.5",
        KINDS + "[batch norm 2-D]",
    ),
    Mutant(
        "frozen statistics ignored",
        NORMS,
        "own = module.training or not module.track_running_stats",
        "own = True",
        KINDS + "[instance norm, frozen]",
    ),
    Mutant(
        "channels of the gradient left where they are",
        NORMS,
        "def _channels_last(_: Any, x: torch.Tensor) -> torch.Tensor:\n    return x.movedim(1, -1)",
        "def _channels_last(_: Any, x: torch.Tensor) -> torch.Tensor:\n    return x",
        EACH + "[group norm-mean]",
    ),
    Mutant(
        "no epsilon",
        NORMS,
        "functional.group_norm(x, module.num_groups, eps=module.eps)",
        "functional.group_norm(x, module.num_groups, eps=0.0)",
        EACH + "[group norm-mean]",
    ),
    Mutant(
        "normalised over the last axis alone",
        NORMS,
        "functional.layer_norm(x, shape, eps=module.eps)",
        "functional.layer_norm(x, shape[-1:], eps=module.eps)",
        EACH + "[norm of two axes-mean]",
    ),
    Mutant(
        "biases of query, key and value all the query's",
        PARTS,
        "yield name, part._replace(bias_rows=rows)",
        "yield name, part._replace(bias_rows=slice(0, size))",
        PARTWISE + "[attention]",
    ),
    Mutant(
        "rows of the packed projection counted in full",
        PARTS,
        "return len(range(*(self.rows or slice(None)).indices(len(self.weight))))",
        "return len(self.weight)",
        PARTWISE + "[attention]",
    ),
    Mutant(
        "examples and time swapped in a transformer",
        PARTS,
        "return x.transpose(0, 1) if x.ndim > 2 else x",
        "return x",
        PARTWISE + "[encoder, time first]",
    ),
    Mutant(
        "bias of the inputs joined to the hidden weight",
        PARTS,
        'bias = name.replace("weight", "bias")',
        'bias = name.replace("weight", "bias").replace("hh", "ih")',
        PARTWISE + "[LSTM]",
    ),
    Mutant(
        "output gate before the cell",
        UNROLLED,
        "i, f, g, o = (zi + zh).chunk(4, -1)",
        "i, f, o, g = (zi + zh).chunk(4, -1)",
        PLAIN + "[LSTM-float64]",
    ),
    Mutant(
        "reset gate over the inputs too",
        UNROLLED,
        "n = torch.tanh(n + torch.sigmoid(r + rh) * nh)",
        "n = torch.tanh(torch.sigmoid(r + rh) * (n + nh))",
        PLAIN + "[GRU-float64]",
    ),
    Mutant(
        "update gate turned round",
        UNROLLED,
        "h = n + torch.sigmoid(z + zh) * (h - n)",
        "h = h + torch.sigmoid(z + zh) * (n - h)",
        PLAIN + "[GRU-float64]",
    ),
    Mutant(
        "both directions forwards in time",
        UNROLLED,
        "times = range(len(x))[::-1] if backwards else range(len(x))",
        "times = range(len(x))",
        PLAIN + "[LSTM, deep and both ways-float64]",
    ),
    Mutant(
        "outputs of the way back in the order of their making",
        UNROLLED,
        "torch.stack([outputs[t] for t in range(len(x))])",
        "torch.stack([outputs[t] for t in times])",
        PLAIN + "[LSTM, deep and both ways-float64]",
    ),
    Mutant(
        "hidden states of the way back in the order of their use",
        UNROLLED,
        "for t in sorted(self.inputs)",
        "for t in self.inputs",
        PARTWISE + "[LSTM, deep and both ways]",
    ),
    Mutant(
        "record of the inputs with time first",
        UNROLLED,
        "inputs = products.linear(x.transpose(0, 1), own.w_ih, own.b_ih).unbind(1)",
        "inputs = products.linear(x, own.w_ih, own.b_ih).unbind(0)",
        PARTWISE + "[LSTM]",
    ),
    Mutant(
        "dropout behind the last layer",
        UNROLLED,
        "layer < num_layers - 1:",
        "layer < num_layers:",
        PLAIN + "[GRU, dropout-float64]",
    ),
    Mutant(
        "value projected by the key's rows",
        UNROLLED,
        "first=k * size)",
        "first=min(k, 1) * size)",
        PLAIN + "[attention-float64]",
    ),
    Mutant(
        "value taken from the key",
        UNROLLED,
        "for k, x in enumerate((query, key, value)):",
        "for k, x in enumerate((query, key, key)):",
        PLAIN + "[attention, three inputs-float64]",
    ),
)
