"""Products with weights inside a kernel, brought to light.

`nn.LSTM`, `nn.GRU`, `nn.RNN`, their cells and `nn.MultiheadAttention` never show what enters and
leaves a single weight. At a pass that is recorded, and at no other, the kernel that such a module
calls is replaced by an equal form in which every product with a weight stands alone:

- a recurrent layer is two dense layers, from the input and from the hidden state to all gates, each
  with its own bias; time steps are positions. A projection (``proj_size``) is a third.
- attention is four dense layers: from query, key and value, each a slice of ``in_proj_weight`` if
  that is packed, and to the output. The attention between them is PyTorch's own.

The module's own forward still runs around its kernel, so arguments are checked, unpacked and turned
as ever. Dropout draws the random numbers that the kernel would draw; cuDNN's own dropout between
recurrent layers draws others.

For SNGD the core speaks of one layer of all gates with the inputs ``[a_t, h_(t-1), 1]``; here it
has two, ``[a_t, 1]`` and ``[h_(t-1), 1]``, as PyTorch's weights are two. That is a choice of ours.

A `PackedSequence`, whose examples differ in length, is left to the kernel: it leaves no record.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from types import MethodType
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ngd_torch._weighing import Weigh
from ngd_torch._weighted_attention import CAN_WEIGH, weighted_attention, weighted_product

__all__ = ["Watched", "Watcher", "fused", "watch"]

_ATTENTION = functional.multi_head_attention_forward
_SIGNATURE = inspect.signature(_ATTENTION)
WEIGHTS = ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj_weight")
"""Arguments of attention that are whole weights of layers."""


class Watcher(Protocol):
    """Who records a pass; held by a weak reference."""

    def unrolls(self) -> bool:
        """Tell whether a pass is being recorded."""
        ...

    def turned(self, shape: tuple[int, ...]) -> None:
        """Take note that an input is of shape (time, N)."""
        ...

    def holds(self, weight: Any, first: int) -> bool:
        """Tell whether it has a layer that begins at this row of the weight."""
        ...

    def product(self, weight: Any, first: int, x: torch.Tensor, z: torch.Tensor) -> None:
        """Note inputs and outputs of that layer, examples first."""
        ...

    def weighing(self, weight: Any, first: int) -> Weigh | None:
        """Weights of the rows of that layer's input, if its gradient is to have them."""
        ...


class Watched(NamedTuple):
    """One watcher of one module."""

    module: weakref.ref[nn.Module]
    watcher: weakref.ref[Any]

    def remove(self) -> None:
        """Undo `watch`; where nobody watches any more the module's own forward stands again."""
        module = self.module()
        if module is None:
            return
        others = [one for one in _watchers(module) if one.watcher is not self.watcher]
        module.__dict__[_WATCHERS] = others
        if not others:
            del module.__dict__[_WATCHERS]
            module.__dict__.pop(_UNROLLED, None)
            if getattr(module.__dict__.get("forward"), "__func__", None) is _forward:
                del module.__dict__["forward"]


FUSED = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_WATCHERS = "_ngd_watchers"
_UNROLLED = "_ngd_unrolled"
"""Whether the last pass through a module, outside of backward passes, was unrolled."""


def watch(module: nn.Module, watcher: weakref.ref[Any]) -> Watched:
    """Show a watcher the products inside a module's kernel.

    A method of the instance goes before that of its class: no pair of hooks could enter a mode and
    leave it whatever happens in between. A copy of the module gets a method bound to the copy, and
    a list that says that it is of another module.

    Parameters
    ----------
    module : nn.Module
        Of a kind that calls one of the kernels known here.
    watcher : weak reference to Watcher
        Asked at each call.

    Returns
    -------
    Watched
        Its ``remove`` undoes it.
    """
    watched = Watched(weakref.ref(module), watcher)
    module.__dict__[_WATCHERS] = [*_watchers(module), watched]
    module.__dict__.setdefault("forward", MethodType(_forward, module))
    return watched


def fused(model: nn.Module, weights: Container[Any]) -> Iterator[nn.Module]:
    """Modules of a model that call a kernel known here with one of these weights."""
    for module in model.modules():
        if isinstance(module, FUSED) and any(p in weights for p in module.parameters()):
            yield module


def _watchers(module: nn.Module) -> list[Watched]:
    found = module.__dict__.get(_WATCHERS, ())
    return [one for one in found if one.module() is module and one.watcher() is not None]


# not traced: a compiled model calls this between its graphs
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    found = [watcher for one in _watchers(module) if (watcher := one.watcher()) is not None]
    again = torch._C._current_graph_task_id() != -1  # a checkpoint computes its segment again
    if torch.is_grad_enabled() and not again:
        found = [watcher for watcher in found if watcher.unrolls()]
        module.__dict__[_UNROLLED] = bool(found)
    if not torch.is_grad_enabled() or not module.__dict__.get(_UNROLLED, False):
        return type(module).forward(module, *args, **kwargs)
    first = args[0] if args else kwargs.get("query", kwargs.get("input"))
    time_first = not getattr(module, "batch_first", True)
    if time_first and isinstance(first, torch.Tensor) and first.ndim == 3:
        for watcher in found:
            watcher.turned(tuple(first.shape[:2]))
    with _Unrolling(_Products(found)):
        return type(module).forward(module, *args, **kwargs)


