"""The tables in docs/support.md, from one statement that the tests hold the adapters to.

``make acceptance``, or ``python -m support.table`` in tests, writes the page.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from ngd_core import EKFAC, FNGD, KFAC, SNGD, DenseNGD, ProjectiveKFAC, TridiagonalKFAC
from ngd_core.types import KINDS

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
BACKENDS = ("NumPy", "CuPy", "PyTorch", "JAX")


class Entry(NamedTuple):
    """A method, its page, and its name in each adapter that offers it."""

    method: Any
    page: str | None
    names: dict[str, str]

    def backends(self, kind: str) -> tuple[str, ...]:
        """Where it takes layers of a kind."""
        if kind not in self.method.kinds:
            return ()
        return tuple(b for b in BACKENDS if b in self.names and kind in LAYERS[b])


def _everywhere(name: str, in_jax: str) -> dict[str, str]:
    return {
        "NumPy": f"ngd_core.{name}",
        "CuPy": f"ngd_cupy.{name}",
        "PyTorch": f"ngd_torch.{name}",
        "JAX": f"ngd_jax.{in_jax}",
    }


def _on_blocks(name: str) -> dict[str, str]:
    return {"NumPy": f"ngd_core.{name}", "CuPy": "ngd_cupy.NaturalGradient"}


METHODS = {
    "K-FAC, KFC": Entry(KFAC(), "kfac", _everywhere("KFAC", "kfac")),
    "EKFAC": Entry(EKFAC(), "kfac", _everywhere("EKFAC", "ekfac")),
    "Projective K-FAC": Entry(
        ProjectiveKFAC(rank=0.5), "projective", _everywhere("ProjectiveKFAC", "projective_kfac")
    ),
    "SNGD": Entry(SNGD(), "sngd", _everywhere("SNGD", "sngd")),
    "FNGD": Entry(FNGD(batch_size=4), "fngd", _everywhere("FNGD", "fngd")),
    "Block-tridiagonal K-FAC": Entry(TridiagonalKFAC(), None, _on_blocks("TridiagonalKFAC")),
    "Dense Fisher": Entry(DenseNGD(), None, _on_blocks("DenseNGD")),
}
"""Those with layers; SOFIM has none."""

CORE = {"dense": ("Dense",), "conv2d": ("Conv2d",)}
LAYERS: dict[str, dict[str, tuple[str, ...]]] = {
    "NumPy": CORE | {"embedding": (), "scale": ()},
    "CuPy": CORE,
    "PyTorch": {
        "dense": (
            "Linear",
            "MultiheadAttention",
            "LSTM",
            "GRU",
            "RNN",
            "LSTMCell",
            "GRUCell",
            "RNNCell",
        ),
        "conv2d": (
            "Conv1d",
            "Conv2d",
            "Conv3d",
            "ConvTranspose1d",
            "ConvTranspose2d",
            "ConvTranspose3d",
        ),
        "embedding": ("Embedding",),
        "scale": (
            "LayerNorm",
            "RMSNorm",
            "GroupNorm",
            "BatchNorm1d",
            "BatchNorm2d",
            "BatchNorm3d",
            "InstanceNorm1d",
            "InstanceNorm2d",
            "InstanceNorm3d",
        ),
    },
    "JAX": {
        "dense": ("dot_general",),
        "conv2d": ("conv_general_dilated",),
        "embedding": ("gather",),
        "scale": ("mul",),
    },
}
"""What layers of a kind are called: classes, and in JAX the operation with the parameter.

The core by itself takes records of every kind, from wherever they come.
"""

HEAD = """\
# Support

Which method takes which kind of layer, and where. `tests/support` holds the adapters to the
statement that this page is written from by `make acceptance`. Parameters in other layers follow
their gradients, and the report of the adapters to PyTorch and JAX says so. "NumPy" is the core by
itself, with records of your own; "CuPy" is `ngd_cupy` on networks of `ngd_core.nn`, whose
`LayerNorm` follows its gradient, and where a method that lacks a kind refuses the network.

"""
KINDS_HEAD = """
SOFIM has no layers: `ngd_core.SOFIM`, `ngd_torch.SOFIM`, `ngd_jax.sofim` and `ngd_cupy.SOFIM` take
every parameter.

## What the kinds are called

"""
NAMES_HEAD = """
In JAX a kind is found by the operation in which a parameter meets data, whatever library the model
is written in. More is said at [PyTorch](pytorch.md#what-is-covered) and
[JAX](jax.md#what-is-found).

## What the methods are called

"""


def _where(backends: Collection[str]) -> str:
    if len(backends) == len(BACKENDS):
        return "all"
    return ", ".join(backends) or "no"


def _table(head: Collection[str], rows: Collection[Collection[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page() -> str:
    """Text of the page."""
    takes = [
        [
            title if entry.page is None else f"[{title}](methods/{entry.page}.md)",
            *(_where(entry.backends(kind)) for kind in KINDS),
        ]
        for title, entry in METHODS.items()
    ]
    kinds = [
        [f"`{kind}`", *(", ".join(f"`{n}`" for n in LAYERS[b].get(kind, ())) for b in BACKENDS[1:])]
        for kind in KINDS
    ]
    names = [
        [
            title,
            *(
                f"`{entry.names[b].partition('.')[2]}`" if b in entry.names else ""
                for b in BACKENDS
            ),
        ]
        for title, entry in METHODS.items()
    ]
    return (
        HEAD
        + _table(["", *(f"`{kind}`" for kind in KINDS)], takes)
        + KINDS_HEAD
        + _table(["", "`ngd_core.nn`", "PyTorch modules", "JAX operations"], kinds)
        + NAMES_HEAD
        + _table(["", "`ngd_core`", "`ngd_cupy`", "`ngd_torch`", "`ngd_jax`"], names)
    )


if __name__ == "__main__":
    PAGE.write_text(page())
