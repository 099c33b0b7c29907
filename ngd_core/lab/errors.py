"""Mistakes that the command answers with one sentence instead of a traceback."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

__all__ = ["UserError", "need", "unknown"]


class UserError(Exception):
    """What is wrong with the request, in one sentence for the person who made it."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is not known, and which one was probably meant, or which ones there are."""
    known = list(known)
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return f"unknown {kind} '{name}'; {hint}"


def need(module: str, package: str, extra: str) -> ModuleType:
    """Import an optional library, or say how to install it.

    Raises
    ------
    UserError
        If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        msg = (
            f"This needs {package}, which is not installed; "
            f"install it with: pip install 'ngd-core[{extra}]'"
        )
        raise UserError(msg) from None
