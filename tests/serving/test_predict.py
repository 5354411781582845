"""A server says what `chainrule predict` says, and why it does not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import chainrule
from chainrule.core.artifact import Run
from chainrule.testing.data import entities, questions, rated, searches, sentences, tagged, write_json_lines
from chainrule.testing.servers import Server

pytestmark = pytest.mark.unit

TASKS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "multi-label-classification": tagged,
    "regression": rated,
    "token-classification": entities,
    "question-answering": questions,
    "ranking": searches,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, ranked: Run) -> dict[str, Run]:
    """A model for each of the other tasks of texts, hardly trained."""
    made = {"ranking": ranked}
    for task, rows in TASKS.items():
        if task in made:
            continue
        folder = tmp_path_factory.mktemp(task)
        for seed, name in enumerate(("train", "validation")):
            write_json_lines(folder / f"{name}.jsonl", rows(48, seed=seed))
        settings = {"model": str(tiny_bert), "task": task, "training.epochs": 1, "training.threads": 1}
        settings |= {"training.batch_size": 8, "training.precision": "float32", "optimizer.learning_rate": 1e-3}
        made[task] = chainrule.train(str(folder), out=folder / "run", settings=settings)
    return made


@pytest.fixture(scope="module")
def many(start: Callable[..., Server], runs: dict[str, Run]) -> Server:
    return start(*(f"{task}={run.path}" for task, run in runs.items()))


def rows_of(task: str) -> list[dict[str, Any]]:
    """New rows without their targets."""
    names = {"question-answering": ("question", "context"), "ranking": ("query", "item")}
    kept = names.get(task, ("text", "tokens"))
    return [{name: row[name] for name in kept if name in row} for row in TASKS[task](23, seed=9)]


def predicted(run: Run, rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What `predict` says of the rows of a file, under the names of the service."""
    found = chainrule.predict(run, str(write_json_lines(folder / "rows.jsonl", rows)))
    assert not isinstance(found, int)
    prefix = "predicted_"
    return [{name.removeprefix(prefix): row[name] for name in row if name.startswith(prefix)} for row in found]


