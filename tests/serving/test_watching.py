"""What a server keeps of its predictions, with feedback, kills, new versions, splits and shadows."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

import chainrule
from chainrule.cli import main
from chainrule.core.artifact import Run
from chainrule.testing.data import sentences
from chainrule.testing.servers import Server

pytestmark = pytest.mark.unit

TEXTS = [row["text"] for row in sentences(64, seed=9)]
OTHER = {"training.epochs": 1, "training.threads": 1, "training.precision": "float32", "seed": 7}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, reviews: Path) -> Run:
    """Another version of the model of reviews, trained for less long."""
    return chainrule.train(
        str(reviews), out=tmp_path_factory.mktemp("other") / "other", settings={"model": str(tiny_bert), **OTHER}
    )


@pytest.fixture
def watched(start: Callable[..., Server], trained: Run, tmp_path: Path) -> Iterator[tuple[Server, Path]]:
    """A server with a monitor that keeps texts, and the monitor's file."""
    server = start(trained.path, "--monitor", tmp_path / "w.db", "--keep-text", "1h")
    yield server, tmp_path / "w.db"
    if server.process.poll() is None:
        server.end()


def metric(server: Server, name: str) -> float:
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_feedback_and_what_is_kept(watched: tuple[Server, Path], trained: Run) -> None:
    server, file = watched
    rows = server.post("/v1/predict", {"inputs": TEXTS}).json()["predictions"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    right = server.post("/v1/feedback", {"id": rows[0]["id"], "label": rows[0]["label"]})
    assert right.status_code == 200, right.text
    assert right.json() == {
        "id": rows[0]["id"],
        "model": "reviews",
        "predicted": [rows[0]["label"]],
        "correct": True,
        "replaced": False,
    }
    wrong = "negative" if rows[1]["label"] == "positive" else "positive"
    assert server.post("/v1/feedback", {"id": rows[1]["id"], "label": [wrong]}).json()["correct"] is False
    again = server.post("/v1/feedback", {"id": rows[1]["id"], "label": wrong}).json()
    assert again["replaced"] is True

    unknown = server.post("/v1/feedback", {"id": "pred-0", "label": wrong})
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "prediction_not_found"
    assert unknown.json()["error"]["message"] == (
        "There is no such prediction. Send the `id` that stands beside a prediction; the oldest ones are given up "
        "(--monitor-rows)."
    )
    no_label = server.post("/v1/feedback", {"id": rows[0]["id"], "label": "neutral"})
    assert no_label.status_code == 422
    assert no_label.json()["error"]["message"] == (
        "The model reviews has no such label. Field 'label': expected one of negative, positive, got 'neutral'. "
        "Correct the label."
    )
    assert server.post("/v1/feedback", {"id": rows[0]["id"]}).status_code == 422

    said = chainrule.watch_summary(file)["models"]["reviews"]
    assert said["rows"] == said["kept"] == len(TEXTS)
    assert said["reference"]["source"] == "validation"
    assert said["feedback"]["rows"] == 2
    assert said["feedback"]["accuracy"]["value"] == 0.5
    assert said["feedback"]["accuracy"]["low"] < 0.5 < said["feedback"]["accuracy"]["high"]
    assert 0 <= said["estimate"]["low"] <= said["estimate"]["value"] <= said["estimate"]["high"] <= 1
    assert said["queues"]["texts"] == len(TEXTS)
    with pytest.raises(chainrule.ChainruleError, match="Another process watches with"):
        chainrule.serve(trained.path, port=0, monitor=file)


def test_replies_vectors_and_ranks_are_watched_too(
    start: Callable[..., Server], talking: Run, vectors: Run, ranked: Run, tmp_path: Path
) -> None:
    file, names = tmp_path / "w.db", ("helper", "vectors", "search")
    models = [f"{name}={run.path}" for name, run in zip(names, (talking, vectors, ranked), strict=True)]
    server = start(*models, "--monitor", file, "--keep-text", "1h", "--timeout", "600")
    message = {"role": "user", "content": "film warm"}
    whole = server.post("/v1/chat/completions", {"messages": [message], "max_tokens": 1}).json()
    with server.client() as client:
        streamed = client.post("/v1/chat/completions", json={"messages": [message], "max_tokens": 8, "stream": True})
        metrics = client.get("/metrics").text
    assert streamed.text.endswith("data: [DONE]\n\n")
    written = whole["usage"]["completion_tokens"] + sum(
        1 for line in streamed.text.splitlines() if '"content":"' in line and '"content":""' not in line
    )
    assert written >= 2
    told = [line for line in metrics.splitlines() if line.startswith('chainrule_tokens_written_total{model="helper"}')]
    assert float(told[0].rpartition(" ")[2]) >= written
    server.post("/v1/predict", {"inputs": ["film warm"], "model": "helper", "max_new_tokens": 1})
    server.post("/v1/embeddings", {"input": TEXTS[:3]})
    server.post("/v1/rank", {"query": "film", "items": TEXTS[:5], "top": 2})
    no_label = server.post("/v1/feedback", {"id": whole["id"], "label": "good"})
    assert no_label.status_code == 422
    assert no_label.json()["error"]["message"] == (
        "There is no label to correct. Field 'label': expected feedback on a model that predicts labels, got helper, "
        "which has none. Leave it out."
    )
    server.end()
    with closing(sqlite3.connect(file)) as opened:
        asked = "SELECT id, model, labels, score, length, inputs FROM predictions ORDER BY seq"
        rows = opened.execute(asked).fetchall()
    assert [row[1] for row in rows] == ["helper"] * 3 + ["vectors"] * 3 + ["search"] * 5
    assert rows[0][0] == whole["id"]
    assert json.loads(rows[0][2]) == ["length"]
    assert rows[0][3] == 1
    assert rows[0][4] == whole["usage"]["prompt_tokens"]
    assert json.loads(rows[0][5]) == {"messages": [message]}
    assert json.loads(rows[2][2]) == ["length"]
    assert all(json.loads(row[2]) == [] and row[4] > 0 for row in rows[3:])
    assert json.loads(rows[6][5]) == {"query": "film", "item": TEXTS[0]}
    assert rows[6][3] is not None


def test_without_a_monitor_there_is_no_feedback(server: Server) -> None:
    answer = server.post("/v1/feedback", {"id": "pred-0", "label": "positive"})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "This server keeps no predictions: it was started without --monitor."


def test_killed_in_mid_load_and_started_again(start: Callable[..., Server], trained: Run, tmp_path: Path) -> None:
    """Everything that was answered is in the file, which is whole, and the next process goes on with it."""
    file = tmp_path / "w.db"
    given: list[str] = []
    taken: list[str] = []
    for turn in range(2):
        server = start(trained.path, "--monitor", file, "--monitor-rows", "1000000")
        if given:  # of the process before
            assert server.post("/v1/feedback", {"id": given[-1], "label": "positive"}).status_code == 200
            taken.append(given[-1])
        under_way = threading.Barrier(5)

        def ask(url: str = server.url, begin: threading.Barrier = under_way) -> None:
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                for number in range(100_000):
                    try:
                        answer = client.post("/v1/predict", json={"inputs": TEXTS[: 1 + number % 40]})
                    except httpx.TransportError:
                        return
                    assert answer.status_code == 200
                    given.extend(row["id"] for row in answer.json()["predictions"])
                    if number == 3:
                        begin.wait()

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        under_way.wait()
        time.sleep(0.3 * turn)
        server.process.send_signal(signal.SIGKILL)
        server.process.communicate()
        for client in clients:
            client.join()
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as store:
            assert store.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            kept = {name for (name,) in store.execute("SELECT id FROM predictions")}
            fed = {name for (name,) in store.execute("SELECT id FROM feedback")}
            counted = int(store.execute("SELECT value FROM meta WHERE key = 'rows/reviews'").fetchone()[0])
            labels = store.execute("SELECT sum(value) FROM counts WHERE kind = 'label'").fetchone()[0]
        assert set(given) - kept == set(), "what was answered is in the file"
        assert labels == counted == len(kept)
        assert fed == set(taken)
    assert len(given) > 100
    assert chainrule.watch_summary(file)["models"]["reviews"]["rows"] == counted


def test_a_full_disk_stops_no_answer(watched: tuple[Server, Path]) -> None:
    """The table is taken away, which is as bad."""
    server, file = watched
    with sqlite3.connect(file) as store:
        store.execute("ALTER TABLE counts RENAME TO gone")
    assert server.post("/v1/predict", {"inputs": ["good film"]}).status_code == 200
    assert metric(server, "chainrule_rows_unwatched_total") == 1
    with sqlite3.connect(file) as store:
        store.execute("ALTER TABLE gone RENAME TO counts")
    assert server.post("/v1/predict", {"inputs": ["good film"]}).status_code == 200
    code, told = server.end()
    assert code == 0
    assert told.count("the monitor's file cannot be written; predictions go unwatched") == 1
    assert chainrule.watch_summary(file)["models"]["reviews"]["rows"] == 1


def test_a_new_version_is_taken_up_without_dropping_a_request(
    start: Callable[..., Server], trained: Run, other: Run, tmp_path: Path
) -> None:
    place = tmp_path / "current"
    place.symlink_to(trained.artifact.path)
    server = start(f"reviews={place}", "--monitor", tmp_path / "w.db")
    statuses: list[int] = []
    ended = threading.Event()

    def ask() -> None:
        with server.client() as client:
            while not ended.is_set():
                statuses.append(client.post("/v1/predict", json={"inputs": TEXTS[:5]}).status_code)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    for number, run in enumerate((other, trained, other), start=1):
        (tmp_path / "next").symlink_to(run.artifact.path)
        (tmp_path / "next").rename(place)
        server.process.send_signal(signal.SIGHUP)
        while metric(server, 'chainrule_reloads_total{model="reviews",outcome="loaded"}') < number:
            time.sleep(0.05)
        with server.client() as looking:
            assert looking.get("/v1/models/reviews").json()["weights_sha256"] == run.artifact.manifest.weights_sha256
    ended.set()
    for client in clients:
        client.join()
    assert set(statuses) == {200}
    code, told = server.end()
    assert code == 0
    assert told.count("reviews is now ") == 3


def test_a_version_that_is_not_whole_changes_nothing(
    start: Callable[..., Server], trained: Run, other: Run, ranked: Run, tmp_path: Path
) -> None:
    place = shutil.copytree(trained.artifact.path, tmp_path / "reviews")
    server = start(place, "--reload", "0.2")
    before = server.post("/v1/predict", {"inputs": TEXTS[:3]}).json()["predictions"]
    failed = 'chainrule_reloads_total{model="reviews",outcome="failed"}'
    shutil.copy(other.artifact.path / "chainrule.json", place)  # half of a copy: the weights are the old ones
    while metric(server, failed) < 1:
        time.sleep(0.05)
    again = server.post("/v1/predict", {"inputs": TEXTS[:3]}).json()["predictions"]
    assert [row["label"] for row in again] == [row["label"] for row in before]
    shutil.copy(ranked.artifact.path / "chainrule.json", place)
    while metric(server, failed) < 2:
        time.sleep(0.05)
    shutil.copytree(other.artifact.path, place, dirs_exist_ok=True)
    server.process.send_signal(signal.SIGHUP)
    while metric(server, 'chainrule_reloads_total{model="reviews",outcome="loaded"}') < 1:
        time.sleep(0.05)
    _, told = server.end()
    assert "warning: reviews stays as it is: The new version is not whole." in told
    assert "warning: reviews stays as it is: Clients expect another kind of answer." in told


def test_split_and_shadow(start: Callable[..., Server], trained: Run, other: Run, tmp_path: Path) -> None:
    file = tmp_path / "w.db"
    flags = ("--split", "a=75,b=25", "--shadow", "a=b", "--monitor", file)
    server = start(f"a={trained.path}", f"b={other.path}", *flags)
    answered: dict[str, str] = {}
    with server.client() as client:
        for number in range(120):
            name = f"request-{number}"
            body = {"inputs": [TEXTS[number % 64]]}
            answered[name] = client.post("/v1/predict", json=body, headers={"X-Request-ID": name}).json()["model"]
        for name, model in list(answered.items())[:20]:
            again = client.post("/v1/predict", json={"inputs": ["good"]}, headers={"X-Request-ID": name}).json()
            assert again["model"] == model
        named = client.post("/v1/predict", json={"inputs": ["good"], "model": "b"}).json()
        assert named["model"] == "b"
        row = client.post("/v1/predict", json={"inputs": ["good"], "model": "a"}).json()["predictions"][0]
    to_a = sum(model == "a" for model in answered.values())
    assert 72 <= to_a <= 108  # 90 ± 4 standard deviations
    assert metric(server, 'chainrule_arm_requests_total{model="a"}') >= to_a
    shadowed = 'chainrule_shadow_rows_total{model="b"'
    asked = to_a + 1
    while metric(server, shadowed) < asked:
        time.sleep(0.05)
    while sqlite3.connect(f"file:{file}?mode=ro", uri=True).execute(
        "SELECT count(*) FROM predictions WHERE id = ?", (row["id"] + "~shadow",)
    ).fetchone() != (1,):
        time.sleep(0.05)
    assert server.post("/v1/feedback", {"id": row["id"], "label": "positive"}).status_code == 200
    server.end()
    models = chainrule.watch_summary(file)["models"]
    assert models["a"]["feedback"]["rows"] == models["b"]["feedback"]["rows"] == 1
    assert sum(models["b"]["shadow"].values()) >= asked
    assert models["b"]["shadow"]["same"] > 0


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--split", "a=1"], "field 'split': expected at least two models, and a share above 0, got 'a=1'."),
        (["--split", "a=1,c=2"], "field 'split': expected models of this server: a, b, got 'c'."),
        (["--split", "a=x,b=1"], "field 'split': expected NAME=90,NAME=10, each model once, got 'a=x,b=1'."),
        (["--shadow", "a=a"], "field 'shadow': expected MODEL=OTHER, each model once, got 'a=a'."),
        (["--webhook", "https://x.example/secret"], "field 'webhook': expected a monitor for it, got none."),
        (
            ["--monitor", "<file>", "--webhook", "ftp://secret"],
            "field 'webhook': expected an address such as https://hooks.example/alarms, without user and password, "
            "got something else.",
        ),
        (
            ["--monitor", "<file>", "--window", "1h", "--false-alarms", "500"],
            "field 'false_alarms': expected a stretch of time, as the window is, got '500'.",
        ),
        (["--monitor", "<other>"], "expected a monitor's file of format 1, got file is not a database."),
    ],
)
def test_what_cannot_be_watched(
    flags: list[str], told: str, trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").write_text("no database " * 100)
    known = {"<file>": str(tmp_path / "w.db"), "<other>": str(tmp_path / "other")}
    words = [known.get(flag, flag) for flag in flags]
    with pytest.raises(SystemExit) as stop:
        main(["serve", f"a={trained.path}", f"b={trained.path}", "--port", "0", "--json", *words])
    assert stop.value.code == 2
    found = json.loads(capsys.readouterr().out)["error"]
    problem = found["problems"][0]
    where = f"field {problem['where']['field']!r}: " if problem["where"]["field"] else ""
    assert f"{where}expected {problem['expected']}, got {problem['got']}." == told
    assert "secret" not in problem["got"]
