"""The laws of this library as a suite for other array libraries, adapters and preconditioners.

`check_backend` runs it and gives a report, `parametrize_with_checks` makes tests of it for pytest,
``ngd check --backend NAME`` runs it from a shell. Hypothesis and pytest, from
``ngd-core[checks]``, are loaded when they are used.
"""

from ngd_core.testing.assertions import assert_close, assert_far, tolerance
from ngd_core.testing.discovery import find_backend, known_backends
from ngd_core.testing.protocol import BackendUnderTest, PreconditionerUnderTest
from ngd_core.testing.runner import (
    Report,
    check_backend,
    checks_of,
    parametrize_with_checks,
)

__all__ = [
    "BackendUnderTest",
    "PreconditionerUnderTest",
    "Report",
    "assert_close",
    "assert_far",
    "check_backend",
    "checks_of",
    "find_backend",
    "known_backends",
    "parametrize_with_checks",
    "tolerance",
]
