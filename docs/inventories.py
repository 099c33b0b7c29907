"""Names of other projects that the reference links to; nothing is looked up on the network."""

from __future__ import annotations

import zlib
from pathlib import Path

PROJECTS = {
    "numpy": (
        "https://numpy.org/doc/stable/",
        {"numpy.ndarray": "reference/generated/numpy.ndarray.html"},
    ),
    "torch": (
        "https://docs.pytorch.org/docs/stable/",
        {
            "torch.Generator": "generated/torch.Generator.html",
            "torch.Tensor": "tensors.html#torch.Tensor",
            "torch.nn.Module": "generated/torch.nn.Module.html",
            "torch.nn.Parameter": "generated/torch.nn.parameter.Parameter.html",
            "torch.optim.Optimizer": "optim.html#torch.optim.Optimizer",
        },
    ),
    "jax": (
        "https://docs.jax.dev/en/latest/",
        {
            "jax.Array": "_autosummary/jax.Array.html",
            "jax.sharding.Mesh": "jax.sharding.html#jax.sharding.Mesh",
        },
    ),
    "optax": (
        "https://optax.readthedocs.io/en/latest/",
        {
            name: f"api/transformations.html#{name}"
            for name in (
                "optax.GradientTransformation",
                "optax.GradientTransformationExtraArgs",
            )
        },
    ),
}
"""Address of each project, and its names with their pages."""
ALIASES = {
    "Generator": "torch.Generator",
    "Mesh": "jax.sharding.Mesh",
    "Tensor": "torch.Tensor",
    "nn.Module": "torch.nn.Module",
    "nn.Parameter": "torch.nn.Parameter",
    "tensor": "torch.Tensor",
}
"""What docstrings write for some of these names."""


def mapping(folder: Path) -> dict[str, tuple[str, str]]:
    """Write an inventory for each project into a folder, as `sphinx.ext.intersphinx` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for project, (address, pages) in PROJECTS.items():
        head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version:\n"
        head += "# The remainder of this file is compressed using zlib.\n"
        lines = "".join(f"{name} py:class 1 {page} -\n" for name, page in pages.items())
        path = folder / f"{project}.inv"
        path.write_bytes(head.encode() + zlib.compress(lines.encode()))
        found[project] = (address, str(path))
    return found


def aliases() -> dict[str, str]:
    """Link of every name and of what docstrings write for it, as `numpydoc_xref_aliases`."""
    names = {name: name for _, pages in PROJECTS.values() for name in pages}
    return {said: f":class:`{said} <{name}>`" for said, name in (names | ALIASES).items()}
