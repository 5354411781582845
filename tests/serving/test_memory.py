"""More models than memory: which are there, which make room, and what clients see of it."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import chainrule
from chainrule.cli import main
from chainrule.core.artifact import MANIFEST, ROWS, Artifact, Run
from chainrule.inference.given import texts_given
from chainrule.inference.predict import load_predictor
from chainrule.inference.size import held_bytes, stored_bytes
from chainrule.serving.jobs import RowsJob
from chainrule.serving.limits import Limits
from chainrule.serving.memory import load_all
from chainrule.serving.refusal import RefusedError
from chainrule.serving.routes import Service
from chainrule.serving.served import Served
from chainrule.serving.worker import answered
from chainrule.system.files import sha256
from chainrule.testing.servers import Server

pytestmark = pytest.mark.unit

TEXTS = ["the film was good", "a dull book", "the room was cold and the clever film was great"]
WIDE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4}  # 50 MB


def variant(run: Run, folder: Path, *, seed: int, **sizes: int) -> Path:
    """The artifact of a run with other random weights, in another size."""
    folder = shutil.copytree(run.artifact.path, folder)
    config = AutoConfig.from_pretrained(folder)
    config.update(sizes)
    torch.manual_seed(seed)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["weights_sha256"] = sha256(folder / "model.safetensors")
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def wide(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return variant(trained, tmp_path_factory.mktemp("wide") / "wide", seed=1, **WIDE)


@pytest.fixture(scope="module")
def small(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four models of about 140 KB."""
    folder = tmp_path_factory.mktemp("small")
    return {name: variant(trained, folder / name, seed=seed) for seed, name in enumerate("abcd")}


@pytest.fixture
def service(small: dict[str, Path]) -> Service:
    """Four models, of which two fit; `a` and `b` are there. Its thread has not begun."""
    budget = size_of(small["a"]) + size_of(small["b"])
    return Service(load_all(small, budget, lambda served: None), Limits(queue=4, timeout=60), budget=budget)


def in_memory(server: Server) -> dict[str, bool]:
    with server.client() as client:
        return {model["id"]: model["in_memory"] for model in client.get("/v1/models").json()["data"]}


def metric(server: Server, name: str) -> float:
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def ask(server: Server, model: str) -> list[dict[str, float]]:
    answer = server.post("/v1/predict", {"inputs": TEXTS, "model": model})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == model
    return [row["scores"] for row in answer.json()["predictions"]]


def near(scores: list[dict[str, float]]) -> list[object]:
    return [pytest.approx(row, abs=2e-5) for row in scores]


def budget(*folders: Path) -> str:
    """What these take together, and 2 KB."""
    return f"{sum(map(size_of, folders)) / 2**20 + 0.002:.3f}M"


def size_of(folder: Path) -> int:
    return held_bytes(load_predictor(Artifact.read(folder)))


def test_bytes_before_loading_and_after(wide: Path, vectors: Run, talking: Run) -> None:
    for path in (wide, vectors.artifact.path, talking.artifact.path):
        artifact = Artifact.read(path)
        assert (path / ROWS).is_file(), "which holds no weights"
        predictor = load_predictor(artifact)
        weights = sum(4 * parameter.numel() for parameter in predictor.forward.model.parameters())
        buffers = sum(8 * buffer.numel() for buffer in predictor.forward.model.buffers())
        assert weights <= held_bytes(predictor) <= weights + buffers
        assert weights <= stored_bytes(artifact) <= weights + buffers
    parameter = next(predictor.forward.model.parameters())
    parameter.rounded = parameter.detach().bfloat16()
    assert held_bytes(predictor) - 2 * parameter.numel() == held_bytes(load_predictor(artifact))