class _Unrolling(TorchFunctionMode):  # type: ignore[misc]
    """Replaces the kernels called within."""

    def __init__(self, products: _Products) -> None:
        super().__init__()
        self.products = products

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is _ATTENTION:
            arguments = _SIGNATURE.bind(*args, **(kwargs or {})).arguments
            if self.products.weigh_all(arguments):
                return weighted_attention(self.products.weighing, arguments)
            return _attention(self.products, **arguments)
        name = getattr(function, "__name__", "")
        if name in _CELLS and len(args) == 6:
            return _one_step(self.products, name, *args)
        if name in _STEPS and len(args) == 9 and isinstance(args[3], bool):  # no packed sequence
            return _recurrent(self.products, name, *args)
        return function(*args, **(kwargs or {}))


class _Products(NamedTuple):
    """Products with weights, seen by watchers."""

    watchers: Sequence[Watcher]

    def linear(self, x: torch.Tensor, weight: Any, bias: Any, first: int | None = None) -> Any:
        """``x W^T + b`` of examples first, of a slice as large as its columns or of all rows."""
        start = first or 0
        whole = weight
        if first is not None:
            rows = slice(first, first + weight.shape[1])
            weight, bias = weight[rows], None if bias is None else bias[rows]
        z = functional.linear(x, weight, bias)
        weigh = self.weighing(whole, start)
        if weigh is not None:
            rows_first = x.transpose(0, 1), z.transpose(0, 1)
            z = weighted_product(rows_first[0], weight, bias, rows_first[1], [weigh], len(x))
            return z.transpose(0, 1)
        self.read(whole, start, x, z)
        return z

    def weighing(self, weight: Any, first: int) -> Weigh | None:
        """Weights of the examples in a layer's gradient, where one watcher has them."""
        found = [watcher.weighing(weight, first) for watcher in self.watchers]
        return next((weigh for weigh in found if weigh is not None), None)

    def weigh_all(self, arguments: Mapping[str, Any]) -> bool:
        """Tell whether all layers of a call of attention that are held have weights."""
        if not CAN_WEIGH:
            return False
        size = arguments["query"].shape[-1]
        places = [(arguments.get(name), 0) for name in WEIGHTS]
        places += [(arguments.get("in_proj_weight"), k * size) for k in range(3)]
        return all(
            self.weighing(weight, first) is not None
            for weight, first in places
            if weight is not None and any(w.holds(weight, first) for w in self.watchers)
        )

    def read(self, weight: Any, first: int, x: torch.Tensor, z: torch.Tensor) -> None:
        for watcher in self.watchers:
            watcher.product(weight, first, x, z)

    def holds(self, weight: Any) -> bool:
        return any(watcher.holds(weight, 0) for watcher in self.watchers)


