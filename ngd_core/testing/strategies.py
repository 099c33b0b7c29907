"""What examples are drawn from: one strategy for each parameter of a check, by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

from ngd_core.testing.checks_methods import AVERAGING, METHODS
from ngd_core.testing.problems import LAYERS
from ngd_core.testing.protocol import Subject

__all__ = ["drawn", "parameters"]

CONDITIONS = {"float32": (1.0, 10.0, 1e3, 1e4), "float64": (1.0, 10.0, 1e4, 1e8)}

DRAWS: dict[str, Callable[[Subject], st.SearchStrategy[Any]]] = {
    "dtype": lambda subject: st.sampled_from(subject.dtypes),
    "n": lambda _: st.integers(1, 8),
    "stack": lambda _: st.integers(1, 3),
    "scale": lambda _: st.sampled_from((1.0, 1e-3, 1e3)),
    "examples": lambda _: st.integers(1, 5),
    "copies": lambda _: st.integers(2, 3),
    "damping": lambda _: st.sampled_from((1.0, 0.1, 0.01)),
    "split": lambda _: st.sampled_from(("exact", "pi")),
    "layer": lambda _: st.sampled_from(tuple(LAYERS)),
    "network": lambda subject: st.sampled_from(getattr(subject, "networks", ("dense", "conv"))),
    "method": lambda _: st.sampled_from(tuple(METHODS)),
    "averaging": lambda _: st.sampled_from(AVERAGING),
    "seed": lambda _: st.integers(0, 2**16),
}
"""Hypothesis tries the first of some values first and shrinks to it; `condition` needs a dtype."""


def parameters(check: Callable[..., None]) -> tuple[str, ...]:
    """Names of what is drawn for a check: all its parameters but the first, the subject.

    Parameters
    ----------
    check : callable
        A check.

    Returns
    -------
    tuple of str
        In order.

    Examples
    --------
    >>> from ngd_core.testing.checks_ops import cond_takes_the_branch
    >>> parameters(cond_takes_the_branch)
    ('dtype',)
    """
    code = check.__code__
    return code.co_varnames[1 : code.co_argcount]


def drawn(subject: Subject, names: tuple[str, ...]) -> st.SearchStrategy[Mapping[str, Any]]:
    """Strategy for the arguments of a check, with a condition number that the dtype bears.

    Parameters
    ----------
    subject : BackendUnderTest or PreconditionerUnderTest
        Whose dtypes and networks are drawn from.
    names : tuple of str
        From `parameters`.

    Returns
    -------
    strategy of dict of str to object
        Plain Python values.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.testing import BackendUnderTest
    >>> strategy = drawn(BackendUnderTest("numpy", np), ("dtype", "n"))
    >>> sorted(strategy.example())  # doctest: +SKIP
    ['dtype', 'n']
    """
    fixed = st.fixed_dictionaries({name: DRAWS[name](subject) for name in names if name in DRAWS})
    if "condition" not in names:
        return fixed
    return fixed.flatmap(
        lambda given: st.sampled_from(CONDITIONS[given["dtype"]]).map(
            lambda condition: {**given, "condition": condition}
        )
    )
