"""Sphinx configuration; `make docs` builds with warnings as errors."""

import re
from importlib.metadata import version as _version

project = "ngd-core"
author = "the ngd-core authors"
project_copyright = f"2026, {author}"
release = _version("ngd-core")

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
exclude_patterns = ["_build", "templates"]
templates_path = ["templates"]
default_role = "code"

autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

html_theme = "furo"
html_title = "ngd-core"


def _escape_stars(app, what, name, obj, options, lines):
    """Keep ``(*stack, n)`` in a parameter's type from starting an emphasis."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(``.*?``)", line)
            parts[::2] = [re.sub(r"(?<=[(\s])\*(?=\w)", r"\\*", part) for part in parts[::2]]
            lines[i] = "".join(parts)


def _skip_fields(app, what, name, obj, skip, options):
    """Leave out what Python says of a NamedTuple's fields; the class says it better."""
    return True if str(obj.__doc__).startswith("Alias for field number") else None


def _short_defaults(app, what, name, obj, options, signature, returns):
    """Write ... for a default that is a function, in place of its address."""
    short = signature and re.sub(r"<function [\w.]*(<lambda>)?[^>]*>", "...", signature)
    return short, returns


def setup(app):
    """Register the hooks with Sphinx."""
    app.connect("autodoc-process-signature", _short_defaults)
    app.connect("autodoc-process-docstring", _escape_stars, priority=100)
    app.connect("autodoc-skip-member", _skip_fields)
