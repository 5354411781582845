"""The monitor's file: windows, rings, alarms, texts and their time, and streams of rows through a real model."""

from __future__ import annotations

import io
import json
import stat
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import chainrule
from chainrule.cli import main
from chainrule.core.artifact import Run
from chainrule.errors import RecipeError, UserError
from chainrule.evaluation.watch_page import render_watch
from chainrule.monitoring.accuracy import estimated, share_of
from chainrule.monitoring.features import Features
from chainrule.monitoring.lines import read_lines
from chainrule.monitoring.monitor import Batch, Monitor, Watched
from chainrule.monitoring.reference import Binned, Reference, Said, reference_of
from chainrule.monitoring.session import monitoring, settings_given
from chainrule.monitoring.settings import Settings, read_settings, read_span
from chainrule.monitoring.store import open_store, read_store
from chainrule.monitoring.summary import summary_of
from chainrule.monitoring.webhook import Webhook, without_path
from chainrule.testing.data import sentences, write_csv, write_json_lines

pytestmark = pytest.mark.unit

HOURLY = {"window": "1h", "false_alarms": "60d"}
START = 1_700_000_000 // 3600 * 3600.0


def rows(generator: np.random.Generator, number: int, labels: list[str], **more: Any) -> Batch:
    """A batch of made-up rows of short lengths and known labels."""
    lengths = more.pop("lengths", generator.integers(5, 40, number))
    said = Said([(label,) for label in labels], generator.uniform(0.5, 1, number))
    ids = [f"{more.get('time')}-{generator.integers(2**60)}" for _ in range(number)]
    return Batch("m", ids, said, Features(np.asarray(lengths), np.zeros(number)), **more)


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    models = {"m": Watched("class", ("negative", "positive"))}
    with monitoring(tmp_path / "w.db", read_settings(HOURLY), models, lambda told: None) as made:
        yield made


def hour(monitor: Monitor, number: int, counts: tuple[int, int], **more: Any) -> list[str]:
    """An hour with so many negative and positive rows at its middle; the messages of its end."""
    labels = ["negative"] * counts[0] + ["positive"] * counts[1]
    generator = np.random.default_rng(number)
    before = START + 3600 * number
    monitor.tick(before)
    if labels:
        monitor.record(rows(generator, len(labels), labels, time=before + 1800, **more))
    return [alarm.message for alarm in monitor.tick(before + 3600)]


def test_a_surge_is_told_with_what_was_expected(monitor: Monitor) -> None:
    generator = np.random.default_rng(0)
    told = [hour(monitor, n, (int(generator.poisson(3)), int(generator.poisson(20)))) for n in range(60)]
    assert [message for messages in told for message in messages] == []
    (message,) = hour(monitor, 60, (14, 20))
    assert message.startswith("negative: 14 in the last hour, 3.")
    assert message.endswith(" expected")
    assert hour(monitor, 61, (15, 20)) == [], "the same surge is told once"
    assert hour(monitor, 62, (3, 20)) == []
    summary = summary_of(monitor.store)
    assert [alarm["told"]["chart"] for alarm in summary["alarms"]] == ["window"]
    assert summary["models"]["m"]["windows"][60]["labels"] == {"negative": 14, "positive": 20}


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    """The alarms of a process that is started anew for each hour are those of one that runs on."""
    counts = np.random.default_rng(5).poisson(4, 80)
    counts[60:] = np.random.default_rng(6).poisson(8, 20)
    found = []
    for name, restarts in (("one", False), ("many", True)):
        models = {"m": Watched("class", ("negative", "positive"))}
        file, settings = tmp_path / f"{name}.db", read_settings({"window": "1h", "false_alarms": "10d"})
        made = Monitor(open_store(file), settings, dict(models))
        messages: list[str] = []
        for number, count in enumerate(counts.tolist()):
            if restarts and number:
                made.store.close()
                made = Monitor(open_store(file), settings, dict(models))
            messages += hour(made, number, (count, 5))
        made.store.close()
        found.append(messages)
    assert found[0] == found[1]
    assert found[0][0] == "negative: 58 in the last 9 hours, 34.7 expected"


def test_time_that_nobody_watched_does_not_count(monitor: Monitor) -> None:
    for number in range(30):
        hour(monitor, number, (5, 5))
    monitor._last.clear()  # as after a restart
    monitor.tick(START + 3600 * 500.5)
    windows = monitor.store.all("SELECT number, exposure FROM windows ORDER BY number")
    assert len(windows) == 30
    monitor.record(rows(np.random.default_rng(0), 3, ["negative"] * 3, time=START + 3600 * 500.75))
    last = monitor.store.one("SELECT exposure FROM windows ORDER BY number DESC")
    assert last[0] == pytest.approx(900)


