"""What is held to the laws: an array library, or somebody's preconditioner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ngd_core._typing import Array, Namespace
from ngd_core.inversion import PURE, Ops
from ngd_core.types import LayerRecord

if TYPE_CHECKING:
    from ngd_core.testing.problems import Problem

__all__ = ["BackendUnderTest", "PreconditionerUnderTest", "Subject", "tree_map"]


def tree_map(f: Callable[[Any], Any], tree: Any) -> Any:
    """Map over arrays in dicts, NamedTuples, tuples and lists; numbers and None stay.

    Parameters
    ----------
    f : callable
        ``f(array)``.
    tree : nested dict, tuple or list of array
        What has a ``dtype`` is an array.

    Returns
    -------
    nested dict, tuple or list
        Of the same structure.

    Examples
    --------
    >>> import numpy as np
    >>> tree_map(lambda x: x.shape, {"a": np.ones(2), "b": (np.ones(3), None)})
    {'a': (2,), 'b': ((3,), None)}
    """
    if isinstance(tree, Mapping):
        return {key: tree_map(f, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(f, value) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(tree_map(f, value) for value in tree)
    return f(tree) if hasattr(tree, "dtype") else tree


@dataclass(frozen=True, eq=False)
class BackendUnderTest:
    """An array library, and what an adapter adds to it.

    Parameters
    ----------
    name : str
        By which reports and the command know it.
    xp : namespace
        What ``array_api_compat.array_namespace`` gives for its arrays.
    device : object or None
        For ``xp.asarray(..., device=device)``; None: the default one.
    dtypes : tuple of str
        Real floating dtypes in which the laws are held, of "float32" and "float64".
    ops : Ops or None
        Its own table of operations; None: `ngd_core.inversion.PURE`.
    compile : callable or None
        ``compile(f) -> f``, such as ``jax.jit``; None: there is no compiler, and no level of it.
    compilations : callable or None
        ``compilations(compiled)``: how often a function that `compile` made was compiled.
    capture : callable or None
        ``capture(problem)``: a mapping of layer names to `LayerRecord`, from a model of the
        adapter's framework built after the `Problem`; None: there is no level of it.
    to_numpy : callable
        ``to_numpy(array)``: a NumPy array.
    share : float
        Part of a profile's examples that is tried; below 1 where each costs seconds of compiling.
    source : str
        Python statements that bind `subject` to this object, for counter-examples that run.

    Examples
    --------
    >>> import numpy as np
    >>> from ngd_core.testing import BackendUnderTest
    >>> mine = BackendUnderTest("mine", np)
    >>> mine.array([1.0, 2.0], "float32").dtype
    dtype('float32')
    """

    name: str
    xp: Namespace
    device: Any = None
    dtypes: tuple[str, ...] = ("float32", "float64")
    ops: Ops | None = None
    compile: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    compilations: Callable[[Any], int] | None = None
    capture: Callable[[Problem], Mapping[str, LayerRecord]] | None = None
    to_numpy: Callable[[Array], Any] = np.asarray
    share: float = 1.0
    source: str = ""

    def __post_init__(self) -> None:
        if not self.dtypes or not set(self.dtypes) <= {"float32", "float64"}:
            msg = f"dtypes is {self.dtypes!r}; expected some of 'float32' and 'float64'."
            raise ValueError(msg)
        if not 0 < self.share <= 1:
            msg = f"share is {self.share!r}; expected a number above 0 and at most 1."
            raise ValueError(msg)

    def __str__(self) -> str:
        return self.name

    @property
    def table(self) -> Ops:
        """Operations of the library, or the standard's."""
        return PURE if self.ops is None else self.ops

    def array(self, tree: Any, dtype: str | None = None) -> Any:
        """NumPy arrays of a tree as arrays of the library; floats are cast to `dtype`."""
        return tree_map(lambda x: self._array(x, dtype), tree if _is_tree(tree) else np.array(tree))

    def _array(self, x: Any, dtype: str | None) -> Array:
        x = np.array(x)
        if dtype is not None and np.isdtype(x.dtype, "real floating"):
            x = x.astype(dtype)
        options = {} if self.device is None else {"device": self.device}
        return self.xp.asarray(x, **options)

    def numpy(self, tree: Any) -> Any:
        """Arrays of a tree as NumPy arrays, after a look at their library and device."""
        template = self._array(0.0, self.dtypes[0])
        return tree_map(lambda x: self._numpy(x, template), tree)

    def _numpy(self, x: Array, template: Array) -> Any:
        got, want = (type(y).__module__.partition(".")[0] for y in (x, template))
        if got != want:
            msg = f"{type(x).__name__} of {got} from arrays of {want}"
            raise AssertionError(msg)
        if self.device is not None and x.device != template.device:
            msg = f"result on {x.device} from arrays on {template.device}"
            raise AssertionError(msg)
        return np.asarray(self.to_numpy(x))


def _is_tree(tree: Any) -> bool:
    if isinstance(tree, (Mapping, tuple)) or tree is None:
        return True
    return isinstance(tree, list) and not all(isinstance(x, (int, float)) for x in tree)


@dataclass(frozen=True, eq=False)
class PreconditionerUnderTest:
    """Somebody's preconditioner, as a function from a problem to directions.

    Parameters
    ----------
    name : str
        By which reports know it.
    direction : callable
        ``direction(problem)``: a mapping of layer names to preconditioned gradients, blocks
        ``[W b]`` as NumPy reads them (convolutions: rows of output channels, columns
        ``(channel, kernel row, kernel column)``), for the model, data, loss and damping of the
        `Problem`, as on the very first step.
    fisher : "empirical" or "exact"
        Which Fisher it claims to use.
    split : "exact", "pi" or None
        How its Kronecker factors are damped: ``G (x) A + damping I``, the papers' factored one,
        or None for what makes no such claim; laws that need to know are then left out.
    networks : tuple of str
        Of "dense" and "conv": the problems that it is given.
    dtype : str
        Dtype that it computes in.
    share : float
        As in `BackendUnderTest`.
    source : str
        As in `BackendUnderTest`.

    Examples
    --------
    >>> from ngd_core.testing import PreconditionerUnderTest
    >>> plain = PreconditionerUnderTest("gradient", lambda problem: problem.gradients())
    >>> str(plain)
    'gradient'
    """

    name: str
    direction: Callable[[Problem], Mapping[str, Any]]
    fisher: Literal["empirical", "exact"] = "empirical"
    split: Literal["exact", "pi"] | None = "exact"
    networks: tuple[str, ...] = ("dense", "conv")
    dtype: Literal["float32", "float64"] = "float64"
    share: float = 1.0
    source: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The one dtype."""
        return (self.dtype,)


Subject: TypeAlias = BackendUnderTest | PreconditionerUnderTest
