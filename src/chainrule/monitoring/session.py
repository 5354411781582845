"""A monitor from its beginning to its end: the file, its one writer, and the webhook."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from chainrule.monitoring.monitor import Monitor, Watched
from chainrule.monitoring.settings import Settings, read_settings
from chainrule.monitoring.store import open_store
from chainrule.monitoring.webhook import Webhook, checked
from chainrule.monitoring.windows import Alarm

_SETTINGS = {
    "window": "window",
    "cycle": "cycle",
    "false_alarms": "false_alarms",
    "monitor_rows": "rows",
    "keep_text": "keep_text",
    "segment": "segment",
    "low_confidence": "low",
}
FLAGS = (*_SETTINGS, "webhook")


def settings_given(flags: Mapping[str, Any], **defaults: Any) -> Settings:
    """The settings that flags ask for; raises as `read_settings`.

    One false alarm is expected in 30 days, or in 100,000 rows where windows are rows.
    """
    given = {name: flags[flag] for flag, name in _SETTINGS.items() if flags.get(flag) is not None}
    window = str(given.get("window", defaults.get("window", "1h")))
    defaults.setdefault("false_alarms", "100000" if window.strip().isdigit() else "30d")
    if given.get("rows") is not None and "first" not in given:
        defaults["first"] = min(given["rows"], defaults.get("first", 1_000))
    return read_settings(defaults | given)


@contextmanager
def monitoring(
    path: Path,
    settings: Settings,
    models: Mapping[str, Watched],
    say: Callable[[str], None],
    webhook: str | None = None,
) -> Iterator[Monitor]:
    """Watch models with a file; at the end what is left of alarms is tried once more.

    Args:
        say: told each alarm, and what goes wrong with the webhook.
        webhook: the address that alarms are sent to.

    Raises:
        RecipeError: the address cannot be used.
        UserError: the file cannot be used.
    """
    if webhook is not None:
        checked(webhook)
    with ExitStack() as stack:
        store = open_store(path)
        stack.callback(store.close)
        sender = None if webhook is None else Webhook(store, webhook, say)

        def alarmed(alarm: Alarm) -> None:
            say(f"alarm: {alarm.model}: {alarm.message}")
            if sender is not None:
                sender.notify()

        monitor = Monitor(store, settings, dict(models), alarmed, sender is not None)
        if sender is not None:
            sender.start()
            stack.callback(sender.close)
        yield monitor
