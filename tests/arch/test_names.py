"""Public names are those of the checked-in inventory; removing one is a deliberate edit."""

from __future__ import annotations

from arch.names import faults, inventory, is_public, read

ADVICE = "if this is meant: cd tests && ../.venv/bin/python -m arch.names"


def test_public_names_are_those_of_the_inventory():
    assert faults(read(), inventory()) == [], ADVICE


def test_underscored_modules_and_the_command_are_private():
    assert is_public("ngd_core.factors.patches")
    assert not is_public("ngd_core._xp")
    assert not is_public("ngd_core.lab.cli")


def test_every_difference_is_named():
    known = {"math": ["cos", "sin"], "cmath": ["exp"]}
    got = {"math": ["cos", "tan", "nothing"], "string": None}
    assert faults(got, known) == [
        "math.__all__ names nothing, which is not there.",
        "math.tan is not in the inventory.",
        "math.nothing is not in the inventory.",
        "math.sin is gone.",
        "string has no __all__.",
        "cmath is gone.",
    ]


def test_names_are_read_from_the_source(tmp_path):
    package = tmp_path / "ngd_core"
    package.mkdir()
    (package / "__init__.py").write_text('"""Only a docstring."""')
    (package / "_hidden.py").write_text("x = 1")
    (package / "a.py").write_text('"""Doc."""\n__all__ = ["g", "f"]')
    (package / "b.py").write_text('"""Doc."""\nx = 1')
    assert read(tmp_path) == {"ngd_core.a": ["f", "g"], "ngd_core.b": None}