def _lstm(zi: torch.Tensor, zh: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
    i, f, g, o = (zi + zh).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(zi: torch.Tensor, zh: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, ...]:
    (r, z, n), (rh, zh, nh) = zi.chunk(3, -1), zh.chunk(3, -1)
    n = torch.tanh(n + torch.sigmoid(r + rh) * nh)
    h = n + torch.sigmoid(z + zh) * (h - n)
    return h, h


def _tanh(zi: torch.Tensor, zh: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, ...]:
    h = torch.tanh(zi + zh)
    return h, h


def _relu(zi: torch.Tensor, zh: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, ...]:
    h = torch.relu(zi + zh)
    return h, h


_STEPS: dict[str, Callable[..., tuple[torch.Tensor, ...]]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _tanh,
    "rnn_relu": _relu,
}
"""New output and state of the sums from input and hidden state, and of the old state."""
_CELLS = {f"{name}_cell": step for name, step in _STEPS.items()}


def _one_step(
    products: _Products,
    name: str,
    x: torch.Tensor,
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
) -> Any:
    """``torch.lstm_cell`` and its kin."""
    x, h, state = _autocast(name, x, *(hx if name == "lstm_cell" else (hx, hx)))
    zi, zh = products.linear(x, w_ih, b_ih), products.linear(h, w_hh, b_hh)
    h, state = _CELLS[name](zi, zh, state)
    return (h, state) if name == "lstm_cell" else h


def _recurrent(
    products: _Products,
    name: str,
    x: torch.Tensor,
    hx: Any,
    weights: Sequence[Any],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, ...]:
    """``torch.lstm`` and its kin."""
    x = x.transpose(0, 1) if batch_first else x
    x, *starts = _autocast(name, x, *(hx if name == "lstm" else (hx, hx)))
    directions = 2 if bidirectional else 1
    each = len(weights) // (num_layers * directions)
    ends = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            own = _Weights.of(weights[k * each : (k + 1) * each], has_biases)
            start = [s[k] for s in starts]
            output, end = _over_time(products, name, x, start, own, backwards=direction == 1)
            outputs.append(output)
            ends.append(end)
        x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        if dropout and train and layer < num_layers - 1:
            x = torch.dropout(x, dropout, train)
    h, state = (torch.stack(parts) for parts in zip(*ends, strict=True))
    x = x.transpose(0, 1) if batch_first else x
    return (x, h, state) if name == "lstm" else (x, h)


class _Weights(NamedTuple):
    """Of one recurrent layer in one direction."""

    w_ih: Any
    w_hh: Any
    b_ih: Any
    b_hh: Any
    w_hr: Any

    @classmethod
    def of(cls, flat: Sequence[Any], has_biases: bool) -> _Weights:
        """Take them from PyTorch's list."""
        b_ih, b_hh, *rest = flat[2:] if has_biases else (None, None, *flat[2:])
        return cls(flat[0], flat[1], b_ih, b_hh, rest[0] if rest else None)


def _over_time(
    products: _Products,
    name: str,
    x: torch.Tensor,
    start: Sequence[torch.Tensor],
    own: _Weights,
    *,
    backwards: bool,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """One layer in one direction, ``(time, N, features)`` to the same."""
    h, state = start
    times = range(len(x))[::-1] if backwards else range(len(x))
    inputs = products.linear(x.transpose(0, 1), own.w_ih, own.b_ih).unbind(1)
    hidden = _Places(products, own.w_hh, inputs[0], len(x))
    projected = _Places(products, own.w_hr, inputs[0], len(x))
    outputs: dict[int, torch.Tensor] = {}
    for t in times:
        zh = hidden.linear(t, h, own.w_hh, own.b_hh)
        h, state = _STEPS[name](inputs[t], zh, state)
        if own.w_hr is not None:
            h = projected.linear(t, h, own.w_hr, None)
        outputs[t] = h
    hidden.read()
    projected.read()
    return torch.stack([outputs[t] for t in range(len(x))]), (h, state)


class _Places:
    """Outputs of one layer at all times, seen as one tensor.

    They come into being one by one, and some may have no gradient. So zeros are added to them, all
    from one tensor, whose gradient is that of all outputs.
    """

    def __init__(self, products: _Products, weight: Any, like: torch.Tensor, times: int) -> None:
        self.products, self.weight = products, weight
        self.inputs: dict[int, torch.Tensor] = {}
        self.zeros: torch.Tensor | None = None
        if weight is not None and products.holds(weight):
            zero = torch.zeros((), dtype=like.dtype, device=like.device, requires_grad=True)
            self.zeros = zero.expand(len(like), times, len(weight))
            self.each = self.zeros.unbind(1)

    def linear(self, t: int, x: torch.Tensor, weight: Any, bias: Any) -> torch.Tensor:
        """One product."""
        z = functional.linear(x, weight, bias)
        self.inputs[t] = x.detach()
        return z if self.zeros is None else z + self.each[t]

    def read(self) -> None:
        """Show all of them."""
        if self.zeros is not None:
            inputs = torch.stack([self.inputs[t] for t in sorted(self.inputs)], 1)
            self.products.read(self.weight, 0, inputs, self.zeros)


def _autocast(name: str, *tensors: torch.Tensor) -> Iterable[torch.Tensor]:
    """Cast inputs as autocast does before the kernel; on CPU it knows that of LSTM alone."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device) or (device == "cpu" and name != "lstm"):
        return tensors
    return [x.to(torch.get_autocast_dtype(device)) for x in tensors]


def _attention(
    products: _Products,
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    in_proj_weight: Any,
    in_proj_bias: Any,
    out_proj_weight: Any,
    out_proj_bias: Any,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    use_separate_proj_weight: bool = False,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`multi_head_attention_forward` of projected inputs, whose own projections are identities."""
    size, batched = query.shape[-1], query.ndim == 3
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    separate = (q_proj_weight, k_proj_weight, v_proj_weight)
    found = []
    for k, x in enumerate((query, key, value)):
        x = x.transpose(0, 1) if batched else x.unsqueeze(0)
        if use_separate_proj_weight:
            z = products.linear(x, separate[k], biases[k])
        else:
            z = products.linear(x, in_proj_weight, in_proj_bias, first=k * size)
        found.append(z.transpose(0, 1) if batched else z.squeeze(0))
    eye = torch.eye(size, dtype=found[0].dtype, device=found[0].device)
    attended, scores = _ATTENTION(
        query=found[0],
        key=found[1],
        value=found[2],
        in_proj_weight=None,
        in_proj_bias=None,
        out_proj_weight=eye,
        out_proj_bias=None,
        use_separate_proj_weight=True,
        q_proj_weight=eye,
        k_proj_weight=eye,
        v_proj_weight=eye,
        **options,
    )
    x = attended.transpose(0, 1) if batched else attended.unsqueeze(0)
    z = products.linear(x, out_proj_weight, out_proj_bias)
    # laid out in memory as the kernel's output is, so that dropout behind it draws alike
    return (z.transpose(0, 1) if batched else z.squeeze(0)).contiguous(), scores
