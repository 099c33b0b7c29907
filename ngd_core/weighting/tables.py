"""Tables of weights that later epochs look up.

A table holds ``w = n c`` rather than the coefficients c of a batch of n examples, so that the
plain mean is ``w = 1`` and an entry serves a batch of any size: the user divides by its own n.
"""

from __future__ import annotations

from typing import NamedTuple

from ngd_core import _checks, _xp
from ngd_core._typing import Array, Namespace
from ngd_core.factors.average import average

__all__ = [
    "PositionMean",
    "WeightTable",
    "close_epoch",
    "empty_table",
    "look_up",
    "record_weights",
    "table_slots",
]


class PositionMean(NamedTuple):
    """Mean weights over the full batches of an epoch.

    Parameters
    ----------
    weights : array, shape (batch_size,)
        Mean weight at each position.
    count : array, shape ()
        Full batches in it since the epoch began.
    good : array of bool, shape ()
        Whether it holds any, of this epoch or an older one.
    """

    weights: Array
    count: Array
    good: Array


class WeightTable(NamedTuple):
    """Weights of one layer.

    Parameters
    ----------
    weights : array, shape (size,)
        Entries.
    known : array of bool, shape (size,)
        Which of them were recorded.
    gain : array, shape ()
        Mean of the recorded entries when the last epoch was closed, 1 before: what an example
        without an entry gets.
    mean : PositionMean or None
        For tables by position, which become means when an epoch is closed.
    """

    weights: Array
    known: Array
    gain: Array
    mean: PositionMean | None


def empty_table(
    size: int, *, by_position: bool, like: Array, xp: Namespace | None = None
) -> WeightTable:
    """Table without entries, which gives every example the weight 1.

    Parameters
    ----------
    size : int
        Number of entries: of a batch, of all batches of an epoch, or of the data set.
    by_position : bool
        Whether entries are averaged over the batches of an epoch.
    like : array
        Template of dtype and device.
    xp : namespace, optional
        Array namespace; found from `like` if not given.

    Returns
    -------
    WeightTable
        No two of its arrays share memory.

    Examples
    --------
    >>> import numpy as np
    >>> empty_table(2, by_position=False, like=np.zeros(())).known
    array([False, False])
    """
    xp = _checks.common_namespace(xp, like=like)
    mean = None
    if by_position:
        mean = PositionMean(
            weights=_xp.ones((size,), like=like, xp=xp),
            count=_xp.zeros((), like=like, xp=xp),
            good=_xp.zeros((), like=like, dtype=xp.bool, xp=xp),
        )
    return WeightTable(
        weights=_xp.ones((size,), like=like, xp=xp),
        known=_xp.zeros((size,), like=like, dtype=xp.bool, xp=xp),
        gain=_xp.ones((), like=like, xp=xp),
        mean=mean,
    )


def table_slots(
    share: str,
    count: int,
    index: Array | None = None,
    *,
    batch_size: int = 0,
    iterations: int = 1,
    like: Array,
    xp: Namespace | None = None,
) -> Array:
    """Places of a batch's examples in a table of weights.

    Parameters
    ----------
    share : "position", "iteration" or "sample"
        "position": example m of any batch uses entry m. "iteration": example m of iteration k of
        an epoch uses entry ``(k mod iterations) batch_size + m``. "sample": every example of the
        data set has an entry of its own.
    count : int
        Examples in the batch.
    index : array of integers or None
        For "iteration" the number k of the iteration within its epoch, shape ``()``; for
        "sample" the examples' indices in the data set, shape ``(count,)``. An array, so that a
        compiled step serves all values.
    batch_size : int
        Examples in a full batch.
    iterations : int
        Iterations of an epoch, a short last one included.
    like : array
        Template of the device.
    xp : namespace, optional
        Array namespace; found from `like` if not given.

    Returns
    -------
    array of int32, shape (count,)
        Slots. For "sample" they are the caller's and not looked at here.

    Raises
    ------
    TypeError
        If the index is not an integer array.
    ValueError
        If the index is missing or of the wrong shape, or the batch is larger than a full one.

    Examples
    --------
    >>> import numpy as np
    >>> table_slots(
    ...     "iteration", 2, np.asarray(7), batch_size=4, iterations=3, like=np.zeros(())
    ... ).tolist()
    [4, 5]
    """
    _checks.one_of("share", share, ("position", "iteration", "sample"))
    xp = _checks.common_namespace(xp, like=like)
    if share != "sample" and count > batch_size:
        msg = f"The batch has {count} examples, but batch_size is {batch_size}; make it larger."
        raise ValueError(msg)
    places = _xp.arange(count, like=like, dtype=xp.int32, xp=xp)
    if share == "position":
        return places
    if index is None:
        wanted = "the iteration's number" if share == "iteration" else "the examples' indices"
        msg = f"index is missing; share={share!r} needs {wanted} as an integer array."
        raise ValueError(msg)
    _checks.integral(xp, index=index)
    shape = () if share == "iteration" else (count,)
    _checks.shape("index", index, shape, f"share={share!r}")
    index = _xp.astype(index, xp.int32, xp=xp)
    return index if share == "sample" else index % iterations * batch_size + places


