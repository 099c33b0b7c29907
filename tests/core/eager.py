"""Laws over the libraries that execute at once; compiled variants cost seconds an example."""

from collections.abc import Callable
from typing import Any

import pytest
from harness import BACKENDS, GPU_BACKENDS, law

LIBRARIES = [b for b in BACKENDS if b.variant not in ("jit", "compile")]


def eager_law(**strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`law` without the compiled variants, for what does not depend on how a function is run."""

    def decorate(f: Callable[..., None]) -> Callable[..., None]:
        test = law(**strategies)(f)
        test.pytestmark = []
        parameters = [*(pytest.param(b, id=str(b)) for b in LIBRARIES), *GPU_BACKENDS]
        return pytest.mark.parametrize("backend", parameters)(test)

    return decorate
