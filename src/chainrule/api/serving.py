"""Put fine-tuned models behind HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

from chainrule.api.entry import set_environment
from chainrule.core.request import ServingFlags
from chainrule.errors import Problem, RecipeError, Where
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
            `hosts`, names that it answers to beside loopback's and that of its address, or "*";
            `monitor`, a file that predictions are kept in and watched with, and `window`, `cycle`, `false_alarms`,
            `monitor_rows`, `keep_text`, `segment`, `low_confidence` and `webhook`, as `watch` explains them; `split`,
            e.g. "a=90,b=10", which shares out requests that name no model; `shadows`, e.g. ["a=b"]: b is asked what a
            has answered; `reload`, seconds between looks for new versions (else at SIGHUP); `memory`, e.g. "2G",
            which the weights of all models may take together: others are loaded when they are asked for; `engine`, an
            Engine, whose workers are replicas of the server;
            and limits: `max_rows`, `max_text`, `max_tokens`, `max_body`, `queue`, `writing_queue`, `timeout`, `wait`,
            `batch_tokens` and `reading`.

    Returns:
        {"accepted": …, "answered": …}: how many requests; of an engine's replicas nothing.

    Raises:
        UserError: the address cannot be had or needs a key, a model cannot be loaded, or a limit is out of range.
        MissingExtraError: FastAPI, uvicorn or prometheus-client is not installed.
    """
    set_environment()
    from chainrule.system.extras import require

    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, extra="serve", purpose="chainrule serve")
    from chainrule.monitoring.session import FLAGS, settings_given
    from chainrule.serving.limits import read_limits, read_memory
    from chainrule.serving.server import Access, Operation
    from chainrule.serving.server import serve as run

    given = [artifacts] if isinstance(artifacts, str | Path) else artifacts
    keys, origins, hosts = flags.pop("keys", None), tuple(flags.pop("origins", ())), tuple(flags.pop("hosts", ()))
    place = Access(
        flags.pop("host", "127.0.0.1"),
        flags.pop("port", 8000),
        Path(keys) if keys else None,
        flags.pop("no_auth", False),
        origins,
        hosts,
    )
    monitor, named = flags.pop("monitor", None), dict[str, Any]((name, flags.get(name)) for name in FLAGS)
    if monitor is None and any(value is not None for value in named.values()):
        first = next(name for name, value in named.items() if value is not None)
        problem = Problem("a monitor for it", "none", "Name its file: --monitor FILE.db", Where(field=first))
        raise RecipeError("Nothing is watched.", [problem])
    memory = flags.pop("memory", None)
    operation = Operation(
        None if monitor is None else Path(monitor),
        settings_given(named),
        named["webhook"],
        flags.pop("split", None),
        tuple(flags.pop("shadows", None) or ()),
        flags.pop("reload", None),
        None if memory is None else read_memory(memory),
    )
    engine = flags.pop("engine", None)
    limits = read_limits({name: value for name, value in flags.items() if value is not None and name not in FLAGS})
    where, what, told = [str(one) for one in given], (place, limits, operation), begun or (lambda about: None)
    if engine is None:
        return run(where, *what, display or Quiet(), told)
    from chainrule.scaling.serving import serve_with_ray

    serve_with_ray(where, *what, engine.workers, display or Quiet(), told)
    return {}