def near(value: Any) -> Any:
    """Numbers may differ in their last digits: a row's neighbours in the batch are others."""
    if isinstance(value, float):
        return pytest.approx(value, abs=2e-5)
    if isinstance(value, dict):
        return {name: near(item) for name, item in value.items()}
    return [near(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("task", TASKS)
def test_every_task_says_what_predict_says(task: str, many: Server, runs: dict[str, Run], tmp_path: Path) -> None:
    rows = rows_of(task)
    answer = many.post("/v1/predict", {"inputs": rows, "model": task})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["model"] == task
    assert len({row.pop("id") for row in said["predictions"]}) == len(rows)
    wanted = predicted(runs[task], rows, tmp_path)
    if task == "multi-label-classification":
        for row, other in zip(said["predictions"], wanted, strict=True):
            assert set(row["scores"]) == {"negative", "positive", "film"}
            chosen = [row["scores"][label] for label in row["label"]]
            assert chosen == near([float(score) for score in other["score"].split("|") if score])
            assert "|".join(row["label"]) == other["label"]
        return
    assert said["predictions"] == [near(row) for row in wanted]


def test_classes_have_the_probability_of_each(server: Server, trained: Run, tmp_path: Path) -> None:
    rows = [{"text": row["text"]} for row in sentences(300, seed=5)]
    texts = [row["text"] for row in rows]
    said = server.post("/v1/predict", {"inputs": texts, "model": "reviews"}).json()["predictions"]
    for row, wanted in zip(said, predicted(trained, rows, tmp_path), strict=True):
        assert row["label"] == wanted["label"]
        assert row["score"] == near(wanted["score"])
        assert sum(row["scores"].values()) == pytest.approx(1, abs=1e-5)
        assert max(row["scores"], key=row["scores"].__getitem__) == row["label"]
    keyed = server.post("/v1/predict", {"inputs": rows, "model": "reviews"}).json()["predictions"]
    assert [row["scores"] for row in keyed] == [near(row["scores"]) for row in said]


def test_requests_at_once_get_their_own_answers(server: Server, trained: Run) -> None:
    texts = [row["text"] for row in sentences(200, seed=6)] + ["the " * 50 + "awful"] * 3
    with server.client() as client, ThreadPoolExecutor(16) as pool:
        ask = lambda text: client.post("/v1/predict", json={"inputs": [text], "model": "reviews"}).json()  # noqa: E731
        said = [one["predictions"][0] for one in pool.map(ask, texts)]
        alone = client.post("/v1/predict", json={"inputs": texts, "model": "reviews"}).json()["predictions"]
        counts = client.get("/metrics").text
    assert [(row["label"], row["score"]) for row in said] == [(row["label"], near(row["score"])) for row in alone]
    lines = [line for line in counts.splitlines() if line.startswith('chainrule_batch_rows_count{model="reviews"}')]
    assert float(lines[0].split()[1]) < 203, "rows of several requests went through the model together"


def test_what_was_read_in_part_is_told(server: Server) -> None:
    long, short = "the film was " * 60, "the film was awful"
    said = server.post("/v1/predict", {"inputs": [long, short], "model": "reviews"}).json()["predictions"]
    assert [row.get("cut") for row in said] == [True, None]


def test_ranking(many: Server) -> None:
    body = {"query": "good film", "items": ["a dull book", {"text": "a great film", "id": "B7"}, "the room"]}
    said = many.post("/v1/rank", body).json()
    scores = [row["score"] for row in said["results"]]
    assert scores == sorted(scores, reverse=True)
    assert [row["rank"] for row in said["results"]] == [1, 2, 3]
    assert {row["index"]: row.get("id") for row in said["results"]} == {0: None, 1: "B7", 2: None}
    assert [row["index"] for row in many.post("/v1/rank", body | {"top": 1}).json()["results"]] == [
        said["results"][0]["index"]
    ]


BAD: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "empty batch": ({"inputs": []}, 422, "empty", "The request has no inputs: send at least one."),
    "rows": (
        {"inputs": ["a"] * 100_000},
        413,
        "too_many_rows",
        "The request has 100,000 inputs; it may have 1,000. Send them in several requests.",
    ),
    "long": (
        {"inputs": ["fine", "x" * 150_000]},
        422,
        "text_too_long",
        "inputs[1] has 150,000 characters; a text may have 100,000.",
    ),
    "tokens": (
        {"inputs": ["a " * 500] * 500},
        422,
        "too_many_tokens",
        "The inputs have 251,000 tokens; a request may have 200,000. Send fewer rows, or shorter ones.",
    ),
    "empty text": (
        {"inputs": ["good", "  "]},
        422,
        "unprocessable_input",
        "The texts cannot be predicted. Row 2, field 'text': expected a text, got an empty one. "
        "Fill in or remove this text.",
    ),
    "another key": (
        {"inputs": [{"film": "good"}]},
        422,
        "unprocessable_input",
        "The rows cannot be predicted. Field 'text': expected a key for text (also found as sentence, review, content, "
        "title, question, query), got the key 'film'. Name the keys as the columns of the training data.",
    ),
    "two kinds": (
        {"inputs": ["good", {"text": "bad"}]},
        422,
        "unprocessable_input",
        "The inputs are of two kinds. Expected either texts or objects, got 1 texts of 2 rows. Send one kind.",
    ),
    "writing": (
        {"inputs": ["good"], "temperature": 1},
        422,
        "unprocessable_input",
        "This model writes no text. Field 'temperature': expected a model that writes replies, got "
        "text-classification. Leave out temperature.",
    ),
    "model": (
        {"inputs": ["good"], "model": "gpt"},
        404,
        "model_not_found",
        "There is no model 'gpt' here. There is: reviews, helper, vectors, search.",
    ),
    "no model": (
        {"inputs": ["good"], "model": None},
        422,
        "model_required",
        "Several models can do this: reviews, helper, vectors, search. Name one as `model`.",
    ),
    "no inputs": (
        {"input": ["good"]},
        422,
        "invalid_request",
        "The request is not of the form that /docs tells. "
        "inputs: Field required; input: Extra inputs are not permitted.",
    ),
    "numbers": (
        {"inputs": ["good", 3]},
        422,
        "invalid_request",
        "The request is not of the form that /docs tells. inputs[1]: Input should be a valid string.",
    ),
    "half a character": ({"inputs": ["\ud83d"]}, 422, "unreadable_text", "inputs[0] has half of a surrogate pair."),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, server: Server) -> None:
    body, status, code, message = BAD[name]
    content = json.dumps({"model": "reviews"} | body)
    with server.client() as client:
        answer = client.post("/v1/predict", content=content, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (answer.status_code, error["code"], error["message"]) == (status, code, message)


def test_fields_of_another_task(many: Server) -> None:
    answer = many.post("/v1/predict", {"inputs": ["was it good?"], "model": "question-answering"})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == (
        "The inputs do not fit this model. Expected the input question and context, got text. "
        "This model was trained on questions with their contexts."
    )
    answer = many.post("/v1/embeddings", {"input": "a"})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "No model here makes vectors."


def test_bodies_that_are_no_requests(server: Server) -> None:
    as_json = {"Content-Type": "application/json"}
    with server.client() as client:
        large = client.post("/v1/predict", json={"inputs": ["x" * 5_000_000], "model": "reviews"})
        assert large.status_code == 413
        assert large.json()["error"]["message"] == "The body has more than 4,194,304 bytes."
        pieces = client.post("/v1/predict", content=(b"x" * 100_000 for _ in range(50)), headers=as_json)
        assert pieces.status_code == 413
        broken = client.post("/v1/predict", content=b'{"inputs": [', headers=as_json)
        assert broken.status_code == 400
        assert broken.json()["error"]["message"] == "The body is no JSON: Expecting value (character 12)."
        for body in (b'"\xff"', b'{"inputs": ["\xff"]}', b"[" * 100_000, b'{"inputs": ' + b"9" * 5000 + b"}"):
            answer = client.post("/v1/predict", content=body, headers=as_json)
            assert answer.status_code == 400, body[:20]
            assert answer.json()["error"]["message"] == "The body is no JSON that can be read."
        plain = client.post("/v1/predict", content=b'{"inputs": ["a"]}', headers={"Content-Type": "text/plain"})
        assert plain.status_code == 422, "a web page can send this without being asked who it is"
        assert plain.json()["error"]["message"] == (
            "The body must be a JSON object, sent with the header `Content-Type: application/json`."
        )
        assert client.get("/v1/predict").status_code == 405
        assert client.get("/v2").json()["error"]["message"] == "There is nothing at /v2; /docs tells what there is."
        assert client.get("/readyz").json() == {"status": "ready"}


def test_the_document_knows_the_labels(many: Server, server: Server, trained: Run) -> None:
    with server.client() as client:
        document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    labels = ["negative", "positive"]
    assert schemas["Prediction1"]["title"] == "Prediction of reviews"
    assert schemas["Prediction1"]["properties"]["label"] == {"type": "string", "enum": labels}
    assert schemas["Predict"]["properties"]["model"]["enum"] == ["reviews", "helper", "vectors", "search"]
    operation = document["paths"]["/v1/predict"]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        assert server.post("/v1/predict", example["value"]).status_code == 200
    known = (trained.path / "recipe.yaml").read_text() + json.dumps([row["text"] for row in sentences(400)])
    assert examples["reviews"]["value"]["inputs"][0] not in known
    with many.client() as client:
        whole = client.get("/openapi.json").json()
    others = whole["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for name, example in others.items():
        answer = many.post("/v1/predict", example["value"])
        assert answer.status_code == 200, answer.text
        (said,) = answer.json()["predictions"]
        titled = whole["components"]["schemas"].values()
        (schema,) = [one for one in titled if one.get("title") == f"Prediction of {name}"]
        assert set(schema["required"]) <= set(said) <= set(schema["properties"])


def test_the_page_needs_no_network(server: Server) -> None:
    with server.client() as client:
        page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert "<script" not in page.text
    assert re.findall(r"(?:src|href)=\"(?!#)([^\"]*)\"", page.text) == ["/openapi.json"]
    for told in ("/v1/chat/completions", "max_completion_tokens", "negative", "A reply to a conversation"):
        assert told in page.text
