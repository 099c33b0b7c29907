"""How PyTorch's modules become layers of the core: one rule for each type of module."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ngd_core import Conv2dGeometry, LayerSpec, factors
from ngd_torch._norms import NORMS
from ngd_torch._parts import (
    attention_parts,
    cell_parts,
    examples_first,
    recurrent_parts,
    time_first,
)
from ngd_torch._rule import LayerRule
from ngd_torch._shards import is_sharded, whole

__all__ = ["RULES", "UNTRAINED", "Layer", "LayerRule", "by_rows", "find_layers"]

UNTRAINED = ("frozen", "not among the optimizer's parameters")
"""Why a parameter is in no layer though nothing is wrong with it."""
OTHER_BIAS = "its weight is shared with a module of another bias, or of none"


def _trained_bias(module: Any) -> bool:
    return module.bias is not None and module.bias.requires_grad


def _dense(module: Any, name: str, sharing: str, inputs: int, outputs: int) -> LayerSpec:
    return LayerSpec(
        name,
        "dense",
        inputs,
        outputs,
        bias=_trained_bias(module),
        sharing=sharing,  # type: ignore[arg-type]
    )


def _linear(module: nn.Linear, name: str, sharing: str) -> LayerSpec:
    return _dense(module, name, sharing, module.in_features, module.out_features)


def _padding(module: Any) -> Any:
    """Give the padding of the layer's record: none if the input is padded by hand."""
    if module.padding_mode != "zeros":
        return "valid"
    if isinstance(module.padding, str):
        return module.padding
    pairs = [(p, p) for p in module.padding]
    return tuple([(0, 0)] * (2 - len(pairs)) + pairs)


def _pair(values: tuple[int, ...], first: int) -> tuple[int, int]:
    return (first, values[0]) if len(values) == 1 else (values[0], values[1])


def _conv(module: Any, name: str, sharing: str) -> LayerSpec:
    return LayerSpec(
        name,
        "conv2d",
        module.in_channels,
        module.out_channels,
        bias=_trained_bias(module),
        sharing=sharing,  # type: ignore[arg-type]
        geometry=Conv2dGeometry(
            _pair(module.kernel_size, 1),
            _pair(module.stride, 1),
            _pair(module.dilation, 1),
            _padding(module),
            module.groups,
        ),
    )


