"""Data sets of the `datasets` library: names on the Hugging Face hub and folders written by `save_to_disk`."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from chainrule.errors import DataError, Problem, Where
from chainrule.system.extras import require

CONNECT_SECONDS = 10
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")


def looks_like_hub_name(name: str) -> bool:
    """Whether `name` has the form OWNER/NAME or NAME, perhaps with :CONFIGURATION."""
    return _HUB_NAME.fullmatch(name) is not None


def read_hub(name: str) -> dict[str, Any]:
    """Load a data set of the hub by the ordinary `datasets` code; nothing of it is executed.

    Raises:
        MissingExtraError: `datasets` is not installed.
        DataError: there is no such data set, or the hub cannot be reached.
    """
    datasets = require(
        "datasets", extra="hub", purpose=f"{name!r} is not a file or folder here; loading it from the hub"
    )
    hub = require("huggingface_hub", extra="hub", purpose=f"Loading {name!r} from the hub")
    path, _, configuration = name.partition(":")
    try:
        # One request first: without a connection, loading would try for half a minute.
        with suppress(hub.errors.OfflineModeIsEnabled):
            hub.HfApi().dataset_info(path, timeout=CONNECT_SECONDS)
        loaded = datasets.load_dataset(path, configuration or None)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        problem = Problem(
            where=Where(file=name),
            expected="a file, a folder, a catalog name or a data set on the Hugging Face hub",
            got=f"nothing at that path, and the hub gave: {reason}",
            todo="Check the name and the connection. Without the hub: a local file or folder, or a name of "
            "`chainrule show catalog`. HF_HUB_OFFLINE=1 uses what was downloaded before.",
        )
        raise DataError(f"There is no data at {name}, here or on the hub.", [problem]) from error
    return dict(loaded)


def read_saved(folder: Path) -> Any:
    """Load what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        MissingExtraError: `datasets` is not installed.
        DataError: the folder is damaged.
    """
    datasets = require("datasets", extra="hub", purpose=f"{folder} was written by `datasets`; loading it")
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:
        problem = Problem(
            where=Where(file=str(folder)),
            expected="a folder written by save_to_disk",
            got=(str(error).splitlines() or [type(error).__name__])[0][:300],
            todo="Write it again, or save it as Parquet files named train, validation and test.",
        )
        raise DataError(f"Cannot read the data set in {folder}.", [problem]) from error
