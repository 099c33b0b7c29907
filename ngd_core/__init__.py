"""Natural-gradient methods written once against the Python Array API standard."""

from ngd_core.types import Conv2dGeometry, Hyper, Info, LayerRecord, LayerSpec

__all__ = ["Conv2dGeometry", "Hyper", "Info", "LayerRecord", "LayerSpec"]
