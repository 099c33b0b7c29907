"""What ``pytest -p ngd_core.testing.plugin --pyargs ngd_core.testing`` collects."""

from __future__ import annotations

from ngd_core.testing.protocol import Subject
from ngd_core.testing.runner import Check

__all__ = ["test_law"]


def test_law(backend: Subject, check: Check) -> None:
    """Hold one law; the plugin gives the arguments.

    Parameters
    ----------
    backend : BackendUnderTest or PreconditionerUnderTest
        Named by ``--ngd-backend``.
    check : Check
        One of its checks.

    Examples
    --------
    >>> from ngd_core.testing import checks_of, find_backend
    >>> from ngd_core.testing.test_laws import test_law
    >>> backend = find_backend("numpy")
    >>> test_law(backend, checks_of(backend, max_examples=1)[0])
    """
    check(backend)
