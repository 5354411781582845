"""chainrule serve"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from chainrule import api
from chainrule.cli.output import EngineName, Json, Workers, display, engine_of, print_json
from chainrule.cli.watch import Cycle, FalseAlarms, KeepText, Low, MonitorRows, Segment, Webhook, Window


def serve(
    artifacts: Annotated[
        list[str], typer.Argument(metavar="ARTIFACT...", help="Run or artifact folders; NAME=FOLDER gives a name.")
    ],
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="The port; 0 takes a free one.")] = 8000,
    keys: Annotated[
        Path | None, typer.Option(help="A file of API keys, one a line (or the variable CHAINRULE_API_KEYS).")
    ] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Let anybody ask who reaches the address.")] = False,
    cors: Annotated[list[str] | None, typer.Option(help="The origin of a web page that may ask; repeatable.")] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name that requests may call it by; repeatable, * for any."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to answer a request (default 30).")] = None,
    max_rows: Annotated[int | None, typer.Option(help="Rows of a request (default 1,000).")] = None,
    max_text: Annotated[int | None, typer.Option(help="Characters of a text (default 100,000).")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of a request (default 200,000).")] = None,
    max_body: Annotated[int | None, typer.Option(help="Bytes of a request (default 4,194,304).")] = None,
    queue: Annotated[int | None, typer.Option(help="Rows that may wait (default 2,000); then 429.")] = None,
    writing_queue: Annotated[int | None, typer.Option(help="Texts to be written that may wait (default 32).")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Padded tokens of a batch (default 4,096).")] = None,
    wait: Annotated[float | None, typer.Option(help="Seconds a batch may wait for more rows (default 0.002).")] = None,
    reading: Annotated[float | None, typer.Option(help="Seconds a client has to send a request (default 10).")] = None,
    monitor: Annotated[Path | None, typer.Option(help="A file to keep predictions in and watch them with.")] = None,
    window: Window = None,
    cycle: Cycle = None,
    false_alarms: FalseAlarms = None,
    monitor_rows: MonitorRows = None,
    keep_text: KeepText = None,
    segment: Segment = None,
    low_confidence: Low = None,
    webhook: Webhook = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME=90,NAME=10", help="Share out requests that name no model.")
    ] = None,
    shadow: Annotated[
        list[str] | None, typer.Option(metavar="MODEL=OTHER", help="Ask OTHER what MODEL has answered; repeatable.")
    ] = None,
    reload: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds between looks for new versions (default: at SIGHUP).")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Keep weights of 2G (or 500M) in memory; load others when asked.")
    ] = None,
    engine: EngineName = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Answer requests with fine-tuned models, over HTTP, until Ctrl-C or SIGTERM."""
    flags: Any = {"max_rows": max_rows, "max_text": max_text, "max_tokens": max_tokens, "max_body": max_body}
    flags |= {"queue": queue, "writing_queue": writing_queue, "batch_tokens": batch_tokens}
    flags |= {"timeout": timeout, "wait": wait, "reading": reading}
    flags |= {
        "monitor": monitor,
        "window": window,
        "cycle": cycle,
        "false_alarms": false_alarms,
        "monitor_rows": monitor_rows,
    }
    flags |= {"keep_text": keep_text, "segment": segment, "low_confidence": low_confidence, "webhook": webhook}
    flags |= {"split": split, "shadows": shadow, "reload": reload, "memory": memory}
    flags |= {"engine": engine_of(engine, workers)}
    flags |= {
        "host": host,
        "port": port,
        "keys": keys,
        "no_auth": no_auth,
        "origins": cors or (),
        "hosts": allow_host or (),
    }

    def begun(about: dict[str, Any]) -> None:
        if as_json:
            print_json(about)
            sys.stdout.flush()

    api.serve(artifacts, display=display(), begun=begun, **flags)
