"""Opt-in pytest plugin: the suite on a named backend, without a test file of one's own.

``pytest -p ngd_core.testing.plugin --pyargs ngd_core.testing --ngd-backend mine``
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ngd_core.testing.discovery import find_backend, known_backends
from ngd_core.testing.runner import LEVELS, PROFILES, parametrize_with_checks

__all__ = ["pytest_addoption", "pytest_generate_tests"]


def pytest_addoption(parser: Any) -> None:
    """Add the suite's options.

    Parameters
    ----------
    parser : pytest.Parser
        Of the command line.

    Examples
    --------
    >>> import pytest
    >>> from ngd_core.testing.plugin import pytest_addoption
    >>> parser = pytest.Parser(_ispytest=True)
    >>> pytest_addoption(parser)
    >>> parser.parse(["--ngd-backend", "numpy"]).ngd_backend
    ['numpy']
    """
    group = parser.getgroup("ngd", "conformance with ngd_core")
    group.addoption(
        "--ngd-backend",
        action="append",
        default=[],
        metavar="NAME",
        help=f"backend to check (repeatable); known here: {', '.join(known_backends())}",
    )
    group.addoption("--ngd-profile", choices=tuple(PROFILES), default="default")
    group.addoption("--ngd-max-examples", type=int, metavar="N", help="in place of the profile's")
    group.addoption("--ngd-level", action="append", choices=LEVELS, help="repeatable")
    group.addoption(
        "--ngd-expected-failures",
        metavar="FILE",
        help="JSON: an object of reasons by the names of checks",
    )


def pytest_generate_tests(metafunc: Any) -> None:
    """Give the suite's one test its backends and checks.

    Parameters
    ----------
    metafunc : pytest.Metafunc
        Of any test; others than ``ngd_core.testing.test_laws`` are left alone.

    Raises
    ------
    pytest.UsageError
        If no backend, an unknown one, or an unknown check is named.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from ngd_core.testing.plugin import pytest_generate_tests
    >>> def test_of_somebody(): ...
    >>> pytest_generate_tests(SimpleNamespace(function=test_of_somebody))
    """
    if metafunc.function.__module__ != "ngd_core.testing.test_laws":
        return
    options = metafunc.config.option
    if not options.ngd_backend:
        msg = f"Name a backend: --ngd-backend NAME, one of {', '.join(known_backends())}."
        raise pytest.UsageError(msg)
    try:
        path = options.ngd_expected_failures
        marks = parametrize_with_checks(
            [find_backend(name) for name in options.ngd_backend],
            profile=options.ngd_profile,
            levels=options.ngd_level,
            expected_failures=json.loads(Path(path).read_text()) if path else None,
            max_examples=options.ngd_max_examples,
        )
    except (ImportError, OSError, ValueError) as error:
        raise pytest.UsageError(str(error)) from error
    metafunc.parametrize(*marks.args)
