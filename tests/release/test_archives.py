"""What a wheel and a source archive must hold, and that each fault is named."""

from __future__ import annotations

import tomllib

import pytest
from release.archives import (
    NOTES,
    ROOT,
    expected,
    metadata_faults,
    sdist_faults,
    version_faults,
    wheel_faults,
)

TREE = ["a/__init__.py", "a/py.typed", "back/b/__init__.py", "back/b/py.typed", "tests/test_a.py"]
CODE = {"a/__init__.py", "a/py.typed", "b/__init__.py", "b/py.typed"}
ABOUT = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
WHEEL = {*CODE, *(f"a-1.dist-info/{name}" for name in ABOUT)}


def test_a_wheel_holds_the_packages_and_nothing_else():
    assert expected(TREE, ["a", "back/b"]) == CODE
    assert wheel_faults(WHEEL, CODE) == []


@pytest.mark.parametrize(
    ("more", "less", "fault"),
    [
        ("tests/test_a.py", None, "holds tests/test_a.py"),
        ("a/__pycache__/x.pyc", None, "holds a/__pycache__/x.pyc"),
        (None, "b/__init__.py", "lacks b/__init__.py"),
        (None, "a-1.dist-info/licenses/LICENSE", "lacks its licenses/LICENSE"),
        (None, "a-1.dist-info/entry_points.txt", "lacks its entry_points.txt"),
    ],
)
def test_a_wrong_wheel_is_named(more, less, fault):
    [found] = wheel_faults((WHEEL | ({more} - {None})) - {less}, CODE)
    assert fault in found


def test_a_package_without_its_type_marker_is_named():
    assert wheel_faults(WHEEL - {"b/py.typed"}, CODE - {"b/py.typed"}) == [
        "the wheel lacks b/py.typed"
    ]


def test_a_source_archive_is_the_tree():
    names = {f"a-1/{name}" for name in [*TREE, "PKG-INFO"]}
    assert sdist_faults(names, TREE) == []
    assert sdist_faults(names - {"a-1/back/b/py.typed"}, TREE) == [
        "the source archive lacks back/b/py.typed"
    ]
    assert sdist_faults(names | {"a-1/.env"}, TREE) == [
        "the source archive holds .env, which is not in the tree"
    ]


METADATA = """\
Metadata-Version: 2.4
Name: a
Version: 0.1.0
License-Expression: Apache-2.0
Description-Content-Type: text/markdown

# A
"""


def test_metadata_are_valid_and_show_the_readme():
    assert metadata_faults(METADATA, "# A\n", "0.1.0") == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("# A", "# B", "not README.md"),
        ("text/markdown", "text/x-rst", "Description-Content-Type"),
        ("0.1.0", "0.2.0", "Version is '0.2.0'"),
        ("Name: a", "Name: -a", "not valid"),
        ("Apache-2.0", "Apache Licence", "not valid"),
    ],
)
def test_wrong_metadata_are_named(old, new, fault):
    found = metadata_faults(METADATA.replace(old, new), "# A", "0.1.0")
    assert any(fault in line for line in found)


def test_the_version_is_semantic_and_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version_faults(version, *((ROOT / name).read_text() for name in NOTES)) == []


@pytest.mark.parametrize(
    ("version", "section", "cited", "fault"),
    [
        ("0.1", "0.1", "0.1", "expected three numbers"),
        ("0.01.0", "0.01.0", "0.01.0", "expected three numbers"),
        ("0.1.1", "0.1.0", "0.1.1", "no section [0.1.1]"),
        ("0.1.0", "0.1.0", "0.1.0rc1", "not of version 0.1.0"),
        ("0.1.0rc1", "0.1.0", "0.1.0rc1", None),
    ],
)
def test_a_version_that_is_not_everywhere_is_named(version, section, cited, fault):
    found = version_faults(version, f"## [{section}]\n", f"title: a\nversion: {cited}\n")
    assert [fault in line for line in found] == ([] if fault is None else [True])
