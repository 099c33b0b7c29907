"""Array libraries and a preconditioner of others, as they come from the package index.

Nothing of this project needs them; `conformance.reports` runs where they are installed.
"""

from __future__ import annotations

from typing import Any

from ngd_core.testing import BackendUnderTest, PreconditionerUnderTest
from ngd_core.testing.torch_subject import preconditioned

NDONNX = """\
import ndonnx
from ngd_core.testing import BackendUnderTest

subject = BackendUnderTest('ndonnx', ndonnx, to_numpy=lambda x: x.unwrap_numpy())"""
DASK = """\
import dask.array
from array_api_compat import array_namespace
from ngd_core.testing import BackendUnderTest

subject = BackendUnderTest('dask', array_namespace(dask.array.zeros(())))"""
ASDFGHJKL = """\
from conformance.foreign import asdfghjkl

subject = asdfghjkl()"""


def ndonnx() -> BackendUnderTest:
    """Build ONNX graphs with the standard's functions; constants are computed at once."""
    import ndonnx

    return BackendUnderTest("ndonnx", ndonnx, to_numpy=lambda x: x.unwrap_numpy(), source=NDONNX)


def dask() -> BackendUnderTest:
    """Chunked and lazy arrays, through the wrapper of array-api-compat."""
    import dask.array
    from array_api_compat import array_namespace

    return BackendUnderTest("dask", array_namespace(dask.array.zeros(())), source=DASK)


def asdfghjkl() -> PreconditionerUnderTest:
    """K-FAC of ASDL on its first step: empirical Fisher, damping as given."""
    import torch
    from asdl.precondition import KfacGradientMaker, PreconditioningConfig

    def loss(f: Any, y: Any, reduction: str = "mean") -> Any:
        each = 0.5 * ((f - y) ** 2).sum(1)
        return each if reduction == "none" else getattr(each, reduction)()

    def direction(problem: Any) -> Any:
        x, y = torch.tensor(problem.x), torch.tensor(problem.y)

        def run(model: Any, _: Any) -> None:
            config = PreconditioningConfig(data_size=len(x), damping=problem.damping)
            maker = KfacGradientMaker(model, config, fisher_type="fisher_emp", loss_type="mse")
            maker.setup_loss_call(loss, maker.setup_model_call(model, x), y)
            maker.forward_and_backward()

        return preconditioned(problem, run)

    options = {"split": "pi", "source": ASDFGHJKL}
    return PreconditionerUnderTest("asdfghjkl", direction, **options)
