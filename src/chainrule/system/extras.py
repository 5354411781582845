"""Optional packages, asked for kindly."""

from __future__ import annotations

import importlib
from typing import Any

from chainrule.errors import MissingExtraError, Problem


def require(module: str, *, extra: str, purpose: str) -> Any:
    """Import an optional package.

    Args:
        module: the module to import, e.g. "tensorboard".
        extra: the extra of Chainrule that installs it.
        purpose: what it is needed for, as the subject of the message.

    Raises:
        MissingExtraError: the package is not installed; the message names the pip line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        line = f"pip install 'chainrule[{extra}]'"
        problem = Problem(
            expected=f"the Python package {module.split('.', maxsplit=1)[0]!r}",
            got="not installed",
            todo=f"Run: {line}",
        )
        raise MissingExtraError(f"{purpose} needs an optional package: {line}", [problem]) from error
