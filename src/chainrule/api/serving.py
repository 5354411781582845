"""Put fine-tuned models behind HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

from chainrule.api.entry import set_environment
from chainrule.core.request import ServingFlags
from chainrule.system.progress import Display, Quiet


def serve(
    artifacts: str | Path | Sequence[str | Path],
    *,
    display: Display | None = None,
    begun: Callable[[dict[str, Any]], None] | None = None,
    **flags: Unpack[ServingFlags],
) -> dict[str, int]:
    """Serve models until SIGTERM or Ctrl-C; every request that was accepted by then is answered.

    Args:
        artifacts: run or artifact folders; NAME=FOLDER gives a model another name than its folder's.
        begun: told {"url": …, "models": […]} once requests are taken.
        flags: `host` (default 127.0.0.1) and `port` (8000; 0 for one that is free); `keys`, a file of API keys, one a
            line, else those of the environment variable CHAINRULE_API_KEYS, or none; `no_auth` lets anybody ask who
            reaches the address: else one that is not loopback needs a key; `origins` of web pages that may ask (none);
            and limits: `max_rows`, `max_text`, `max_tokens`, `max_body`, `queue`, `writing_queue`, `timeout`, `wait`,
            `batch_tokens` and `reading`.

    Returns:
        {"accepted": …, "answered": …}: how many requests.

    Raises:
        UserError: the address cannot be had or needs a key, a model cannot be loaded, or a limit is out of range.
        MissingExtraError: FastAPI, uvicorn or prometheus-client is not installed.
    """
    set_environment()
    from chainrule.system.extras import require

    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, extra="serve", purpose="chainrule serve")
    from chainrule.serving.limits import read_limits
    from chainrule.serving.server import Access
    from chainrule.serving.server import serve as run

    given = [artifacts] if isinstance(artifacts, str | Path) else artifacts
    keys, origins = flags.pop("keys", None), tuple(flags.pop("origins", ()))
    place = Access(
        flags.pop("host", "127.0.0.1"),
        flags.pop("port", 8000),
        Path(keys) if keys else None,
        flags.pop("no_auth", False),
        origins,
    )
    limits = {name: value for name, value in flags.items() if value is not None}
    return run(
        [str(one) for one in given], place, read_limits(limits), display or Quiet(), begun or (lambda about: None)
    )