def test_drift_is_told_once_with_its_size(monitor: Monitor) -> None:
    shift = {"lengths": np.full(60, 70)}
    for number in range(40):
        hour(monitor, number, (20, 40))  # the first 1,000 rows say what is usual
    watched = monitor.models["m"]
    assert watched.reference is not None
    assert watched.reference.source == "served"
    assert watched.reference.rows == 1020
    assert summary_of(monitor.store)["alarms"] == []
    messages = [message for number in range(40, 50) for message in hour(monitor, number, (20, 40), **shift)]
    assert len(messages) == 1
    assert messages[0].startswith("The lengths in tokens of the last 240 rows are not those of the rows served first (")
    assert "above " in messages[0]
    drifts = [window["drift"] for window in summary_of(monitor.store)["models"]["m"]["windows"] if window["drift"]]
    assert drifts[-1]["length"] > 1
    assert drifts[-1]["label"] < 0.1


def test_the_page_shows_what_the_file_says(monitor: Monitor, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(60):
        hour(monitor, number, (int(generator.poisson(3)), int(generator.poisson(20))))
    hour(monitor, 60, (16, 20))
    summary = summary_of(monitor.store)
    page = render_watch("<b>.db", summary)
    assert "<b>.db" not in page
    assert "&lt;b&gt;.db" in page
    assert "negative: 16 in the last hour, " in page
    assert page.count('class="ring alarm"') == 1
    assert page.count("<figure>") >= 3
    out = chainrule.watch_summary(monitor.store.path, html=tmp_path / "page.html")
    assert out == summary
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o600
    with pytest.raises(UserError, match="exists already"):
        chainrule.watch_summary(monitor.store.path, html=tmp_path / "page.html")


def test_segments_are_watched_label_by_label(monitor: Monitor) -> None:
    generator = np.random.default_rng(1)
    for number in range(60):
        counts = generator.poisson([2, 6])
        labels = [["negative on ACME"]] * counts[0] + [["positive on Other"]] * counts[1]
        hour(monitor, number, (int(counts[0]), int(counts[1])), segments=labels)
    messages = hour(monitor, 60, (15, 6), segments=[["negative on ACME"]] * 15 + [["positive on Other"]] * 6)
    assert any(message.startswith("negative on ACME: 15 in the last hour, 2") for message in messages)


def test_windows_of_rows_are_cut_where_they_end(tmp_path: Path) -> None:
    settings = read_settings({"window": "50", "false_alarms": "5000"})
    generator = np.random.default_rng(2)
    with monitoring(tmp_path / "w.db", settings, {"m": Watched("class", ("negative", "positive"))}, print) as made:
        for _ in range(8):
            made.record(rows(generator, 120, ["negative", "positive"] * 60))
        windows = summary_of(made.store)["models"]["m"]["windows"]
        assert [window["rows"] for window in windows] == [50] * 19 + [10]
        assert [window["closed"] for window in windows] == [True] * 19 + [False]
        alarms = made.record(rows(generator, 60, ["negative"] * 60))
    assert [alarm.message for alarm in alarms] == ["negative: 45 in the last 50 rows, 25 expected"]


def test_the_ring_keeps_the_latest(tmp_path: Path) -> None:
    settings = read_settings({"window": "500", "false_alarms": "100000", "rows": 1000})
    generator = np.random.default_rng(3)
    with monitoring(tmp_path / "w.db", settings, {"m": Watched("class", ("a", "b"))}, print) as made:
        for start in range(0, 5000, 250):
            batch = rows(generator, 250, ["a"] * 250)
            made.record(Batch("m", [f"row-{start + n}" for n in range(250)], batch.said, batch.features))
        kept = made.store.all("SELECT id FROM predictions ORDER BY seq")
    assert [name for (name,) in kept] == [f"row-{n}" for n in range(4000, 5000)]
    assert (tmp_path / "w.db").stat().st_size < 1_000_000


def test_texts_are_kept_only_when_asked_and_not_for_longer(tmp_path: Path) -> None:
    file = tmp_path / "w.db"
    for keep in (None, "2h"):
        settings = read_settings({"keep_text": keep})
        assert settings.keep_text == (None if keep is None else 7200.0)
        secret = f"secret-{keep}"
        inputs = [json.dumps({"text": secret})]
        with monitoring(file, settings, {"m": Watched("class", ("a",))}, print) as made:
            said = Said([("a",)], np.array([0.4]))
            made.record(Batch("m", [f"id-{keep}"], said, inputs=inputs))
            assert summary_of(made.store)["models"]["m"]["queues"]["texts"] == int(keep is not None)
            if keep is not None:
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
                assert stat.S_IMODE(Path(f"{file}-wal").stat().st_mode) == 0o600
                made.store.run("UPDATE predictions SET until = until - 7201")
                assert summary_of(made.store)["models"]["m"]["queues"]["texts"] == 0
                made.tick()
        assert secret.encode() not in file.read_bytes(), "erased texts are overwritten"


class _Hook(BaseHTTPRequestHandler):
    statuses: ClassVar[list[int]] = []
    letters: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        letter = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            self.letters.append(letter)
        self.send_response(status)
        self.send_header("Location", "http://127.0.0.1:1/other")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        return


@pytest.fixture
def hook() -> Iterator[str]:
    _Hook.statuses, _Hook.letters = [], []
    server = HTTPServer(("127.0.0.1", 0), _Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/services/secret-token?key=secret"
    server.shutdown()
    thread.join()
    server.server_close()


def alarm_in(file: Path, number: int, delivery: str = "pending") -> None:
    store = open_store(file)
    store.run(
        "INSERT INTO alarms (time, model, kind, name, number, message, told, delivery)"
        " VALUES (0, 'm', 'surge', ?, ?, ?, ?, ?)",
        ("negative", number, f"message {number}", '{"count": 14}', delivery),
    )
    store.close()


def test_alarms_arrive_though_the_hook_fails_at_first(hook: str, tmp_path: Path) -> None:
    file = tmp_path / "w.db"
    alarm_in(file, 1)
    alarm_in(file, 2, "none")
    _Hook.statuses = [503, 302]
    store, told = open_store(file), list[str]()
    sender = Webhook(store, hook, told.append, waits=(0.01, 0.01, 0.01))
    sender.start()
    sender.close()
    assert [letter["message"] for letter in _Hook.letters] in ([], ["message 1"])
    again = Webhook(store, hook, told.append, waits=(0.01, 0.01, 0.01))
    again.start()
    while not _Hook.letters:
        time.sleep(0.01)
    again.close()
    store.close()
    (letter,) = _Hook.letters
    assert letter == {
        "id": 1,
        "time": 0.0,
        "model": "m",
        "kind": "surge",
        "name": "negative",
        "message": "message 1",
        "count": 14,
    }
    assert told == []


def test_what_never_arrives_is_kept_and_the_address_is_not_told(hook: str, tmp_path: Path) -> None:
    file = tmp_path / "w.db"
    alarm_in(file, 1)
    _Hook.statuses = [500] * 9
    store, told = open_store(file), list[str]()
    sender = Webhook(store, hook, told.append, waits=(0.01, 0.01))
    sender.start()
    while not told:
        time.sleep(0.01)
    sender.close()
    assert store.all("SELECT delivery FROM alarms") == [("dead",)]
    store.close()
    dead = tmp_path / "w.db.undelivered.jsonl"
    assert json.loads(dead.read_text())["message"] == "message 1"
    assert stat.S_IMODE(dead.stat().st_mode) == 0o600
    assert told == [
        f"warning: an alarm was not delivered to {without_path(hook)} in 3 attempts (HTTP status 500); it is in {dead}."
    ]
    assert "secret" not in told[0]


def test_settings() -> None:
    assert read_span("window", "15m").text == "15 minutes"
    assert read_span("window", "500").text == "500 rows"
    assert settings_given({"window": "200"}).false_alarms == "100000"
    assert Settings().budget == pytest.approx(1 / 720)
    for given, told in (
        ({"window": "soon"}, "expected a stretch of time, such as 15m, 1h or 7d, or a number of rows, got 'soon'."),
        ({"keep_text": "500"}, "expected a stretch of time, such as 12h or 7d, got '500'."),
        ({"false_alarms": "5h"}, "expected at least ten windows, got '5h'."),
        ({"cycle": "90m"}, "expected 2 to 170 windows, as a stretch of time, got '90m'."),
        ({"rows": 5}, "expected greater than or equal to 1000, got 5."),
    ):
        with pytest.raises(RecipeError) as error:
            read_settings(given)
        assert told in str(error.value)


def test_estimates_hold_what_confidence_promises() -> None:
    """A model whose confidence is its accuracy: both estimates follow where rows become harder."""
    generator = np.random.default_rng(4)
    scores = generator.uniform(0.5, 1, 4000)
    said = Said([("a",)] * 4000, scores, generator.random(4000) < scores)
    reference = reference_of("validation", said, None)
    assert reference is not None
    hard = 0.5 + 0.5 * generator.beta(1, 3, 2000)
    true = float(hard.mean())
    bins = np.bincount(reference.scores.bins(hard), minlength=10) if reference.scores else np.zeros(0)
    found = estimated(reference, bins.tolist())
    assert found is not None
    assert found.low < true < found.high
    assert found.high - found.low < 0.06
    assert reference.threshold is not None
    assert said.correct is not None
    assert float((hard >= reference.threshold).mean()) < float(said.correct.mean())
    share = share_of([True] * 9 + [False])
    assert (round(share.low, 3), round(share.high, 3)) == (0.596, 0.982)  # Wilson's, of nine in ten


def test_a_reference_has_a_schema() -> None:
    with pytest.raises(ValueError, match="one count more than edges"):
        Binned(edges=(1.0, 2.0), counts=(1, 2))
    with pytest.raises(ValueError, match="as there are bins of scores, none above"):
        Reference(source="validation", rows=9, scores=Binned(edges=(0.5,), counts=(4, 5)), correct=(1,))


def test_lines() -> None:
    text = '{"a": 1}\nplain text\n\n[1]\n{"a"\n'
    (found,) = read_lines(io.StringIO(text), "auto")
    assert found == [(1, {"a": 1}), (2, "plain text"), (4, "[1]"), (5, found[3][1])]
    assert isinstance(found[3][1], UserError)
    (found,) = read_lines(io.StringIO('text,n\n"a\nb",1\nc\nd,2\n'), "csv")
    assert [row for _, row in found if isinstance(row, dict)] == [{"text": "a\nb", "n": "1"}, {"text": "d", "n": "2"}]
    assert [number for number, row in found if isinstance(row, UserError)] == [4]


def test_a_file_is_watched_and_its_doubtful_rows_can_be_learned(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps(row | {"n": n}) for n, row in enumerate(sentences(300, seed=3))]
    lines[7] = '{"text": ""}'
    lines[9] = "{"
    Path("stream.jsonl").write_text("\n".join(lines) + "\n")
    flags = ["--monitor", "w.db", "--keep-text", "1d", "--id", "n", "--low-confidence", "1.0", "--window", "100"]
    with pytest.raises(SystemExit) as stop:
        main(["watch", str(trained.path), "stream.jsonl", *flags, "--false-alarms", "10000"])
    assert stop.value.code == 0
    told = capsys.readouterr()
    predicted = [json.loads(line) for line in told.out.splitlines()]
    assert [row["id"] for row in predicted[:9]] == ["0", "1", "2", "3", "4", "5", "6", "8", "10"]
    assert {"predicted_label", "predicted_score"} <= set(predicted[0])
    assert "line 8: expected text, got nothing. " in told.err or "line 8: " in told.err
    assert "line 10: expected a JSON object, got " in told.err
    assert "298 rows, 2 lines were refused" in told.err

    with pytest.raises(SystemExit):
        main(["watch", "export", "w.db", "--out", "doubtful.jsonl"])
    assert "rows written to doubtful.jsonl" in capsys.readouterr().out
    doubtful = [json.loads(line) for line in Path("doubtful.jsonl").read_text().splitlines()]
    assert len(doubtful) > 200
    assert {"text", "id", "model_label", "model_score"} <= set(doubtful[0])
    assert doubtful[0]["model_score"] <= doubtful[-1]["model_score"]
    assert stat.S_IMODE(Path("doubtful.jsonl").stat().st_mode) == 0o600
    unlabelled = [{key: value for key, value in row.items() if key != "label"} for row in doubtful]
    labelled = [row | {"label": row["model_label"]} for row in unlabelled]
    report = chainrule.check(str(write_json_lines(tmp_path / "labelled.jsonl", labelled)))
    assert report.fields == {"text": "text", "label": "label"}

    with pytest.raises(SystemExit):
        main(["watch", "show", "w.db", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["models"]["reviews"]["rows"] == 298
    assert shown["models"]["reviews"]["queues"]["low-confidence"] == len(doubtful)


def test_times_of_rows_make_the_windows(trained: Run, tmp_path: Path) -> None:
    made = [row | {"at": f"2026-03-01T{n // 20:02d}:{n % 20 * 3:02d}:00Z"} for n, row in enumerate(sentences(200))]
    file = write_csv(tmp_path / "rows.csv", made)
    result = chainrule.watch(trained.path, file, monitor=tmp_path / "w.db", columns=("at", None))
    assert result["rows"] == 200
    windows = chainrule.watch_summary(tmp_path / "w.db")["models"]["reviews"]["windows"]
    assert [window["rows"] for window in windows] == [20] * 10
    assert windows[1]["exposure"] == pytest.approx(3600)
    bad = write_csv(tmp_path / "bad.csv", [{"text": "good film", "at": "soon"}])
    assert chainrule.watch(trained.path, bad, monitor=tmp_path / "w.db", columns=("at", None))["refused"] == 1


def test_what_is_no_file_of_a_monitor(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no monitor's file at"):
        chainrule.watch_summary(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("words " * 1000)
    with pytest.raises(UserError, match="file is not a database"):
        read_store(tmp_path / "text.db")
