"""Links of the pages: where each leads, looked up in the tree; ``python -m arch.links``."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from arch.imports import ROOT

MADE = {"_build", "generated"}
CODE = re.compile(r"^(```+|~~~+).*?^\1[ \t]*$|(`+)(?!`).+?(?<!`)\2(?!`)", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^(```+|~~~+).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t#]*$", re.MULTILINE)
TARGET = re.compile(r"^\((?P<name>[\w-]+)\)=[ \t]*$", re.MULTILINE)
DEFINED = re.compile(r"^ {0,3}\[([^\]^]+)\]:[ \t]*<?([^\s>]+)", re.MULTILINE)
LINKS = (
    re.compile(r"\]\(\s*<?([^()\s<>]*(?:\([^()\s]*\))?[^()\s<>]*)>?(?:\s+\"[^\"]*\")?\s*\)"),
    re.compile(r"<(https?:[^>\s]*)>"),
    re.compile(r"\b(?:href|src)=\"([^\"]+)\""),
    re.compile(r"(?<![<(\"\w/])(https?://[^\s<>)\"]*[^\s<>)\".,;:])"),
)
USED = re.compile(r"\[([^\[\]]+)\]\[([^\[\]]*)\]")


def pages(root: Path = ROOT) -> list[Path]:
    """All Markdown pages for people: those of the root and of docs, without what Sphinx made."""
    inside = (path for path in root.glob("docs/**/*.md") if not MADE & {*path.parts})
    return [*sorted(root.glob("*.md")), *sorted(inside)]


def anchors(text: str, depth: int = 6) -> set[str]:
    """Anchors of a page as GitHub and MyST make them: of headings to a depth, and named targets."""
    text = FENCE.sub("", text)
    found = {match["name"].lower() for match in TARGET.finditer(text)}
    for marks, heading in HEADING.findall(text):
        plain = re.sub(r"!?\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])", r"\1", heading).replace("`", "")
        slug = "".join(c for c in plain.lower() if c.isalnum() or c in "-_ ").replace(" ", "-")
        name, count = slug, 0
        while name in found:
            count += 1
            name = f"{slug}-{count}"
        if len(marks) <= depth:
            found.add(name)
    return found


def links(text: str) -> Iterator[str]:
    """Where links outside of code lead; a label without a definition is given as ``[label]``."""
    text = CODE.sub("", text)
    defined = {label.lower(): target for label, target in DEFINED.findall(text)}
    yield from defined.values()
    body = DEFINED.sub("", text)
    for said, label in USED.findall(body):
        if (label or said).lower() not in defined:
            yield f"[{label or said}]"
    for pattern in LINKS:
        yield from pattern.findall(body)


def fault(target: str, page: Path, root: Path = ROOT) -> str:
    """What is wrong with a link on a page, nothing if nothing is."""
    if target.startswith("["):
        return "has no definition"
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        host = parts.hostname or ""
        if parts.scheme == "https" and re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", host):
            return ""
        return "is not a well-formed https address"
    file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not file.is_relative_to(root.resolve()):
        return "leads out of the tree"
    if not file.exists():
        return "leads nowhere"
    if parts.fragment:
        depth = heading_depth(root) if file.is_relative_to((root / "docs").resolve()) else 6
        if file.suffix != ".md" or parts.fragment not in anchors(file.read_text(), depth):
            return "names a heading that is not there"
    return ""


def heading_depth(root: Path = ROOT) -> int:
    """Depth of headings to which Sphinx gives anchors, from docs/conf.py; 0 if it says nothing."""
    settings = root / "docs" / "conf.py"
    for node in ast.parse(settings.read_text()).body if settings.exists() else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "myst_heading_anchors":
            return int(ast.literal_eval(node.value))
    return 0


def faults(root: Path = ROOT) -> list[str]:
    """One line for each link that leads nowhere, in all pages and in CITATION.cff."""
    found = []
    for page in pages(root):
        name = page.relative_to(root)
        for target in links(page.read_text()):
            if said := fault(target, page.resolve(), root):
                found.append(f"{name}: {target} {said}")
    citation = root / "CITATION.cff"
    for target in re.findall(r"https?:\S*", citation.read_text() if citation.exists() else ""):
        if said := fault(target, citation.resolve(), root):
            found.append(f"{citation.name}: {target} {said}")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(faults()) or 0)
