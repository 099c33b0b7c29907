"""The four kinds of thing that adapters and the core hand to each other.

Static structure is a `LayerSpec`, scalars that change are a `Hyper`, captured arrays are a
`LayerRecord`, diagnostics are an `Info`. Methods map layers to these: a mapping's keys are the
`LayerSpec` objects themselves, so shapes and names never have to be looked up elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

from ngd_core import _checks
from ngd_core._typing import Array, Namespace, Scalar

__all__ = [
    "CODE_MEANING",
    "Conv2dGeometry",
    "Hyper",
    "Info",
    "LayerRecord",
    "LayerSpec",
    "Method",
]

KINDS = ("dense", "conv2d", "embedding", "scale")
"""Kinds of layers there are."""

Padding: TypeAlias = Literal["same", "valid"] | tuple[tuple[int, int], tuple[int, int]]


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or not all(isinstance(v, int) and v >= least for v in pair)
    ):
        msg = f"{name} is {value!r}; expected an integer >= {least}, or a pair (height, width)."
        raise ValueError(msg)
    return pair[0], pair[1]


@dataclass(frozen=True, order=True)
class Conv2dGeometry:
    """Where a 2-D convolution reads its input.

    Parameters
    ----------
    kernel_size, stride, dilation : int or tuple of int
        As in every framework; a single integer stands for ``(height, width)``.
    padding : "valid", "same", int, (int, int) or ((top, bottom), (left, right))
        Zeros around the input. "same" gives ``ceil(size / stride)`` outputs along each axis, the
        odd zero after the input, as XLA's "SAME" and PyTorch's ``padding="same"`` do.
    groups : int
        Number of channel groups, each a convolution of its own.

    Examples
    --------
    >>> from ngd_core import Conv2dGeometry
    >>> Conv2dGeometry(3, stride=2, padding=1).output_size(8, 7)
    (4, 4)
    """

    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: Padding = "valid"
    groups: int = 1

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        padding: Literal["same", "valid"]
        | int
        | tuple[int, int]
        | tuple[tuple[int, int], tuple[int, int]] = "valid",
        groups: int = 1,
    ) -> None:
        object.__setattr__(self, "kernel_size", _pair("kernel_size", kernel_size, 1))
        object.__setattr__(self, "stride", _pair("stride", stride, 1))
        object.__setattr__(self, "dilation", _pair("dilation", dilation, 1))
        object.__setattr__(self, "padding", _padding(padding))
        if not isinstance(groups, int) or groups < 1:
            msg = f"groups is {groups!r}; expected an integer >= 1."
            raise ValueError(msg)
        object.__setattr__(self, "groups", groups)

    def pads(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Zeros ``((top, bottom), (left, right))`` around an input of this size."""
        if isinstance(self.padding, str):
            if self.padding == "valid":
                return (0, 0), (0, 0)
            first, second = (
                _same(size, k, s, d)
                for size, k, s, d in zip(
                    (height, width), self.kernel_size, self.stride, self.dilation, strict=True
                )
            )
            return first, second
        return self.padding

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output; their product is the number of positions T.

        Parameters
        ----------
        height, width : int
            Size of the input.

        Returns
        -------
        tuple of int
            Output height and width.

        Raises
        ------
        ValueError
            If the dilated kernel is larger than the padded input.
        """
        sizes = []
        for size, (before, after), k, s, d in zip(
            (height, width),
            self.pads(height, width),
            self.kernel_size,
            self.stride,
            self.dilation,
            strict=True,
        ):
            room = size + before + after - d * (k - 1) - 1
            if room < 0:
                msg = (
                    f"The input of size {(height, width)} is smaller than the kernel "
                    f"{self.kernel_size} with dilation {self.dilation} and padding {self.padding}."
                )
                raise ValueError(msg)
            sizes.append(room // s + 1)
        return sizes[0], sizes[1]


def _padding(padding: Any) -> Padding:
    if padding in ("same", "valid"):
        return padding  # type: ignore[no-any-return]
    if isinstance(padding, int):
        padding = (padding, padding)
    try:
        first, second = padding
    except (TypeError, ValueError):
        msg = f"padding is {padding!r}; expected 'same', 'valid', an integer or one pair an axis."
        raise ValueError(msg) from None
    return _pair("padding", first, 0), _pair("padding", second, 0)


def _same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    outputs = -(-size // stride)
    total = max(0, (outputs - 1) * stride + dilation * (kernel - 1) + 1 - size)
    return total // 2, total - total // 2


@dataclass(frozen=True, order=True)
class LayerSpec:
    """Static description of one layer with weights; hashable, the key of every mapping.

    Parameters
    ----------
    name : str
        Unique within a model.
    kind : "dense", "conv2d", "embedding" or "scale"
        Dense means the last axis of the input is mapped; further axes are shared positions. An
        embedding looks rows of a table up, a scale is the ``y = w * xhat + b`` behind a
        normalisation (LayerNorm, RMSNorm, GroupNorm); see the notes.
    in_features, out_features : int
        Features, or channels of a convolution (over all groups). The inputs of an embedding are
        its vocabulary; a scale has as many outputs as inputs.
    bias : bool
        Whether the block is ``[W b]``, the bias column last, or ``W``. An embedding has none.
    sharing : "expand" or "reduce"
        Treatment of shared positions (pixels, tokens): every position a factor row of its own,
        or inputs averaged and gradients summed over positions first (Eschenhagen et al. 2023).
        For a convolution "expand" is KFC (Grosse and Martens 2016). An embedding knows "expand"
        alone, whose input factor is diagonal; for a scale it plays no part.
    geometry : Conv2dGeometry or None
        For "conv2d" only.

    Raises
    ------
    ValueError
        For an unknown kind or sharing, a convolution without geometry (or another layer with
        one), sizes that are not positive integers, channels that the groups do not divide, an
        embedding with a bias or reduced positions, or a scale of unequal sizes.

    Notes
    -----
    Embeddings and scales as kinds of their own are a choice made here [derived], not a paper's.

    An embedding is a dense layer of one-hot inputs, so its block is the table transposed,
    ``(features, vocabulary)``; `ngd_core.factors.join` and `split` convert.

    A scale is a stack of as many blocks ``(1, 1 + bias)`` as it has features, each of which sees
    one feature alone. Inputs are normalised by statistics of their own example, or of the batch
    (BatchNorm): with the batch given, the loss of each example still has a gradient with respect
    to w and b, and the block is exact, as long as no layer behind mixes examples. In front of one
    that does, what is carried back to an example's outputs is the gradient of all examples'
    losses: the sum over the batch is right, its parts are no example's own. That holds for layers
    of every kind.

    Examples
    --------
    >>> from ngd_core import Conv2dGeometry, LayerSpec
    >>> LayerSpec("fc", "dense", 20, 10).block_shape
    (10, 21)
    >>> LayerSpec("conv", "conv2d", 4, 6, geometry=Conv2dGeometry(3, groups=2)).block_shape
    (2, 3, 19)
    >>> LayerSpec("tokens", "embedding", 1000, 16, bias=False).block_shape
    (16, 1000)
    >>> LayerSpec("norm", "scale", 16, 16).block_shape
    (16, 1, 2)
    """

    name: str
    kind: Literal["dense", "conv2d", "embedding", "scale"]
    in_features: int
    out_features: int
    bias: bool = True
    sharing: Literal["expand", "reduce"] = "expand"
    geometry: Conv2dGeometry | None = None

    def __post_init__(self) -> None:
        _checks.one_of("kind", self.kind, KINDS)
        _checks.one_of("sharing", self.sharing, ("expand", "reduce"))
        for size, value in (("inputs", self.in_features), ("outputs", self.out_features)):
            if not isinstance(value, int) or value < 1:
                msg = f"Layer {self.name!r} has {value!r} {size}; expected an integer >= 1."
                raise ValueError(msg)
        if (self.geometry is not None) != (self.kind == "conv2d"):
            msg = (
                f"Layer {self.name!r} of kind {self.kind!r} has geometry {self.geometry!r}; "
                "a convolution needs one and any other layer has none."
            )
            raise ValueError(msg)
        if self.kind == "embedding" and self.bias:
            msg = f"Layer {self.name!r} is an embedding, which has no bias; pass bias=False."
            raise ValueError(msg)
        if self.kind == "embedding" and self.sharing == "reduce":
            msg = (
                f"Layer {self.name!r} is an embedding with sharing 'reduce'; averages of one-hot "
                "inputs have no diagonal second moment: use 'expand'."
            )
            raise ValueError(msg)
        if self.kind == "scale" and self.in_features != self.out_features:
            msg = (
                f"Layer {self.name!r} is a scale of {self.in_features} inputs and "
                f"{self.out_features} outputs; it works elementwise, so give the same number."
            )
            raise ValueError(msg)
        if self.in_features % self.groups or self.out_features % self.groups:
            msg = (
                f"Layer {self.name!r} maps {self.in_features} to {self.out_features} channels in "
                f"{self.groups} groups; the groups must divide both numbers."
            )
            raise ValueError(msg)

    @property
    def groups(self) -> int:
        """Number of blocks: channel groups of a convolution, features of a scale, otherwise 1."""
        if self.kind == "scale":
            return self.in_features
        return 1 if self.geometry is None else self.geometry.groups

    @property
    def columns(self) -> int:
        """Columns D of one group's block: inputs each output sees, plus 1 for the bias."""
        taps = 1
        if self.geometry is not None:
            taps = self.geometry.kernel_size[0] * self.geometry.kernel_size[1]
        return self.in_features // self.groups * taps + self.bias

    @property
    def rows(self) -> int:
        """Rows of one group's block: its output features."""
        return self.out_features // self.groups

    @property
    def stack(self) -> tuple[int, ...]:
        """Leading axes of blocks and factors: ``(groups,)`` if there are several, else ``()``.

        A scale has that axis always, also for one feature.
        """
        return () if self.groups == 1 and self.kind != "scale" else (self.groups,)

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of the parameter block ``[W b]``: ``(*stack, rows, columns)``."""
        return (*self.stack, self.rows, self.columns)


class LayerRecord(NamedTuple):
    """What one forward and backward pass left at one layer.

    Parameters
    ----------
    a : array
        Layer inputs: ``(N, *positions, in_features)`` for dense layers,
        ``(N, in_features, height, width)`` for convolutions, or the rows that the kernel reads,
        ``(N, T, in_features * taps)`` as of `ngd_core.factors.unfolded`; integer tokens
        ``(N, *positions)`` for embeddings, the normalised ``(N, *positions, features)`` for
        scales (channels last, also for GroupNorm). A token outside ``[0, vocabulary)``, which no
        compiled code could refuse, counts as no input at all: it is in no frequency, and its
        one-hot row is zero.
    g : array
        Gradients of the per-example loss with respect to the layer outputs, a mean over the
        batch undone: ``(N, *positions, out_features)`` or
        ``(N, out_features, out_height, out_width)``, to rows ``(N, T, out_features)``. One more
        leading axis M holds several back-propagated vectors, which are *summed* in the Fisher:
        the columns of the loss Hessian's root for the exact Fisher, or M samples, each divided by
        ``sqrt(M)``.
    z : array or None
        Layer outputs, for methods that need them.
    tied : LayerRecord or None
        For an embedding whose table is an output layer too: the record of that use, as of a dense
        layer from ``out_features`` to ``in_features``; see
        `ngd_core.factors.product_of_marginals`.
    """

    a: Array
    g: Array
    z: Array | None = None
    tied: LayerRecord | None = None


class Hyper(NamedTuple):
    """Scalars of one step; leaves under ``jax.jit``, so changing them compiles nothing.

    Parameters
    ----------
    damping : float or array of shape ()
        Added to the Fisher of the mean loss, ``F = (1/N) sum_n E[grad l_n grad l_n^T]``.
    decay : float or array of shape ()
        Weight kept by older statistics when a batch is accumulated. The first micro-batch of a
        step uses this, each further one 1.
    share : float or array of shape ()
        Weight of an example of the batch in the averages. Below 1 where a batch is accumulated
        several times, each time with some of its back-propagated vectors: with ``1/K`` and g times
        ``sqrt(K)`` for K equal parts the averages are those of all vectors at once.
    """

    damping: Scalar = 1e-3
    decay: Scalar = 0.95
    share: Scalar = 1.0


class Info(NamedTuple):
    """What happened to one layer; diagnostics that need not survive the step.

    Parameters
    ----------
    code : array of shape (), int32
        A key of `CODE_MEANING`.
    measures : dict of str to array of shape ()
        Named numbers; each method's docstring lists its own.
    """

    code: Array
    measures: dict[str, Array]


CODE_MEANING = {
    0: "as asked",
    1: "damping raised to the smallest value at which the factor is safely positive definite",
    2: "factorised again in float64",
    3: "not usable: the last good inverse is kept",
    4: "not usable and no good inverse yet: the identity is used",
    5: "the gradient, its direction or their product is not finite: the direction is zero",
}
"""Meaning of `Info.code`, from the mildest to the worst."""

OK, RAISED, DOUBLE, KEPT, IDENTITY, BAD_GRADIENT = CODE_MEANING

Layers: TypeAlias = Mapping[LayerSpec, Any]


class Method(Protocol):
    """A natural-gradient method: static options and four pure functions over layers.

    Its ``kinds`` are those of `LayerSpec` that it takes. `xp` is the array namespace to compute
    with, found from the arrays if it is None.
    """

    kinds: ClassVar[tuple[str, ...]]

    def init(self, specs: Iterable[LayerSpec], like: Array, *, xp: Namespace | None = None) -> Any:
        """State before any statistics; dtype and device follow `like`."""
        ...

    def accumulate(
        self,
        state: Any,
        records: Mapping[LayerSpec, LayerRecord],
        hyper: Hyper,
        *,
        xp: Namespace | None = None,
    ) -> Any:
        """Fold a batch into the statistics; cheap."""
        ...

    def refresh(
        self, state: Any, hyper: Hyper, *, xp: Namespace | None = None
    ) -> tuple[Any, dict[LayerSpec, Info]]:
        """Factorise and invert; dear, called every so many steps."""
        ...

    def direction(
        self,
        state: Any,
        grads: Mapping[LayerSpec, Array],
        records: Mapping[LayerSpec, LayerRecord],
        hyper: Hyper,
        *,
        xp: Namespace | None = None,
    ) -> tuple[dict[LayerSpec, Array], dict[LayerSpec, Info]]:
        """Preconditioned gradients, one ``[W b]`` block a layer."""
        ...
