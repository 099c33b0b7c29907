"""Second moments of the inputs of convolutions, by lags between the rows of images.

Unfolded, the rows x of a kernel of ``kh kw`` taps take ``kh kw`` times the memory of the input, and
their second moment ``R (kh kw c)^2`` multiply-adds. Where the kernel moves row by row, most of that
is the same product over and over [derived here]: let U[h] be what the kernel's columns read in row
h of the image, one row of ``kw c`` numbers an example and output column. Tap rows i and ``i + t``
at output row p read the rows ``h = p + i e - top`` and ``h + t e`` of the image, with dilation e,
so that their block of the moment is

    sum_h U[h]^T U[h + t e],    max(0, i e - top) <= h < min(H - t e, H_out + i e - top)

where rows of the padding, which are zero, are left out. For each of the ``kh`` lags t the blocks
differ in the edges of that window alone. Each run of rows between two edges is multiplied once and
added to the blocks whose windows hold it: ``R kh (kw c)^2`` multiply-adds, less at the edges, and
``kw`` times the memory. Nothing is subtracted, so every block is a sum of products as it was, with
their rounding (`ngd_core.factors.second_moment`); runs of rows lie behind one another in memory,
so none is copied.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import NamedTuple, TypeAlias

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace
from ngd_core.factors.moment import cross_moment
from ngd_core.factors.patches import tap_slices
from ngd_core.types import Conv2dGeometry, Padding

__all__ = ["image_moment", "image_moment_products"]

UNFOLDED = 2**21
"""Elements that are unfolded at once; more if the input itself is larger."""

MOST_RUNS = 32
"""Products that are worth their calls and their compilation; with more, rows are unfolded too."""

Run: TypeAlias = tuple[int, int]


class Plan(NamedTuple):
    """What is unfolded, and the windows of rows for each lag and tap row; see the module."""

    read: Conv2dGeometry
    dilation: int
    windows: tuple[tuple[Run, ...], ...]


def image_moment(
    x: Array,
    geometry: Conv2dGeometry,
    *,
    bias: bool,
    most: int | None = None,
    xp: Namespace | None = None,
) -> Array:
    """Second moment of the rows that a kernel reads, ``(1/(N T)) sum_n sum_t x_nt x_nt^T``.

    Parameters
    ----------
    x : array, shape (N, C, H, W)
        Input of a convolution.
    geometry : Conv2dGeometry
        Its kernel.
    bias : bool
        Whether every row is ``[x_nt; 1]``.
    most : int, optional
        Elements to unfold at once, if an image has no more: the batch is taken in halves, and
        these again. 2**21 or those of `x`, whichever is more, if not given.
    xp : namespace, optional
        Array namespace; found from `x` if not given.

    Returns
    -------
    array, shape (d, d) or (groups, d, d)
        ``d = C / groups * kh * kw + bias``, columns ordered (channel, kh, kw), the bias last.

    Raises
    ------
    TypeError
        For an integer array.
    ValueError
        If the dilated kernel is larger than the padded input.

    Notes
    -----
    In float32 and for images of one colour, the hardest case, the least eigenvalue was seen down to
    -6 eps of the trace with 8 to 96 channels; of unfolded rows to -8 eps.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core import Conv2dGeometry
    >>> x = np.reshape(np.arange(4.0), (1, 1, 2, 2))
    >>> image_moment(x, Conv2dGeometry((2, 1)), bias=False)
    array([[0.5, 1.5],
           [1.5, 6.5]])
    """
    xp = _checks.common_namespace(xp, x=x)
    _checks.floating(xp, x=x)
    if _turns(geometry):
        x, geometry = xp.matrix_transpose(x), _turned(geometry)
    out = geometry.output_size(*x.shape[2:])
    plan = _plan(geometry, out[0])
    most = max(UNFOLDED, prod(x.shape)) if most is None else most
    parts = _products(x, plan, x.shape[0] * prod(out), most, bias=bias, xp=xp)
    groups, channels = geometry.groups, x.shape[1] // geometry.groups
    k = channels * prod(plan.read.kernel_size)
    none = _xp.zeros((groups, k, k + bias), like=x, xp=xp)
    moment = _assembled(plan, parts, none, channels, xp=xp)
    return moment if groups > 1 else moment[0, ...]


def image_moment_products(
    geometry: Conv2dGeometry, channels: int, out_height: int, out_width: int
) -> int:
    """Count the multiply-adds of `image_moment` for one example and one group.

    Parameters
    ----------
    geometry : Conv2dGeometry
        Kernel.
    channels : int
        Of one group.
    out_height, out_width : int
        Size of the output.

    Returns
    -------
    int
        Without the few for the bias.

    Examples
    --------
    >>> from ngd_core import Conv2dGeometry
    >>> image_moment_products(Conv2dGeometry(3, padding=1), 1, 8, 8)  # 8 + 7 + 6 rows
    1512
    """
    if _turns(geometry):
        geometry, out_height, out_width = _turned(geometry), out_width, out_height
    plan = _plan(geometry, out_height)
    rows = sum(stop - start for windows in plan.windows for start, stop in _runs(windows))
    return rows * out_width * (channels * prod(plan.read.kernel_size)) ** 2


def _turns(geometry: Conv2dGeometry) -> bool:
    """Tell whether lags are between columns: signals are images of one row."""
    return geometry.kernel_size[0] == 1 < geometry.kernel_size[1]


def _turned(geometry: Conv2dGeometry) -> Conv2dGeometry:
    pads = geometry.padding
    return Conv2dGeometry(
        geometry.kernel_size[::-1],
        geometry.stride[::-1],
        geometry.dilation[::-1],
        pads if isinstance(pads, str) else pads[::-1],
        geometry.groups,
    )


def _plan(geometry: Conv2dGeometry, out_height: int) -> Plan:
    (kh, kw), (sh, sw), (e, ew) = geometry.kernel_size, geometry.stride, geometry.dilation
    if sh == 1 < kh:
        # with stride 1 neither the padding of "same" nor the height is rounded
        (top, bottom), sides = geometry.pads(out_height, out_height)
        height = out_height + (kh - 1) * e - top - bottom
        windows = tuple(
            tuple(
                (max(0, i * e - top), min(height - t * e, out_height + i * e - top))
                for i in range(kh - t)
            )
            for t in range(kh)
        )
        if sum(len(_runs(each)) for each in windows) <= MOST_RUNS:
            padding: Padding = "same" if geometry.padding == "same" else ((0, 0), sides)
            read = Conv2dGeometry((1, kw), (1, sw), (1, ew), padding, geometry.groups)
            return Plan(read, e, windows)
    return Plan(geometry, 1, (((0, out_height),),))


def _runs(windows: tuple[Run, ...]) -> list[Run]:
    """Rows that lie in the same windows, run by run."""
    edges = sorted({edge for start, stop in windows if start < stop for edge in (start, stop)})
    return [run for run in pairwise(edges) if any(_holds(window, run) for window in windows)]


def _holds(window: Run, run: Run) -> bool:
    return window[0] <= run[0] and run[1] <= window[1]


def _products(
    x: Array, plan: Plan, count: int, most: int, *, bias: bool, xp: Namespace
) -> list[Array]:
    """Product of each lag's each run over a count, ``(groups, k, k)``, one column more for a bias.

    Halves of the batch are added in pairs, which rounds as one sum in pairs does.
    """
    n = x.shape[0]
    taps, positions = prod(plan.read.kernel_size), prod(plan.read.output_size(*x.shape[2:]))
    if n > 1 and n * x.shape[1] * taps * positions > most:
        halves = (
            _products(part, plan, count, most, bias=bias, xp=xp)
            for part in (x[: n // 2, ...], x[n // 2 :, ...])
        )
        return [a + b for a, b in zip(*halves, strict=True)]
    u = _unfolded(x, plan.read, xp=xp)
    parts = []
    for lag, windows in enumerate(plan.windows):
        for start, stop in _runs(windows):
            here = there = _flat(u[:, start:stop, ...], xp=xp)
            if lag:
                there = _flat(
                    u[:, start + lag * plan.dilation : stop + lag * plan.dilation, ...], xp=xp
                )
            own = (False, bias and not lag)
            parts.append(cross_moment(here, there, count, bias=own, xp=xp))
    return parts


def _flat(u: Array, *, xp: Namespace) -> Array:
    return xp.reshape(u, (u.shape[0], -1, u.shape[-1]))


def _unfolded(x: Array, geometry: Conv2dGeometry, *, xp: Namespace) -> Array:
    """Gather what the taps read, ``(groups, out_height, N, out_width, taps * C / groups)``."""
    n, channels, height, width = x.shape
    pads, out = geometry.pads(height, width), geometry.output_size(height, width)
    x = xp.reshape(x, (n, geometry.groups, channels // geometry.groups, height, width))
    x = xp.permute_dims(x, (1, 3, 0, 4, 2))
    x = _xp.pad(x, ((0, 0), pads[0], (0, 0), pads[1], (0, 0)), xp=xp)
    return xp.concat([x[:, rows, :, cols, :] for rows, cols in tap_slices(geometry, *out)], axis=-1)


def _assembled(
    plan: Plan, parts: list[Array], none: Array, channels: int, *, xp: Namespace
) -> Array:
    """Sum the runs of each block, and order columns by channel, tap row and tap column."""
    (groups, k, wide), side, left = none.shape, len(plan.windows), iter(parts)
    blocks: dict[Run, Array] = {}
    sums = []
    for lag, windows in enumerate(plan.windows):
        runs = {run: next(left) for run in _runs(windows)}
        for i, window in enumerate(windows):
            inside = [product for run, product in runs.items() if _holds(window, run)]
            block = sum(inside[1:], start=inside[0]) if inside else none
            blocks[i, i + lag] = block[..., :k]
            if lag:
                blocks[i + lag, i] = xp.matrix_transpose(block[..., :k])
            else:
                sums.append(block[..., k:])
    tall = [xp.concat([blocks[i, j] for j in range(side)], axis=-1) for i in range(side)]
    taps, d = side * k // channels, side * k
    moment = xp.reshape(xp.concat(tall, axis=-2), (groups, taps, channels, taps, channels))
    moment = xp.reshape(xp.permute_dims(moment, (0, 2, 1, 4, 3)), (groups, d, d))
    if wide == k:
        return moment
    mean = xp.reshape(xp.concat(sums, axis=-2), (groups, taps, channels))
    mean = xp.reshape(xp.matrix_transpose(mean), (groups, d, 1))
    one = _xp.ones((groups, 1, 1), like=mean, xp=xp)
    border = xp.concat([xp.matrix_transpose(mean), one], axis=-1)
    return xp.concat([xp.concat([moment, mean], axis=-1), border], axis=-2)
