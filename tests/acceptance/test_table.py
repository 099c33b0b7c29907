"""docs/acceptance.md is what the tests say, and every test it names exists."""

import textwrap

import pytest
from acceptance.table import PAGE, data, failed, faults, page

ROW = {"construct": "a", "ours": "right", "tests": ["test_a.py::test_b[x y]"], "peers": {"P": "ok"}}
CONTENT = {"source": "Probe.", "rows": [ROW]}
SOURCE = """
import pytest

@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", ["x y", "x", "broken"])
def test_b(name, k):
    assert name != "broken" or k == 1

def test_c():
    pass
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "test_a.py").write_text(textwrap.dedent(SOURCE))
    return tmp_path


def test_the_page_is_what_the_tests_say():
    assert faults(data()) == []
    assert PAGE.read_text() == page(data()), "run make acceptance"


def test_names_are_looked_for(folder):
    assert faults(CONTENT, folder) == []
    for test, fault in {
        "test_z.py::test_b": "no file test_z.py",
        "test_a.py::test_z": "has no test_z",
        "test_a.py::test_b[z]": "has no case 'z'",
    }.items():
        rows = [ROW, {**ROW, "tests": [test]}]
        assert fault in faults({**CONTENT, "rows": rows}, folder)[0]
    assert "no test stands" in faults({**CONTENT, "rows": [{**ROW, "tests": []}]}, folder)[0]


def test_what_fails_is_told(folder):
    tests = [f"test_a.py::{name}" for name in ("test_b[x y]", "test_b[x]", "test_b[1]", "test_c")]
    never = "test_a.py::test_b[y]"
    assert failed([*tests, "test_a.py::test_b[broken]", never], folder) == [
        "test_a.py::test_b[broken]",
        never,
    ]
    assert failed(tests[:2], folder) == []
    assert failed(["test_a.py::test_b"], folder) == ["test_a.py::test_b"]
    assert "| FAILED: test_a.py::test_b[x y] |" in page(CONTENT, ["test_a.py::test_b[x y]"])
    assert "| 1 | a | right | `test_b[x y]` |" in page(CONTENT)
