"""Sphinx configuration; `make docs` builds with warnings as errors."""

import re
import sys
from importlib.metadata import version as _version
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from jupyter_client.connect import ConnectionFileMixin
from numpydoc.xref import DEFAULT_LINKS
from sphinx.util import logging

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from inventories import aliases, mapping  # noqa: E402

project = "ngd-core"
author = "the ngd-core authors"
project_copyright = f"2026, {author}"
release = _version("ngd-core")

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
]
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
nb_execution_raise_on_error = True
nb_execution_timeout = 120
ConnectionFileMixin.transport.default_value = "ipc"  # kernels of the pages with cells open no port
exclude_patterns = ["_build", "benchmarks", "templates"]
templates_path = ["templates"]
default_role = "code"

autosummary_generate = True
autodoc_typehints = "none"
intersphinx_mapping = mapping(HERE / "_build" / "inventories")
numpydoc_show_class_members = False
numpydoc_xref_param_type = True
DEFAULT_LINKS.clear()  # an array here is any library's, not numpy.ndarray
numpydoc_xref_aliases = aliases()
numpydoc_xref_ignore = "all"
numpydoc_class_members_toctree = False

html_theme = "furo"
html_title = "ngd-core"
html_static_path = ["static"]
html_css_files = ["math.css"]


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


def _math(writer, node):
    """Write a formula as MathML, which browsers show by themselves: no script, no network."""
    block = isinstance(node, nodes.math_block)
    try:
        formula = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("%s: %s", error, node.astext(), location=node)
        formula = writer.encode(node.astext())
    tag = "div" if block else "span"
    writer.body.append(f'<{tag} class="math">{formula}</{tag}>')
    raise nodes.SkipNode


def setup(app):
    """Register the hooks with Sphinx."""
    app.add_html_math_renderer("mathml", (_math, None), (_math, None))
    app.connect("autodoc-process-signature", _short_defaults)
    app.connect("autodoc-process-docstring", _escape_stars, priority=100)
    app.connect("autodoc-skip-member", _skip_fields)
