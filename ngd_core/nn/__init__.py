"""Neural-network layers with hand-written forward and backward passes.

They run on every Array API library, and are the models of NumPy and CuPy users and a partner for
differential tests of the adapters to PyTorch and JAX. A layer is a frozen dataclass of static
options; parameters are a dict of ``[W b]`` blocks by layer name. No random numbers are drawn.
"""

from ngd_core.nn.activations import GELU, ReLU, Sigmoid, Tanh
from ngd_core.nn.conv import Conv2d
from ngd_core.nn.layers import Dense, Flatten, LayerNorm
from ngd_core.nn.model import Layer, Residual, Sequential, init, shapes, specs
from ngd_core.nn.passes import Backward, Tape, backward, forward, predict
from ngd_core.nn.pool import AvgPool2d, GlobalAvgPool2d, MaxPool2d

__all__ = [
    "AvgPool2d",
    "Backward",
    "Conv2d",
    "Dense",
    "Flatten",
    "GELU",
    "GlobalAvgPool2d",
    "Layer",
    "LayerNorm",
    "MaxPool2d",
    "ReLU",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "Tape",
    "backward",
    "forward",
    "init",
    "predict",
    "shapes",
    "specs",
]