def record_weights(
    table: WeightTable, slots: Array, weights: Array, ok: Array, *, xp: Namespace | None = None
) -> WeightTable:
    """Write a batch's weights into a table.

    By sorting and searching, since the standard has no scattered assignment: the cost is
    ``size log n``. Until the epoch is closed `look_up` returns what was written last.

    Parameters
    ----------
    table : WeightTable
        Table.
    slots : array of integers, shape (n,)
        From `table_slots`. Those outside the table are dropped; where one comes twice, either
        weight is written: an example twice in a batch has the same weight both times.
    weights : array, shape (n,)
        ``n c``, in the dtype of the table.
    ok : array of bool, shape ()
        False refuses them. Then entries stay; in a table by position, where they are those of
        another batch, they are marked as not recorded.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    WeightTable
        New table. In a table by position a batch shorter than the table takes part in no mean.

    Examples
    --------
    >>> import numpy as np
    >>> table = empty_table(3, by_position=False, like=np.zeros(()))
    >>> table = record_weights(table, np.asarray([2, 0]), np.asarray([5.0, 7.0]), np.asarray(True))
    >>> table.weights.tolist(), table.known.tolist()
    ([7.0, 1.0, 5.0], [True, False, True])
    """
    xp = _checks.common_namespace(xp, table=table.weights, slots=slots, weights=weights)
    order = xp.argsort(slots)
    ordered = xp.take(slots, order, axis=0)
    every = _xp.arange(table.weights.shape[0], like=slots, xp=xp)
    at = xp.clip(xp.searchsorted(ordered, every), 0, slots.shape[0] - 1)
    hit = xp.take(ordered, at, axis=0) == every
    written = xp.take(weights, xp.take(order, at, axis=0), axis=0)
    mean = table.mean
    known = table.known | (hit & ok) if mean is None else xp.where(hit, ok, table.known)
    if mean is not None and weights.shape == mean.weights.shape:
        together, count = average(mean.weights, mean.count, weights, 1, 1, xp=xp)
        mean = PositionMean(
            xp.where(ok, together, mean.weights),
            xp.where(ok, count, mean.count),
            mean.good | ok,
        )
    new = xp.where(hit & ok, written, table.weights)
    return table._replace(weights=new, known=known, mean=mean)


def close_epoch(
    table: WeightTable, *, xp: Namespace | None = None
) -> tuple[WeightTable, Array, Array]:
    """Take stock at the end of an epoch.

    Parameters
    ----------
    table : WeightTable
        Table.
    xp : namespace, optional
        Array namespace; found from the table if not given.

    Returns
    -------
    table : WeightTable
        With a new mean weight; by position, with the means over full batches as entries. The next
        batch to be recorded begins a new mean. Closing again changes nothing.
    number : array, shape ()
        Recorded entries.
    some : array of bool, shape ()
        Whether there are any.

    Examples
    --------
    >>> import numpy as np
    >>> table = empty_table(1, by_position=True, like=np.zeros(()))
    >>> for weight in (1.0, 2.0):
    ...     table = record_weights(table, np.asarray([0]), np.full(1, weight), np.asarray(True))
    >>> close_epoch(table)[0].weights
    array([1.5])
    """
    xp = _checks.common_namespace(xp, table=table.weights)
    weights, known, mean = table.weights, table.known, table.mean
    zero, one = (_xp.full((), x, like=weights, xp=xp) for x in (0, 1))
    if mean is not None:
        weights = xp.where(mean.good, mean.weights, weights)
        known = known | mean.good
        mean = mean._replace(count=_xp.zeros((), like=weights, xp=xp))
    number = xp.sum(xp.where(known, one, zero))
    some = number > 0
    total = xp.sum(xp.where(known, weights, zero))
    gain = xp.where(some, total / xp.maximum(number, one), one)
    return WeightTable(weights, known, gain, mean), number, some


def look_up(
    table: WeightTable, slots: Array, *, xp: Namespace | None = None
) -> tuple[Array, Array]:
    """Weights of a batch.

    Parameters
    ----------
    table : WeightTable
        Table.
    slots : array of integers, shape (n,)
        From `table_slots`; those outside the table are treated as not recorded.
    xp : namespace, optional
        Array namespace; found from the arrays if not given.

    Returns
    -------
    weights : array, shape (n,)
        Entries, or the table's mean weight where there is none.
    found : array of bool, shape (n,)
        Which of them were recorded.

    Examples
    --------
    >>> import numpy as np
    >>> table = empty_table(3, by_position=False, like=np.zeros(()))
    >>> table = record_weights(table, np.asarray([1]), np.asarray([5.0]), np.asarray(True))
    >>> weights, found = look_up(table, np.asarray([0, 1, 7]))
    >>> weights.tolist(), found.tolist()
    ([1.0, 5.0, 1.0], [False, True, False])
    """
    xp = _checks.common_namespace(xp, table=table.weights, slots=slots)
    last = table.weights.shape[0] - 1
    inside = (slots >= 0) & (slots <= last)
    slots = xp.clip(slots, 0, last)
    found = inside & xp.take(table.known, slots, axis=0)
    return xp.where(found, xp.take(table.weights, slots, axis=0), table.gain), found
