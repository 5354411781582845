"""Everything in Chainrule that reads files from elsewhere, each with good files: what `hostile` makes bad ones of.

A new reader adds one line to its group.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save
from torch import nn

from chainrule.core.artifact import MANIFEST, ROWS, Artifact, Manifest
from chainrule.core.parsing import merge, parse_setting
from chainrule.core.recipe import Clean, Data, Recipe, Structure, parse_recipe, read_recipe
from chainrule.core.spans import Answers, Spans
from chainrule.core.task import Predictions
from chainrule.data.load import load
from chainrule.data.stream import load_inputs
from chainrule.data.texts import Texts
from chainrule.evaluation.artifact import recorded_rows
from chainrule.evaluation.baseline_files import ARRAYS, TEXT
from chainrule.evaluation.baselines import Baselines, fit_baselines
from chainrule.evaluation.card import model_card
from chainrule.evaluation.report import render_report
from chainrule.evaluation.sentence_overlap import SentenceOverlap
from chainrule.evaluation.word_tags import WordTags
from chainrule.models.load import load_classifier, load_saved, load_tokenizer, token_limit
from chainrule.models.vectors import read_vectors
from chainrule.system.archives import unpack
from chainrule.system.files import sha256
from chainrule.tasks import TASKS, find_task
from chainrule.testing.data import sentences
from chainrule.testing.hostile import Target
from chainrule.testing.lists import rankers
from chainrule.testing.models import tiny_lstm, tiny_model
from chainrule.testing.usual import references
from chainrule.training.checkpoint import Best, Keeper, Standing
from chainrule.training.loop import Progress
from chainrule.training.optimizers import Scaled


def _readers(folder: Path) -> list[Target]:
    rows = [{"text": f"text {n} a, b", "label": "xy"[n % 2], "score": f"{n / 3}"} for n in range(8)]
    several = [
        {"text": f"t{n}", "labels": ["a", "b"][: 1 + n % 2], "score": n * 1.5, "x": {"k": [1]}} for n in range(8)
    ]
    chats = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}] * 8
    inner = [{"messages": json.dumps(chat["messages"]), "label": "a"} for chat in chats]
    named = [{"tokens": ["Ann", "runs", "far"], "tags": ["B-PER", "O", "I-LOC"]}] * 8
    spanned = [{"text": "Ann runs far", "entities": [{"start": 0, "end": 3, "label": "PER"}, [9, 12, "X"]]}] * 8
    preferred = [{"prompt": "q", "chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]}] * 8
    told = [{"instruction": f"q {n}", "input": "", "output": f"a {n}"} for n in range(8)]
    tagged = [{"text": f"t{n}", "labels": '["a", "b"]' if n % 2 else "a|b"} for n in range(8)]
    asked = [{"question": "who?", "context": "It was Ann.", "answers": {"text": ["Ann"], "answer_start": [7]}}] * 8
    flat = [{"question": "q", "context": "é 🙂 a", "answer": "a"[: n % 2], "answer_start": 4} for n in range(8)]
    listed = [{"query": f"q{n // 4}", "item": f"i{n}", "relevance": n % 4 // 2} for n in range(16)]
    seen = [{"user_id": f"u{n % 3}", "item_id": f"i{n % 5}", "rating": n % 6, "timestamp": n} for n in range(16)]
    tables = (rows, several, chats, inner, told, tagged, named, spanned, preferred, asked, flat, listed, seen)
    seeds = {
        "csv": [_delimited(table, ",") for table in (rows, inner, told, tagged, flat, listed, seen)],
        "tsv": [_delimited(table, "\t") for table in (rows, tagged)],
        "jsonl": [b"".join(json.dumps(row).encode() + b"\n" for row in table) for table in tables],
        "json": [json.dumps(table).encode() for table in tables],
        "parquet": [_parquet(table) for table in (rows, several, chats, named, asked)],
        "conll": [b"-DOCSTART- O\n\nAnn NN B-PER\nruns VB O\n\n" * 4, "李\tB-PER\r\n四\tI-PER\r\n".encode()],
    }

    (folder / "items.csv").write_text(
        "item_id,text\n" + "".join(f"i{n},film {n}\n" for n in range(6)), encoding="utf-8"
    )

    def reader(ending: str) -> Callable[[bytes, random.Random], None]:
        return lambda data, choose: _read_rows(_put(folder / f"rows.{ending}", data), choose)

    def read_words(data: bytes, choose: random.Random) -> None:
        places, vectors = read_vectors(_put(folder / "vectors.txt", data), {"good": 3, "film": 4, "of a": 5})
        assert len(places) == len(vectors)
        assert np.isfinite(vectors).all()

    words = (b"good 1 2\nof a -3 .4\n", b"2 3\ngood 1 2 3e-2 \nfilm 4 5 6 \n")
    return [
        *(Target(ending, tuple(files), reader(ending)) for ending, files in seeds.items()),
        Target("vectors", words, read_words),
    ]


def _read_rows(path: Path, choose: random.Random) -> None:
    task = choose.choice(list(TASKS.values()))
    switches = [choose.random() < 0.3 for _ in Clean.model_fields]
    clean = Clean(**dict(zip(Clean.model_fields, switches, strict=True)))
    bad: Literal["stop", "skip"] = choose.choice(("stop", "skip"))
    if choose.random() < 0.7:
        dataset = load(path, Data(clean=clean, on_bad_row=bad), task)
        assert json.dumps(dataset.report.as_dict(), ensure_ascii=False).encode()
    else:
        for table, inputs in load_inputs(path, task, chunk_rows=3, on_bad_row=bad, clean=clean):
            assert len(table.columns.to_pylist()) == len(next(iter(inputs.values())))


def _recipes(folder: Path) -> list[Target]:
    whole = Recipe.model_validate({"task": "text-classification", "model": "minilm"}).to_yaml().encode()
    short = (
        b"task: regression\nmodel: {name: x, max_length: 64}\ndata: a.csv\nstrategy: {name: lora, options: {rank: 8}}\n"
    )
    settings = (b"optimizer.learning_rate=2e-5", b"training.epochs=[1, {a: b}]", b"a.b.c.d=~", b"data.source=*.csv")

    def recipe(data: bytes, choose: random.Random) -> None:
        _use(read_recipe(_put(folder / "recipe.yaml", data)))

    def setting(data: bytes, choose: random.Random) -> None:
        changes = dict([parse_setting(data.decode("utf-8", "surrogateescape"))])
        _use(parse_recipe(merge({"task": "regression", "model": "x"}, changes)))

    return [Target("recipe", (whole, short), recipe), Target("setting", settings, setting)]


def _use(recipe: Recipe) -> None:
    assert recipe.to_yaml().encode()
    assert recipe.replace({"seed": 3}).seed == 3
    assert json.dumps(recipe.model_dump(mode="json"), ensure_ascii=False).encode()


def _artifacts(folder: Path) -> list[Target]:
    home = folder / "artifact"
    home.mkdir()
    plain = Recipe.model_validate({"task": "text-classification", "model": "minilm"}).model_dump(mode="json")
    manifest = Manifest(
        chainrule_version="0",
        task="text-classification",
        labels=("a", "b"),
        inputs=("text",),
        fields={"text": "text", "label": "label"},
        max_length=64,
        base_model="minilm",
        recipe=plain,
        metrics={"accuracy": 0.5},
        primary_metric="accuracy",
        data={"rows": {"train": 9}},
        loads_in=("transformers",),
        weights_sha256="00",
    )
    good = _put(home / MANIFEST, manifest.model_dump_json(indent=1).encode()).read_bytes()
    hashes = save({"seen/train": np.arange(4, dtype=np.uint64), "cut/test": np.arange(2, dtype=np.uint64)})

    def read_manifest(data: bytes, choose: random.Random) -> None:
        artifact = Artifact.read(_put(home / MANIFEST, data).parent)
        assert artifact.clean is not None
        assert model_card(artifact.manifest, None).encode()

    def read_hashes(data: bytes, choose: random.Random) -> None:
        _put(home / MANIFEST, good)
        _put(home / ROWS, data)
        cut, seen = recorded_rows(Artifact.read(home))
        wanted = np.arange(9, dtype=np.uint64)
        assert all(np.isin(wanted, known).shape == (9,) for known in seen.values())
        assert cut is None or len(cut.apply(wanted))

    return [
        Target("manifest", (good,), read_manifest),
        Target("row-hashes", (hashes,), read_hashes),
        Target("archive", _archives(), _unpacking(folder)),
    ]


def _baselines(folder: Path) -> list[Target]:
    fitted = _put(folder / "baselines" / TEXT, b"").parent
    rows = sentences(20)
    inputs, values = (
        {"text": [row["text"] for row in rows]},
        np.array([row["label"] == "positive" for row in rows], int),
    )
    task = find_task("text-classification")
    fit_baselines(task, ("a", "b"), (inputs, values), (inputs, values)).save(fitted)
    files = {name: (fitted / name).read_bytes() for name in (TEXT, ARRAYS)}

    def baselines(name: str) -> Callable[[bytes, random.Random], None]:
        def read(data: bytes, choose: random.Random) -> None:
            for other, content in files.items():
                _put(fitted / other, data if other == name else content)
            baselines = Baselines.load(fitted)
            baselines.predict({field: ["good film", ""] for field in baselines.fields})

        return read

    words = folder / "words"
    spans = Spans.of([[(0, 3, 0)], [(4, 8, 1)]])
    WordTags.fit(("a", "b"), {"tokens": ['"Ann runs"', '["Ann", "runs"]']}, spans).save(words)

    def word_tags(data: bytes, choose: random.Random) -> None:
        _put(words / TEXT, data)
        found = WordTags.load(words)
        assert len(found.predict({"tokens": ['"Ann runs"']})["word-tags"].values) == 1
        found.save(words)

    overlap, texts = folder / "overlap", {"question": Texts.of(["who?"]), "context": Texts.of(["It was Ann."])}
    SentenceOverlap.fit(texts, Answers(texts["context"], Spans.of([[(7, 10, 0)]]))).save(overlap)

    def sentence_overlap(data: bytes, choose: random.Random) -> None:
        _put(overlap / TEXT, data)
        found = SentenceOverlap.load(overlap)
        assert len(found.predict(texts)["sentence-overlap"].values) == 1
        found.save(overlap)

    return [
        *rankers(folder / "rankers"),
        Target("sentence-overlap", ((overlap / TEXT).read_bytes(),), sentence_overlap),
        Target("word-tags", ((words / TEXT).read_bytes(),), word_tags),
        Target("baselines", (files[TEXT],), baselines(TEXT), cost=3),
        Target("baseline-arrays", (files[ARRAYS],), baselines(ARRAYS), cost=3),
    ]


def _models(folder: Path) -> list[Target]:
    home = tiny_model(folder / "model")
    files = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    good = {name: (home / name).read_bytes() for name in files}
    weights = good["model.safetensors"]
    header = weights[: 8 + int.from_bytes(weights[:8], "little")]  # changes are to meet what says where the numbers are

    def reader(changed_name: str) -> Callable[[bytes, random.Random], None]:
        def read(data: bytes, choose: random.Random) -> None:
            for file in files:
                _put(home / file, data if file == changed_name else good[file])
            if changed_name == "model.safetensors":
                _put(home / changed_name, data + weights[len(header) :])
            name = str(home)
            tokenizer = load_tokenizer(name)
            if changed_name.startswith("tokenizer"):
                assert token_limit(name, tokenizer, None) >= 1
                assert tokenizer(["good film", ""], truncation=True, max_length=8)["input_ids"]
            else:
                load_classifier(name, tokenizer, ["a", "b"], "single_label_classification", Structure(), seed=0)

        return read

    own = tiny_lstm(folder / "lstm")

    def read_lstm(data: bytes, choose: random.Random) -> None:
        _put(own / "config.json", data)
        load_saved(own, "classifier", "lstm")

    index = json.dumps(
        {"metadata": {}, "weight_map": {"a": "shard-1.safetensors", "b": "shard-2.safetensors"}}
    ).encode()

    def read_index(data: bytes, choose: random.Random) -> None:
        (home / "model.safetensors").unlink(missing_ok=True)
        path = _put(home / "model.safetensors.index.json", data)
        try:
            _put(home / "config.json", good["config.json"])
            tokenizer = load_tokenizer(str(home))
            load_classifier(str(home), tokenizer, ["a"], "regression", Structure(), seed=0)
        finally:
            path.unlink()

    return [
        Target("config", (good["config.json"],), reader("config.json"), cost=30),
        Target("weights", (header,), reader("model.safetensors"), cost=30),
        Target("tokenizer", (good["tokenizer.json"],), reader("tokenizer.json"), cost=30),
        Target("tokenizer-config", (good["tokenizer_config.json"],), reader("tokenizer_config.json"), cost=30),
        Target("shard-index", (index,), read_index, cost=30),
        Target("lstm-config", ((own / "config.json").read_bytes(),), read_lstm, cost=30),
    ]


def _runs(folder: Path) -> list[Target]:
    run = folder / "run"
    home = run / "checkpoints" / "step-00000003"
    run.mkdir()
    (run / "events.jsonl").touch()
    model, standing = _trained(3)
    Keeper(run, 5, 2).write(model, ("weight", "bias"), standing)
    names = ("state.json", "weights.safetensors", "optimizer.safetensors")
    good = {name: (home / name).read_bytes() for name in names}

    def checkpoint(changed_name: str) -> Callable[[bytes, random.Random], None]:
        def read(data: bytes, choose: random.Random) -> None:
            for name in names:
                _put(home / name, data if name == changed_name else good[name])
            if choose.random() < 0.8:
                _seal(home)
            found = Keeper(run, 5, 2).newest(lambda line: None)
            if found is not None:
                found.put_into(*_trained(0))

        return read

    page = folder / "page"
    documents = {"summary.json": b'{"run": "a", "metrics": {"accuracy": 0.5}}', "recipe.yaml": b"task: regression\n"}
    documents["events.jsonl"] = b'{"event": "step", "step": 1, "loss": 0.5}\n{"event": "finish", "best_step": 1}\n'
    documents["check.json"] = (
        b'{"source": "a.csv", "splits": {"train": {"rows": 3, "labels": {"a": 2}}}, "labels": ["a"]}'
    )

    def report(data: bytes, choose: random.Random) -> None:
        chosen = choose.choice(list(documents))
        for name, content in documents.items():
            _put(page / name, data if name == chosen else content)
        assert render_report(page).encode()

    return [
        *(Target(f"checkpoint-{Path(name).stem}", (good[name],), checkpoint(name), cost=3) for name in names),
        Target("report", tuple(documents.values()), report, cost=10),
    ]


def _trained(step: int) -> tuple[nn.Linear, Standing]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = Scaled(torch.optim.AdamW(model.parameters(), lr=0.1))
    for _ in range(step):
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    standing = Standing(Progress(step, optimizer))
    if step:
        predictions = Predictions(np.array([1, 0]), np.array([0.5, 0.25]))
        weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        standing.best = Best(step, (0.5, -1.0), {"accuracy": 0.5}, predictions, weights)
    return model, standing


def _seal(checkpoint: Path) -> None:
    """Write the hashes that belong to the files, as whoever changes them on purpose would."""
    path = checkpoint / "state.json"
    with suppress(ValueError, RecursionError, AttributeError, TypeError, KeyError, OSError):
        document = json.loads(path.read_text(encoding="utf-8"))
        document.pop("sha256", None)
        document["files"] = {name: sha256(checkpoint / name) for name in document["files"]}
        digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(document | {"sha256": digest}), encoding="utf-8")


def _archives() -> tuple[bytes, ...]:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("package/model/config.json", "{}")
        archive.writestr("package/model/deep/a.txt", "a" * 50)
    return (made.getvalue(),)


def _unpacking(folder: Path) -> Callable[[bytes, random.Random], None]:
    def read(data: bytes, choose: random.Random) -> None:
        out = folder / "unpacked" / "inside"
        for path in sorted(out.parent.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        out.mkdir(parents=True)
        try:
            unpack(_put(folder / "a.zip", data), ["package/model/"], out)
        finally:
            assert [path.name for path in out.parent.iterdir()] == ["inside"], "a file outside"

    return read


def _delimited(rows: Sequence[dict[str, Any]], delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, compression="none")
    return sink.getvalue()


def _put(path: Path, data: bytes) -> Path:
    with suppress(FileExistsError):
        path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


# group -> what makes its targets in an empty folder
GROUPS: dict[str, Callable[[Path], list[Target]]] = {
    "rows": _readers,
    "recipes": _recipes,
    "artifacts": _artifacts,
    "baselines": _baselines,
    "models": _models,
    "runs": _runs,
    "reference": references,
}