def _padded(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Input with a border that is not of zeros, as the module's own forward makes it."""
    if module.padding_mode == "zeros" or module.padding == "valid":
        return x
    return functional.pad(x, _widths(module), mode=module.padding_mode)


def _widths(module: Any) -> list[int]:
    """Border ``(before, after)``, the last axis first."""
    widths: list[int] = []
    sizes = zip(module.kernel_size, module.dilation, strict=True)
    for k, (size, dilation) in reversed(list(enumerate(sizes))):
        if module.padding == "same":
            total = dilation * (size - 1)
            widths += [total // 2, total - total // 2]
        else:
            widths += [module.padding[k]] * 2
    return widths


def _patches(
    x: torch.Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> torch.Tensor:
    """Rows that each output position reads, ``(N, T, channels * taps)``."""
    axes = len(kernel)
    for k, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + k, gap * (size - 1) + 1, step)[..., ::gap]
    x = x.movedim(1, 1 + axes)
    return x.flatten(1 + axes).flatten(1, axes)


def _rows(module: Any, name: str, sharing: str) -> LayerSpec:
    """Describe a convolution by its rows: one of a single tap over channels and taps together."""
    return LayerSpec(
        name,
        "conv2d",
        module.in_channels * math.prod(module.kernel_size),
        module.out_channels,
        bias=_trained_bias(module),
        sharing=sharing,  # type: ignore[arg-type]
        geometry=Conv2dGeometry(1, groups=module.groups),
    )


def _positions(_: Any, g: torch.Tensor) -> torch.Tensor:
    return g.flatten(2).mT


def _one_tap(_: Any, weight: torch.Tensor) -> torch.Tensor:
    return weight.flatten(1)[..., None, None]


def _conv3d_rows(module: nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    if module.padding_mode == "zeros" and module.padding != "valid":
        x = functional.pad(x, _widths(module))
    return _patches(_padded(module, x), module.kernel_size, module.stride, module.dilation)


def _transposed_rows(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Rows of the convolution with the kernel turned round, over an input with zeros between."""
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    spread = x.new_zeros((*x.shape[:2], *sizes))
    spread[(..., *(slice(None, None, s) for s in stride))] = x
    widths: list[int] = []
    for k in reversed(range(len(kernel))):
        edge = dilation[k] * (kernel[k] - 1) - module.padding[k]
        widths += [edge, edge + module.output_padding[k]]
    return _patches(functional.pad(spread, widths), kernel, (1,) * len(kernel), dilation)


def _turned(module: Any, weight: torch.Tensor) -> torch.Tensor:
    """Weight of that convolution, group by group."""
    _, o, *taps = weight.shape
    weight = weight.flip(tuple(range(2, weight.ndim)))
    turned = weight.reshape(module.groups, -1, o, *taps).transpose(1, 2)
    return turned.reshape(module.out_channels, -1, 1, 1)


def _turned_back(module: Any, weight: torch.Tensor) -> torch.Tensor:
    taps = module.kernel_size
    i, o = module.in_channels, module.out_channels // module.groups
    turned = weight.reshape(module.groups, o, -1, *taps).transpose(1, 2)
    return turned.reshape(i, o, *taps).flip(tuple(range(2, 2 + len(taps))))


def _flat(_: Any, x: torch.Tensor) -> torch.Tensor:
    """Signal as an image of height 1, for input, output and kernel alike."""
    return x.unsqueeze(-2)


def _embedding(module: nn.Embedding, name: str, _: str) -> LayerSpec:
    return LayerSpec(name, "embedding", module.num_embeddings, module.embedding_dim, bias=False)


def _tokens(module: nn.Embedding, x: torch.Tensor) -> torch.Tensor:
    """Tokens, those without a gradient out of the vocabulary, where they count as no input."""
    return x if module.padding_idx is None else torch.where(x == module.padding_idx, -1, x)


def _no_gradient(module: nn.Embedding) -> str | None:
    if module.sparse:
        return "its gradient is sparse"
    if module.scale_grad_by_freq:
        return "its gradient is scaled by frequency"
    return None


TRANSPOSED_KINDS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TRANSPOSED = LayerRule(_rows, _transposed_rows, _positions, _turned, _turned_back, by_example=True)
RULES: Mapping[type, LayerRule] = {
    nn.Linear: LayerRule(_linear),
    nn.Embedding: LayerRule(_embedding, inputs=_tokens, why_not=_no_gradient),
    **NORMS,
    nn.Conv1d: LayerRule(
        _conv,
        inputs=lambda module, x: _flat(module, _padded(module, x)),
        outputs=_flat,
        layout=_flat,
        restore=lambda _, weight: weight.squeeze(-2),
    ),
    nn.Conv2d: LayerRule(_conv, inputs=_padded),
    nn.Conv3d: LayerRule(_rows, _conv3d_rows, _positions, _one_tap, by_example=True),
    **dict.fromkeys(TRANSPOSED_KINDS, TRANSPOSED),
    nn.MultiheadAttention: LayerRule(_linear, parts=attention_parts),
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), LayerRule(_linear, parts=recurrent_parts)),
    **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), LayerRule(_linear, parts=cell_parts)),
}
"""Rules for PyTorch's own modules."""


class _Padded:
    """Module with another output padding."""

    def __init__(self, module: nn.Module, output_padding: tuple[int, ...]) -> None:
        self.module, self.output_padding = module, output_padding

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


class Layer(NamedTuple):
    """A layer of a model: its parameters or rows of them, how it is read, other modules."""

    spec: LayerSpec
    rule: LayerRule
    module: Any
    weight: nn.Parameter
    bias: nn.Parameter | None
    rows: slice | None = None
    bias_rows: slice | None = None
    others: tuple[Layer, ...] = ()
    whole: bool = False  # parts of a batch do not add up to its factors

    def seen_in(self, module: nn.Module) -> Layer:
        """Layer as one of its modules reads it."""
        return next((other for other in self.others if other.module is module), self)

    def called(self, x: torch.Tensor, z: torch.Tensor) -> Layer:
        """Layer with the output padding that a call with ``output_size`` chose."""
        module = self.module
        if not isinstance(module, TRANSPOSED_KINDS) or x.ndim != 2 + len(module.kernel_size):
            return self
        padding = tuple(
            after - ((n - 1) * stride - 2 * pad + gap * (size - 1) + 1)
            for n, after, stride, pad, gap, size in zip(
                x.shape[2:],
                z.shape[2:],
                module.stride,
                module.padding,
                module.dilation,
                module.kernel_size,
                strict=True,
            )
        )
        if padding == tuple(module.output_padding):
            return self
        return self._replace(module=_Padded(module, padding))

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """Weight, and bias if it is part of the block."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def first(self) -> int:
        """First row of the weight that is the layer's."""
        return 0 if self.rows is None else int(self.rows.start)

    def block(self) -> torch.Tensor | None:
        """Gradients of weight and bias as one block, zeros for one; None if neither is there."""
        weight = whole(self.weight.grad)
        bias = None if self.bias is None else whole(self.bias.grad)
        if weight is None:
            if bias is None:
                return None
            weight = torch.zeros(self.weight.shape, dtype=bias.dtype, device=bias.device)
        if self.bias is not None and bias is None:
            bias = weight.new_zeros(self.bias.shape)
        return self.joined(weight, bias)

    def joined(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Block of two tensors of the shapes of the parameters."""
        if bias is not None:
            bias = _cut(bias, self.bias_rows).reshape(-1)
        return factors.join(self.spec, self.rule.layout(self.module, _cut(weight, self.rows)), bias)

    def split(self, block: torch.Tensor) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        """Parameters with their parts of a block."""
        weight, bias = factors.split(self.spec, block)
        shape = _cut(self.weight, self.rows).shape
        yield self.weight, self.rule.restore(self.module, weight).reshape(shape)
        if self.bias is not None and bias is not None:
            yield self.bias, bias.reshape(_cut(self.bias, self.bias_rows).shape)

    def put(self, block: torch.Tensor, parts: dict[nn.Parameter, torch.Tensor]) -> None:
        """Write a block into whole parameters; rows of no layer keep their gradient."""
        for p, part in self.split(block):
            rows = self.rows if p is self.weight else self.bias_rows
            if rows is None:
                parts[p] = part
            else:
                parts.setdefault(p, torch.zeros_like(p) if p.grad is None else p.grad.clone())
                parts[p][rows] = part


def _cut(x: torch.Tensor, rows: slice | None) -> torch.Tensor:
    return x if rows is None else x[rows]


def _candidates(
    model: nn.Module, rules: Mapping[type, LayerRule]
) -> Iterator[tuple[str, Any, LayerRule | None]]:
    """Modules with their names and rules, those that hold several layers as these."""
    turned = time_first(model)
    for name, module in model.named_modules():
        rule = next((rules[kind] for kind in type(module).__mro__ if kind in rules), None)
        if rule is not None and module in turned:
            rule = examples_first(rule)
        if rule is None or rule.parts is None:
            yield name, module, rule
            continue
        for part, layer in rule.parts(module):
            yield f"{name}.{part}".lstrip("."), layer, rule


def find_layers(
    model: nn.Module,
    rules: Mapping[type, LayerRule],
    sharing: str,
    kinds: tuple[str, ...],
    trained: Collection[nn.Parameter] | None = None,
) -> tuple[list[Layer], dict[str, str]]:
    """Layers of a model, and for all other parameters why they are in none.

    With `trained` layers are left out of which no parameter is among them.
    """
    layers: dict[tuple[nn.Parameter, int], Layer] = {}
    why: dict[nn.Parameter, str] = {}
    for name, module, rule in _candidates(model, rules):
        own = list(module.parameters(recurse=False))
        reason = f"no rule for {type(module).__name__}" if rule is None else rule.why_not(module)
        weight = getattr(module, "weight", None)
        if rule is None or reason is not None or not isinstance(weight, nn.Parameter):
            why.update(dict.fromkeys(own, reason or "its weight is no parameter"))
            continue
        if rule.parts is not None and is_sharded(weight):
            why.update(dict.fromkeys(own, "it is sharded, and in no layer that is called"))
            continue
        if not weight.requires_grad or not (trained is None or any(p in trained for p in own)):
            continue
        if not weight.numel():
            why.update(dict.fromkeys(own, "its weight is empty"))
            continue
        spec = rule.spec(module, name or type(module).__name__, sharing)
        rows, bias_rows = getattr(module, "rows", None), getattr(module, "bias_rows", None)
        key = (weight, 0 if rows is None else rows.start)
        if spec.kind not in kinds:
            why.update(dict.fromkeys(own, f"the method has nothing for the kind {spec.kind!r}"))
            continue
        bias: nn.Parameter | None = module.bias if spec.bias else None
        layer = Layer(spec, rule, module, weight, bias, rows, bias_rows)
        if key in layers:
            first, both = layers[key], _shared(layers[key], layer)
            if both is None:
                why[weight] = f"shared with {first.spec.name!r}, a layer of another kind"
                continue
            apart = {first.bias, layer.bias} - {both.bias, None}
            why.update(dict.fromkeys(apart, OTHER_BIAS))
            layer = both
        layers[key] = layer
    found = [layer for layer in layers.values() if not any(p in why for p in layer.parameters)]
    covered = {p for layer in found for p in layer.parameters}
    uncovered = {}
    for name, p in model.named_parameters():
        if not p.requires_grad or not (trained is None or p in trained):
            uncovered[name] = UNTRAINED[p.requires_grad]
        elif p not in covered:
            uncovered[name] = why.get(p, "its weight has no curvature")
    return found, uncovered


def _shared(first: Layer, other: Layer) -> Layer | None:
    """One layer of two modules with one weight, or None where they do not go together."""
    if first.spec.kind == "dense" and other.spec.kind == "embedding":
        first, other = other._replace(others=()), first
    name, rule = first.spec.name, other.rule
    if first.spec.kind == "embedding" and other.spec.kind == "dense":
        sizes = other.spec.out_features, other.spec.in_features
        if other.others or rule is not RULES[nn.Linear] or sizes != first.spec.block_shape[::-1]:
            return None
        first, other = first._replace(whole=True), other._replace(whole=True)
    elif rule is not first.rule or other.spec.block_shape[:-1] != first.spec.block_shape[:-1]:
        return None
    if first.bias is not other.bias:
        first = first._replace(spec=replace(first.spec, bias=False), bias=None)
    if other.spec.geometry != first.spec.geometry and other.spec.geometry is not None:
        rule = by_rows(rule, other.spec.geometry)
    other = other._replace(spec=replace(other.spec, name=name), rule=rule)
    return first._replace(others=(*first.others, other))


def by_rows(rule: LayerRule, geometry: Conv2dGeometry) -> LayerRule:
    """Rule of a convolution whose records are rows, not images: positions of any number of them."""

    def inputs(module: Any, x: torch.Tensor) -> torch.Tensor:
        a = rule.inputs(module, x)
        if a.ndim == 3:
            return a
        (top, bottom), (left, right) = geometry.pads(*a.shape[2:])
        a = functional.pad(a, (left, right, top, bottom))
        kernel, stride, dilation = geometry.kernel_size, geometry.stride, geometry.dilation
        return functional.unfold(a, kernel, dilation, 0, stride).mT

    def outputs(module: Any, g: torch.Tensor) -> torch.Tensor:
        g = rule.outputs(module, g)
        return g if g.ndim == 3 else g.flatten(2).mT

    return replace(rule, inputs=inputs, outputs=outputs, by_example=True)