def test_a_model_that_makes_room_gives_its_memory_back(
    start: Callable[..., Server], wide: Path, small: dict[str, Path]
) -> None:
    """Either the wide model fits or the small one: each in turn, three times."""
    server = start(f"wide={wide}", f"a={small['a']}", "--memory", budget(wide))
    process = psutil.Process(server.process.pid)
    assert in_memory(server) == {"wide": True, "a": False}, "the first ones stay"
    expected: dict[str, list[dict[str, float]]] = {}
    taken: dict[str, list[float]] = {"wide": [], "a": []}
    for _ in range(3):
        for name in ("wide", "a"):
            said = ask(server, name)
            assert said == near(expected.setdefault(name, said))
            assert in_memory(server) == {"wide": name == "wide", "a": name == "a"}
            taken[name].append(process.memory_info().rss / 2**20)
    differences = [high - low for high, low in zip(taken["wide"], taken["a"], strict=True)]
    assert min(differences) > 40, taken
    assert max(taken["wide"][1:]) - min(taken["wide"][1:]) < 15, taken
    assert metric(server, 'chainrule_model_evictions_total{model="wide"}') == 3
    assert metric(server, 'chainrule_model_loads_total{model="wide",outcome="loaded"}') == 2
    assert metric(server, 'chainrule_model_bytes{model="wide"}') == 0
    assert metric(server, 'chainrule_model_bytes{model="a"}') == size_of(small["a"])
    last = threading.Thread(target=ask, args=(server, "wide"))
    last.start()
    while last.is_alive() and not metric(server, "chainrule_rows_waiting"):
        time.sleep(0.01)
    code, told = server.end()
    last.join()
    accepted = told.rpartition(" of ")[2].split()[0]
    assert (code, told.count(f"Ended: {accepted} of {accepted} accepted requests were answered.")) == (0, 1)


def test_clients_of_more_models_than_fit_are_all_answered(
    start: Callable[..., Server], small: dict[str, Path], talking: Run, tmp_path: Path
) -> None:
    """Four models and one that writes, each asked by two clients, with a shadow, a split and a monitor."""
    places = [*(f"{name}={path}" for name, path in small.items()), talking.path]
    file = tmp_path / "w.db"
    flags = ("--shadow", "a=b", "--split", "a=1,b=1", "--timeout", "120", "--monitor", file)
    server = start(*places, "--memory", budget(small["a"], talking.artifact.path), *flags)
    assert in_memory(server)["helper"] is False
    expected = {name: near(ask(server, name)) for name in small}
    chat = {"messages": [{"role": "user", "content": "film warm"}], "max_tokens": 6}
    reply = server.post("/v1/chat/completions", chat).json()["choices"]
    wrong: list[object] = []

    def client(name: str) -> None:
        for _ in range(6):
            if name == "helper":
                said = server.post("/v1/chat/completions", chat).json().get("choices")
                right = said == reply
            else:
                answer = server.post("/v1/predict", {"inputs": TEXTS, "model": name}).json()
                said = [row["scores"] for row in answer.get("predictions", [])]
                right = said == expected[name]
            if not right:
                wrong.append((name, said))

    clients = [threading.Thread(target=client, args=(name,)) for name in [*small, "helper"] * 2]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert wrong == []
    assert metric(server, "chainrule_model_evictions_total") >= 3
    assert metric(server, 'chainrule_model_loads_total{model="helper",outcome="loaded"}') >= 1
    assert server.post("/v1/predict", {"inputs": TEXTS}).json()["model"] in ("a", "b")
    code, told = server.end()
    assert code == 0
    assert "warning" not in told
    counted = {name: model["rows"] for name, model in chainrule.watch_summary(file)["models"].items()}
    assert counted["c"] == counted["d"] == 3 * 13


def test_new_versions_within_a_budget(start: Callable[..., Server], small: dict[str, Path], tmp_path: Path) -> None:
    """Of a model that is in memory and of one that is not; files that change unasked are noticed."""
    a, b = tmp_path / "a", tmp_path / "b"
    a.symlink_to(small["a"])
    shutil.copytree(small["b"], b)
    server = start(f"a={a}", f"b={b}", "--memory", budget(small["a"]))
    old = {name: ask(server, name) for name in ("b", "a")}
    (tmp_path / "next").symlink_to(small["c"])
    (tmp_path / "next").rename(a)
    shutil.copytree(small["d"], b, dirs_exist_ok=True)
    unasked = server.post("/v1/predict", {"inputs": TEXTS, "model": "b"})
    assert unasked.status_code == 503
    assert 1 <= int(unasked.headers["Retry-After"]) <= 10
    assert unasked.json()["error"] == {
        "message": "The model 'b' cannot be loaded now; the log of the server says why.",
        "type": "server_error",
        "param": None,
        "code": "model_unavailable",
    }
    assert ask(server, "a") == near(old["a"]), "loaded again from where the link led to"
    server.process.send_signal(signal.SIGHUP)
    for name in ("a", "b"):
        while metric(server, f'chainrule_reloads_total{{model="{name}",outcome="loaded"}}') < 1:
            time.sleep(0.05)
        assert ask(server, name) != near(old[name])
    assert sum(in_memory(server).values()) == 1
    code, told = server.end()
    assert code == 0
    assert "warning: b cannot be loaded: The files of the model have changed." in told
    assert told.count(" is now ") == 2


