"""The lowest versions are the bounds of pyproject.toml, whatever they are."""

from __future__ import annotations

import sys

import pytest
from release.bounds import constraints, lowest
from release.check import pythons


def test_the_highest_of_several_lower_bounds_is_the_lowest_version():
    lines = ["numpy>=2.1", "Some_Tool[x]>=1.9", "some-tool>=1.10", "some.tool>=1.2"]
    assert lowest(lines) == {"numpy": "2.1", "some-tool": "1.10"}


@pytest.mark.parametrize("line", ["numpy", "numpy>=2,<3", "numpy==2.1", "numpy>2"])
def test_what_is_no_lower_bound_is_an_error(line):
    with pytest.raises(ValueError, match="is no lower bound"):
        lowest([line])


def test_constraints_are_read_from_the_project(tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["a>=1"]\n'
        '[project.optional-dependencies]\nx = ["big>=2"]\n'
        '[dependency-groups]\ntest = ["t>=3"]\ndocs = ["d>=4"]\n'
    )
    (tmp_path / "constraints.txt").write_text("a==1.5\nBig==2.9\n")
    assert constraints("lowest", [], tmp_path) == ["a==1", "big==2", "t==3"]
    assert constraints("lowest", ["big"], tmp_path) == ["a==1", "big==2.9", "t==3"]
    assert constraints("newest", ["big"], tmp_path) == ["big==2.9"]


def test_every_bound_of_this_project_can_be_tested():
    lines = constraints("lowest", ["torch"])
    assert "numpy==2.1" in lines
    assert constraints("newest", ["torch"]) == [
        line for line in lines if line.startswith("torch==")
    ]


def test_interpreters_that_start_are_found(tmp_path):
    for name, text in {"python3.12": "echo Python 3.12.9", "python3.13": "exit 127"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    assert pythons(str(tmp_path)) == [str(tmp_path / "python3.12")]
    assert pythons(str(tmp_path / "empty")) == [sys.executable]
