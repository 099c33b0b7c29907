"""The core imports no framework, the layers lie in order, and the checker sees it when not."""

from __future__ import annotations

import textwrap

import pytest
from arch.imports import FRAMEWORKS, loaded, sources, violations
from arch.names import is_public

TEST_TOOLS = {"pytest", "hypothesis"}


def plant(root, files):
    """Write a source tree of ngd_core and empty adapters, with these files in it."""
    for name in ("ngd_core", "backends/ngd_torch", "backends/ngd_jax", "backends/ngd_cupy"):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").touch()
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return root


def test_every_import_is_allowed():
    assert violations() == []


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("_checks.py", "import array_api_compat", "only ngd_core/_xp.py may import"),
        ("factors/dense.py", "from array_api_extra import at", "only ngd_core/_xp.py may import"),
        ("lab/run.py", "import array_api_compat.torch", "only ngd_core/_xp.py may import"),
        ("reference/fisher.py", "from ngd_core.types import Hyper", "ngd_core.reference may"),
        ("reference/fisher.py", "import scipy.linalg", "ngd_core.reference may import numpy."),
        ("losses.py", "import numpy as np", "standard library and ngd_core alone"),
        ("methods/kfac.py", "import torch", "standard library and ngd_core alone"),
        ("methods/kfac.py", "def f():\n    import jax", "standard library and ngd_core alone"),
        ("step/momentum.py", "from importlib import import_module\nimport_module('cupy')", "alone"),
        ("step/momentum.py", "__import__(name)", "imports a computed name"),
        ("types.py", "from ngd_core import _checks\nfrom . import losses", "ngd_core.types may"),
        ("_xp.py", "from ngd_core._checks import rank", "ngd_core._xp may"),
        ("factors/dense.py", "from ngd_core.inversion import damping", "ngd_core.factors may"),
        ("factors/dense.py", "from ..step import momentum", "ngd_core.factors may"),
        ("inversion/__init__.py", "from ..methods import KFAC", "ngd_core.inversion may"),
        ("losses.py", "from ngd_core import step", "ngd_core.losses may"),
        ("methods/kfac.py", "from ngd_core import LayerSpec", "ngd_core.methods may"),
        ("methods/kfac.py", "from ngd_core import testing", "ngd_core.methods may"),
        ("__init__.py", "from ngd_core import lab", "ngd_core may"),
        ("nn/dense.py", "from ngd_core.reference import conv2d", "ngd_core.nn may"),
        ("testing/laws.py", "import torch", "loads torch inside functions only"),
        ("lab/run.py", "import torch", "loads torch inside functions only"),
        ("lab/run.py", "import ngd_torch", "loads ngd_torch inside functions only"),
        ("lab/run.py", "def f():\n    import ngd_cupy", "ngd_core.lab may import"),
        ("lab/jax_train.py", "import torch", "loads torch inside functions only"),
        ("lab/run.py", "from ngd_core.lab import torch_train", "inside functions only"),
        ("lab/torch_train.py", "import jax", "loads jax inside functions only"),
        ("nn/torch_train.py", "import torch", "standard library and ngd_core alone"),
        ("helpers.py", "", "ngd_core.helpers is in no layer"),
        ("../backends/ngd_torch/hooks.py", "import jax", "ngd_torch may import"),
        ("../backends/ngd_torch/table.py", "import rich", "ngd_torch loads rich inside functions"),
        ("../backends/ngd_jax/table.py", "def f():\n    import rich", "ngd_jax may import"),
        ("../backends/ngd_jax/tap.py", "from ngd_torch import hooks", "ngd_jax may import"),
        ("../backends/ngd_cupy/fit.py", "from ngd_core import lab", "nothing imports lab"),
    ],
)
def test_a_forbidden_import_is_named(tmp_path, file, line, fault):
    found = violations(plant(tmp_path, {f"ngd_core/{file}": line + "\n"}))
    assert len(found) == 1
    name = file.removeprefix("../") if file.startswith("..") else f"ngd_core/{file}"
    assert found[0].startswith(f"{name}:{max(1, len(line.splitlines()))}: ")
    assert fault in found[0]


def test_allowed_imports_pass(tmp_path):
    files = {
        "ngd_core/__init__.py": "from ngd_core.methods import KFAC",
        "ngd_core/_xp.py": "import array_api_compat\nimport array_api_extra as xpx",
        "ngd_core/factors/conv.py": "from ngd_core import _xp\nfrom .dense import A",
        "ngd_core/methods/kfac.py": "import math\nfrom ngd_core.inversion.spd import f",
        "ngd_core/reference/fisher.py": "import numpy\nfrom ngd_core.reference.losses import f",
        "ngd_core/testing/laws.py": "import pytest\nfrom ngd_core import reference",
        "ngd_core/lab/run.py": "import rich\ndef f():\n    import torch, ngd_torch",
        "ngd_core/lab/torch_train.py": "import torch\nfrom ngd_core.lab import torch_models",
        "backends/ngd_torch/hooks.py": "import torch\nfrom ngd_core import KFAC",
    }
    assert violations(plant(tmp_path, files)) == []


def test_a_fresh_interpreter_loads_no_framework():
    public = [name for name, _ in sources() if name.startswith("ngd_core") and is_public(name)]
    core = [name for name in public if name.split(".")[1:2] not in (["reference"], ["testing"])]
    assert len(core) > 10
    assert loaded(core, FRAMEWORKS | TEST_TOOLS | {"numpy"}) == set()


def test_the_oracle_and_the_command_load_no_framework():
    assert loaded(["ngd_core.reference"], FRAMEWORKS | TEST_TOOLS) == set()
    assert loaded(["ngd_core.lab.cli"], FRAMEWORKS | TEST_TOOLS) == set()


def test_a_loaded_framework_is_named(tmp_path):
    plant(tmp_path, {"ngd_core/losses.py": "import ngd_core.maths", "ngd_core/maths.py": ""})
    assert loaded(["ngd_core.losses"], {"numpy"}, tmp_path) == set()
    (tmp_path / "ngd_core/maths.py").write_text("import numpy, pytest")
    assert loaded(["ngd_core.losses"], {"numpy", "pytest", "torch"}, tmp_path) == {
        "numpy",
        "pytest",
    }


def test_a_module_that_fails_to_import_is_no_success(tmp_path):
    with pytest.raises(AssertionError, match=r"No module named 'ngd_core\.losses'"):
        loaded(["ngd_core.losses"], {"numpy"}, plant(tmp_path, {}))
