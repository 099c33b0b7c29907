"""The code on the pages runs, and prints what the pages say."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re

import pytest
from arch.imports import ROOT

import ngd_core
from ngd_core.inversion import PURE

BLOCK = re.compile(
    r"^```(python|text|\{code-cell\})\n(?:---\n.*?^---\n)?(.*?)^```$", re.MULTILINE | re.DOTALL
)


def run(page):
    """Run the Python blocks and cells of a page; each text block is what they printed."""
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
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "docs").rglob("*.md"))
        if re.search(r"^```(python|\{code-cell\})\n", path.read_text(), re.MULTILINE)
    ),
]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_tells_the_truth(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where its files go
    monkeypatch.setenv("MPLBACKEND", "agg")
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


OPTION = re.compile(r"^\| `(\w+)\.(\w+)` \| (.*?) \|", re.MULTILINE)


def stated(default):
    if default is dataclasses.MISSING:
        return "required"
    return "`PURE`" if default is PURE else f"`{default!r}`"


@pytest.mark.parametrize("method", ["KFAC", "EKFAC", "SNGD", "FNGD", "SOFIM", "ProjectiveKFAC"])
def test_a_page_lists_every_option_of_a_method_with_its_default(method):
    pages = "".join(path.read_text() for path in (ROOT / "docs/methods").glob("*.md"))
    listed = {option: default for name, option, default in OPTION.findall(pages) if name == method}
    fields = dataclasses.fields(getattr(ngd_core, method))
    assert listed == {field.name: stated(field.default) for field in fields}
