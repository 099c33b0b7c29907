"""Every link and anchor of the pages leads somewhere, and is seen when it does not."""

from __future__ import annotations

import pkgutil
import runpy

import pytest
from arch.imports import ROOT
from arch.links import anchors, faults, links, pages


def test_every_link_leads_somewhere():
    assert len(pages()) > 10
    assert faults() == []


def test_names_of_other_projects_exist_there():
    """Those that the reference links to, as it has no inventory of the network."""
    linked = runpy.run_path(str(ROOT / "docs/inventories.py"))
    names = {name for _, found in linked["PROJECTS"].values() for name in found}
    assert names >= set(linked["ALIASES"].values())
    for name in names:
        assert isinstance(pkgutil.resolve_name(name), type), name


CONF = "myst_heading_anchors = 2\n"
OTHER = """\
# Another page

## What is `covered`, and [why](page.md)?

(named-place)=
### Too deep

```
## no heading
```

## Twice

## Twice
"""


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/conf.py").write_text(CONF)
    (tmp_path / "docs/other.md").write_text(OTHER)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[a](gone.md)", "gone.md leads nowhere"),
        ("![a](gone.png)", "gone.png leads nowhere"),
        ("[a](other.md#gone)", "other.md#gone names a heading that is not there"),
        ("[a](other.md#too-deep)", "names a heading that is not there"),
        ("[a](other.md#no-heading)", "names a heading that is not there"),
        ("[a](#gone)", "#gone names a heading that is not there"),
        ("[a](../../away.md)", "leads out of the tree"),
        ("[a][b]\n\n[b]: gone.md", "gone.md leads nowhere"),
        ("[a][b]", "[b] has no definition"),
        ("[a][]", "[a] has no definition"),
        ('<a href="gone.md">a</a>', "gone.md leads nowhere"),
        ("[a](http://example.org/)", "is not a well-formed https address"),
        ("see http://example.org, please", "http://example.org is not a well-formed https address"),
        ("<https://example>", "https://example is not a well-formed https address"),
        ("[a](https:/example.org)", "is not a well-formed https address"),
        ("[a](htps://example.org)", "is not a well-formed https address"),
    ],
)
def test_a_dead_link_is_named(tree, text, fault):
    (tree / "docs/page.md").write_text(text)
    found = [line for line in faults(tree) if line.startswith("docs/page.md")]
    assert len(found) == 1
    assert fault in found[0]


def test_living_links_pass(tree):
    (tree / "docs/page.md").write_text(
        "# Here\n\n[a](other.md) [b](other.md#what-is-covered-and-why) [c](#here)\n"
        "[e](other.md#twice-1) [f](other.md#named-place) [g][h] [i](https://example.org/a_(b))\n"
        "`[x](gone.md)` <https://example.org/~a>, https://example.org/x. x[i] [no link]\n\n"
        "```python\na[b][c]\n[x](gone.md)\n```\n\n[h]: other.md#twice\n"
    )
    assert faults(tree) == []


def test_pages_in_folders_are_looked_at_but_for_what_sphinx_made(tree):
    for folder in ("methods", "_build"):
        (tree / "docs" / folder).mkdir()
        (tree / "docs" / folder / "page.md").write_text("[a](../gone.md) [b](../other.md#too-deep)")
    (tree / "docs/page.md").touch()
    assert faults(tree) == [
        "docs/methods/page.md: ../gone.md leads nowhere",
        "docs/methods/page.md: ../other.md#too-deep names a heading that is not there",
    ]


def test_citations_are_looked_at(tree):
    (tree / "CITATION.cff").write_text("url: http://example.org/a\n")
    (tree / "docs/page.md").touch()
    assert faults(tree) == ["CITATION.cff: http://example.org/a is not a well-formed https address"]


def test_anchors_and_links_are_read_as_people_do():
    assert anchors("# A b\n## C: d_e, f-g!\n") == {"a-b", "c-d_e-f-g"}
    assert list(links('[a](b.md) and [c](<d.md> "title")')) == ["b.md", "d.md"]
