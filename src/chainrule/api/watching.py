"""Watch a model at work: a stream of rows, what a monitor's file says, and rows worth labelling."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO, Unpack

from chainrule.api.entry import artifact_of, set_environment
from chainrule.core.artifact import Artifact, Run
from chainrule.core.request import WatchingFlags
from chainrule.errors import DataError, Problem, RecipeError, Where
from chainrule.system.progress import Display, Quiet

FORMATS = {".jsonl": "jsonl", ".csv": "csv", ".tsv": "tsv", ".txt": "lines"}


def watch(
    model: str | Path | Run | Artifact,
    source: str | Path | TextIO,
    *,
    monitor: str | Path,
    told: Callable[[dict[str, Any]], None] | None = None,
    columns: tuple[str | None, str | None] = (None, None),
    form: str | None = None,
    display: Display | None = None,
    **flags: Unpack[WatchingFlags],
) -> dict[str, Any]:
    """Predict rows as they come, and raise alarms when they are no longer what is usual.

    Args:
        source: a file, or an open stream of lines; "-" is the standard input.
        monitor: the file that keeps counts, alarms and the latest predictions; made where it is not there.
        told: told each prediction with its `id`.
        columns: of the time of a row, and of its id.
        form: of the lines: "jsonl", "csv", "tsv" or "lines"; None goes by the ending, or by the lines themselves.
        flags: `window` (default 500 rows, or 1h with a column of times), `cycle` (of counts over time, e.g. 1d),
            `false_alarms` (100,000 rows, or 30d: the stretch in which one false alarm is expected), `monitor_rows`
            (10,000 predictions are kept), `keep_text` (texts are kept for so long, e.g. 7d; else not at all),
            `segment`, a column whose values are watched label by label, `low_confidence`, and `webhook`, an address
            that alarms are sent to.

    Returns:
        {"rows", "refused", "alarms"}: counts, and the alarms that were raised.

    Raises:
        UserError: no such model, the source cannot be read, or the file cannot be written.
    """
    set_environment()
    from chainrule.inference.predict import load_predictor
    from chainrule.monitoring.lines import read_lines
    from chainrule.monitoring.session import monitoring, settings_given
    from chainrule.monitoring.stream import Stream, refuse_writers, watch_stream, watched_of

    show = display or Quiet()
    time, identity = columns
    settings = settings_given(flags, **({} if time else {"window": "500"}))
    kind = _format(source, form)
    artifact = artifact_of(model)
    predictor = load_predictor(artifact)
    refuse_writers(predictor)
    name = artifact.path.resolve().parent.name if artifact.path.name == "artifact" else artifact.path.resolve().name
    with ExitStack() as stack:
        file = _opened(source, stack)
        models = {name: watched_of(artifact, predictor)}
        watching = stack.enter_context(monitoring(Path(monitor), settings, models, show.say, flags.get("webhook")))
        before = watching.store.one("SELECT coalesce(max(seq), 0) FROM alarms")[0]
        stream = Stream(predictor, watching, name, time, identity, told or (lambda row: None), show.say)
        rows, refused = watch_stream(stream, read_lines(file, kind))
        alarms = [
            message
            for (message,) in watching.store.all("SELECT message FROM alarms WHERE seq > ? ORDER BY seq", (before,))
        ]
    return {"rows": rows, "refused": refused, "alarms": alarms}


def watch_summary(file: str | Path, *, html: str | Path | None = None) -> dict[str, Any]:
    """What a monitor's file says: rows, drift and estimates window by window, feedback, queues, alarms.

    Args:
        html: where to write the same as a page for a person.

    Raises:
        UserError: there is no such file, or the page is there already.
    """
    from chainrule.monitoring.store import read_store
    from chainrule.monitoring.summary import summary_of

    store = read_store(Path(file))
    try:
        summary = summary_of(store)
    finally:
        store.close()
    if html is not None:
        from chainrule.evaluation.watch_page import write_watch_page

        write_watch_page(Path(html), Path(file).name, summary)
    return summary


def watch_export(
    file: str | Path, out: str | Path, *, queue: str = "low-confidence", model: str | None = None
) -> dict[str, Any]:
    """Write the rows worth labelling as JSONL: the columns of each row where texts are kept, else its id alone.

    Args:
        queue: "low-confidence" or "unusual" (words unlike those of the validation rows).
        model: one of the file's models; None where it has one alone.

    Returns:
        {"rows", "with_text", "out"}.

    Raises:
        UserError: there is no such file, queue or model, or `out` exists.
    """
    from chainrule.monitoring.export import export_queue
    from chainrule.monitoring.store import read_store

    store = read_store(Path(file))
    try:
        return export_queue(store, Path(out), queue, model)
    finally:
        store.close()


def _format(source: Any, form: str | None) -> Any:
    if form is not None:
        if form not in FORMATS.values():
            problem = Problem(" or ".join(FORMATS.values()), repr(form), "Choose one.", Where(field="format"))
            raise RecipeError(f"There is no format {form!r} of lines.", [problem])
        return form
    return FORMATS.get(Path(source).suffix, "auto") if isinstance(source, str | Path) else "auto"


def _opened(source: Any, stack: ExitStack) -> TextIO:
    if source == "-":
        return sys.stdin
    if not isinstance(source, str | Path):
        stream: TextIO = source
        return stream
    try:
        return stack.enter_context(Path(source).open(encoding="utf-8-sig", errors="replace", newline=""))
    except OSError as error:
        problem = Problem("a file of rows", error.strerror or str(error), "Correct the path.", Where(file=str(source)))
        raise DataError(f"{source} cannot be read.", [problem]) from None