def job_for(service: Service, name: str, *, timeout: float = 60.0) -> RowsJob:
    served = service.models[name]
    inputs = texts_given(served.predictor, {"text": TEXTS[:1]})
    return RowsJob(served, 1, time.monotonic() + timeout, asyncio.get_running_loop().create_future(), inputs=inputs)


def test_requests_that_wait_for_a_model(service: Service, small: dict[str, Path]) -> None:
    """While something else is loaded, which is held up: the queue's bound and deadlines are those of other requests."""
    go_on = threading.Event()

    def held_up(served: Served) -> None:
        go_on.wait()

    renewal = threading.Thread(
        target=service.memory.renew, args=("a", Artifact.read(small["d"]), held_up), name="renewal"
    )

    async def requests() -> None:
        nobody: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        service.worker.start()
        renewal.start()
        while service.models["b"].in_memory:  # it makes room
            await asyncio.sleep(0.01)
        assert len(await answered(service.worker, job_for(service, "a"), nobody)) == 1, "others go on"
        late = job_for(service, "c", timeout=0.05)
        with pytest.raises(RefusedError) as refused:
            await answered(service.worker, late, nobody)
        assert refused.value.status == 504
        while service.worker.waiting("predict"):  # its place in the queue is free again
            await asyncio.sleep(0.01)
        waiting = [asyncio.ensure_future(answered(service.worker, job_for(service, name), nobody)) for name in "cbcd"]
        await asyncio.sleep(0)
        with pytest.raises(RefusedError) as refused:
            await answered(service.worker, job_for(service, "c"), nobody)
        assert refused.value.status == 429
        assert not any(one.done() for one in waiting)
        go_on.set()
        answers = await asyncio.gather(*waiting)
        assert all(len(rows) == 1 for rows in answers)

    asyncio.run(requests())
    renewal.join()
    service.worker.close()
    assert service.models["a"].predictor.artifact.manifest == Artifact.read(small["d"]).manifest


def test_no_model_goes_while_it_has_requests(service: Service) -> None:
    """`a` and `b` have requests when `c` is asked for: the one asked longest ago answers first, then it goes."""

    def there() -> str:
        return "".join(name for name, served in service.models.items() if served.in_memory)

    async def requests() -> None:
        memory, jobs = service.memory, {name: job_for(service, name) for name in "abcd"}
        able, unable = memory.admit([jobs["b"], jobs["a"]], [])
        assert (able, unable) == ([jobs["b"], jobs["a"]], [])
        assert memory.admit([jobs["c"]], able) == ([], [])
        more = job_for(service, "b")
        assert memory.admit([more], able) == ([], []), "it is to leave"
        assert there() == "ab"
        assert memory.admit([], [jobs["a"]]) == ([], [])
        assert there() == "a"
        while there() == "a":
            await asyncio.sleep(0.01)
            able, _ = memory.admit([], [jobs["a"]])
        assert able == [jobs["c"]]
        jobs["d"].given_up = more.given_up = True
        able, _ = memory.admit([jobs["d"]], [])
        assert set(able) == {jobs["d"], more}, "to be dropped"
        assert there() == "ac"
        assert not memory.waited_for

    asyncio.run(requests())
    service.memory.close()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--memory", "1M"],
            "There are models that are larger than the memory for all of them.\n  - <wide>: expected models whose "
            "weights fit into 1M, which --memory allows, got 'wide', which takes <size>. Allow more, or make it "
            "smaller: chainrule compress.",
        ),
        (
            ["--memory", "2 apples"],
            "The memory for models cannot be read.\n  - field 'memory': expected a size such as 2G or 500M, got "
            "'2 apples'. Change --memory.",
        ),
    ],
)
def test_what_does_not_fit(
    words: list[str], told: str, wide: Path, small: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    size = f"{-(-100 * stored_bytes(Artifact.read(wide)) // 2**20) / 100:g}M"
    told = told.replace("<wide>", str(wide)).replace("<size>", size)
    with pytest.raises(SystemExit) as stop:
        main(["serve", f"a={small['a']}", f"wide={wide}", "--port", "0", *words])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"Error: {told}\n"
