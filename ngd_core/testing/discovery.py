"""Backends by name: those shipped here, and those that other packages register."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from ngd_core import LayerRecord, _xp, losses, nn
from ngd_core.inversion import EAGER
from ngd_core.testing.problems import Problem
from ngd_core.testing.protocol import BackendUnderTest, PreconditionerUnderTest, Subject

__all__ = ["GROUP", "SHIPPED", "find_backend", "known_backends"]

GROUP = "ngd_core.backends"
"""Entry points of this group name a `BackendUnderTest`, or a function that makes one."""


def known_backends() -> list[str]:
    """Names of the backends shipped here and of those that installed packages register.

    Returns
    -------
    list of str
        Sorted; a name may still fail to load where its library is not installed.

    Examples
    --------
    >>> "numpy" in known_backends()
    True
    """
    return sorted({*SHIPPED, *(point.name for point in entry_points(group=GROUP))})


def find_backend(name: str) -> Subject:
    """Load a backend by name.

    Parameters
    ----------
    name : str
        "numpy", "strict", "torch", "jax", "cupy", or of an entry point in the group
        ``ngd_core.backends``, which goes first.

    Returns
    -------
    BackendUnderTest or PreconditionerUnderTest
        With a ``source`` that finds it again, if it had none.

    Raises
    ------
    ValueError
        For an unknown name.
    TypeError
        If an entry point gives something else.
    ImportError
        If its library is not installed.

    Examples
    --------
    >>> find_backend("numpy").dtypes
    ('float32', 'float64')
    """
    source = f"from ngd_core.testing import find_backend\n\nsubject = find_backend({name!r})"
    for point in entry_points(group=GROUP):
        if point.name == name:
            return _given(point.value, point.load(), source)
    if name not in SHIPPED:
        msg = f"backend is {name!r}; expected one of {', '.join(known_backends())}."
        raise ValueError(msg)
    return SHIPPED[name](name, source)


def _given(value: str, found: Any, source: str) -> Subject:
    kinds = BackendUnderTest, PreconditionerUnderTest
    made = found() if callable(found) and not isinstance(found, kinds) else found
    if not isinstance(made, kinds):
        msg = (
            f"The entry point {value} gives a {type(made).__name__}; expected a "
            "BackendUnderTest, a PreconditionerUnderTest, or a function that makes one."
        )
        raise TypeError(msg)
    if not made.source:
        object.__setattr__(made, "source", source)
    return made


def _numpy(name: str, source: str) -> BackendUnderTest:
    xp = _xp.namespace_of(np.zeros(()))

    def capture(problem: Problem) -> dict[str, LayerRecord]:
        outputs, tape = nn.forward(problem.model, problem.params, problem.x)
        g = losses.gaussian.gradient(outputs, problem.y)
        found = nn.backward(problem.model, problem.params, tape, g, grads=False).records
        return {spec.name: record for spec, record in found.items()}

    return BackendUnderTest(name, xp, ops=EAGER, capture=capture, source=source)


def _strict(name: str, source: str) -> BackendUnderTest:
    import array_api_strict

    def to_numpy(x: Any) -> Any:
        return np.asarray(array_api_strict.asarray(x, device=host))

    host, device = (array_api_strict.Device(place) for place in ("CPU_DEVICE", "device1"))
    options: dict[str, Any] = {"device": device, "to_numpy": to_numpy, "source": source}
    return BackendUnderTest(name, array_api_strict, **options)


def _torch(name: str, source: str) -> BackendUnderTest:
    import torch
    from ngd_torch import NATIVE

    from ngd_core.testing.torch_subject import capture

    xp = _xp.namespace_of(torch.zeros(()))
    options: dict[str, Any] = {"to_numpy": lambda x: x.detach().numpy(), "source": source}
    return BackendUnderTest(name, xp, torch.device("cpu"), ops=NATIVE, capture=capture, **options)


def _jax(name: str, source: str) -> BackendUnderTest:
    import jax
    from ngd_jax import NATIVE

    from ngd_core.testing.jax_subject import capture

    double = jax.numpy.zeros((), "float64" if jax.config.jax_enable_x64 else "float32")
    dtypes = ("float32", "float64") if str(double.dtype) == "float64" else ("float32",)
    return BackendUnderTest(
        name,
        _xp.namespace_of(double),
        dtypes=dtypes,
        ops=NATIVE,
        compile=jax.jit,
        compilations=lambda compiled: int(compiled._cache_size()),
        capture=capture,
        share=0.15,
        source=source,
    )


def _cupy(name: str, source: str) -> BackendUnderTest:
    import cupy

    xp = _xp.namespace_of(cupy.zeros(()))
    return BackendUnderTest(name, xp, to_numpy=lambda x: x.get(), source=source)


SHIPPED: dict[str, Callable[[str, str], BackendUnderTest]] = {
    "numpy": _numpy,
    "strict": _strict,
    "torch": _torch,
    "jax": _jax,
    "cupy": _cupy,
}
"""Backends of this distribution by name, each made when asked for."""
