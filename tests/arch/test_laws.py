"""Every test that the law table names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def missing(page: str, sources: str) -> list[str]:
    named = set(re.findall(r"\b(test_\w+)\b(?!\.py)", page))
    return sorted(name for name in named if f"def {name}(" not in sources)


def test_the_law_table_names_tests_that_exist():
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("[!m]*/*.py"))
    assert missing((ROOT / "docs/laws.md").read_text(), sources) == []


def test_a_name_without_a_test_is_found():
    assert missing("`test_a.py::test_b`, `test_c`", "def test_b(): ...") == ["test_c"]
