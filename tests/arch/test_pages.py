"""The code on the pages runs, and prints what the pages say."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
from arch.imports import ROOT

BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(page):
    """Run the Python blocks of a page in one namespace; each text block is what they printed."""
    names, printed, said = {}, io.StringIO(), ""
    for kind, text in BLOCK.findall(page):
        if kind == "text":
            said += text
        else:
            with contextlib.redirect_stdout(printed):
                exec(text, names)
    assert printed.getvalue() == said
    return bool(names)


PAGES = [
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            "analysis",
            "conformance",
            "cupy",
            "getting-started",
            "operators",
            "jax",
            "pytorch",
            "states",
        )
    ),
]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_tells_the_truth(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where its files go
    assert run((ROOT / page).read_text())


def test_the_script_for_jax_is_short():
    """Data, model, step and loop of the front page, in 25 lines."""
    blocks = [text for _, text in BLOCK.findall((ROOT / "README.md").read_text())]
    (script,) = [text for text in blocks if "import ngd_jax" in text]
    assert len(script.splitlines()) <= 25


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", AssertionError),
        ("```python\nprint(1)\n```\n", AssertionError),
        ("```python\nx = 1\n```\n\nThen\n\n```python\nprint(y)\n```\n", NameError),
    ],
)
def test_a_false_page_is_caught(page, error):
    with pytest.raises(error):
        run(page)
