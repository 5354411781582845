"""Inner states of a teacher: losses against plain loops in float64, what is read of a model, whole trainings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import chainrule
from chainrule.cli import main
from chainrule.core.artifact import Run
from chainrule.core.recipe import Distillation, Spec
from chainrule.data.batch import Batch
from chainrule.errors import RecipeError
from chainrule.inference.predict import load_predictor
from chainrule.models.accelerate import accelerate
from chainrule.models.states import layers_seen, queries_keys_values
from chainrule.tasks.objectives import class_objective
from chainrule.testing.data import sentences, write_csv
from chainrule.testing.models import narrow_model, tiny_model
from chainrule.testing.runs import short_run
from chainrule.training.distillation import Distilled, softened
from chainrule.training.state_teacher import beside
from chainrule.training.states import (
    Projection,
    StateLosses,
    hidden_distance,
    log_relations,
    relation_distance,
    sentence_distance,
)

pytestmark = pytest.mark.unit
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
Numbers = Sequence[Sequence[float]]


def _drawn(seed: int, width: int = 6, *, learned: bool = False) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, width, generator=draw, dtype=torch.float64).requires_grad_(learned)


def _hidden(student: torch.Tensor, teacher: torch.Tensor) -> list[float]:
    found = []
    for row in range(3):
        count = int(MASK[row].sum())
        pairs = zip(student[row, :count].flatten().tolist(), teacher[row, :count].flatten().tolist(), strict=True)
        apart = [(own - wanted) ** 2 for own, wanted in pairs]
        found.append(sum(apart) / len(apart))
    return found


def _softmax(scores: Sequence[float]) -> list[float]:
    shares = [math.exp(score) for score in scores]
    return [share / sum(shares) for share in shares]


def _looks(looking: Numbers, seen: Numbers, part: slice) -> list[list[float]]:
    """For each token how much it looks at each other, by a slice of their numbers."""
    width = part.stop - part.start
    return [
        _softmax([sum(a * b for a, b in zip(one[part], two[part], strict=True)) / math.sqrt(width) for two in seen])
        for one in looking
    ]


def _part(head: int, size: int) -> slice:
    return slice(head * size, (head + 1) * size)


def _relation(student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...], heads: int) -> list[float]:
    found = []
    for row in range(3):
        count, losses = int(MASK[row].sum()), []
        for head in range(heads):
            sizes = [pair[0].shape[-1] // heads for pair in (student, teacher)]
            own, wanted = (
                _looks(pair[0][row, :count].tolist(), pair[1][row, :count].tolist(), _part(head, size))
                for pair, size in zip((student, teacher), sizes, strict=True)
            )
            for q, p in zip(own, wanted, strict=True):
                losses.append(sum(there * math.log(there / here) for there, here in zip(p, q, strict=True)))
        found.append(sum(losses) / len(losses))
    return found


def _sentences(student: torch.Tensor, teacher: torch.Tensor) -> list[float]:
    def cosines(states: torch.Tensor) -> Any:
        vectors = np.stack([states[row, : int(MASK[row].sum())].detach().numpy().mean(0) for row in range(3)])
        return [[a @ b / math.sqrt((a @ a) * (b @ b)) for b in vectors] for a in vectors]

    own, wanted = cosines(student), cosines(teacher)
    return [sum((own[row][other] - wanted[row][other]) ** 2 for other in range(3)) / 2 for row in range(3)]


def test_hidden_states_against_loops() -> None:
    student, teacher = _drawn(1, learned=True), _drawn(2)
    torch.testing.assert_close(hidden_distance(student, teacher, MASK).tolist(), _hidden(student, teacher))
    assert torch.autograd.gradcheck(lambda states: hidden_distance(states, teacher, MASK), student)
    assert hidden_distance(teacher, teacher, MASK).abs().max().item() == 0


def test_relations_against_loops() -> None:
    """Widths may differ; with queries and keys it is attention."""
    (query, key), wide = (_drawn(seed, 4, learned=True) for seed in (1, 2)), (_drawn(3), _drawn(4))
    mask = MASK.bool()
    torch.testing.assert_close(
        relation_distance((query, key), wide, 2, mask).tolist(), _relation((query, key), wide, 2)
    )
    torch.testing.assert_close(
        relation_distance((query, query), (wide[0], wide[0]), 1, mask).tolist(),
        _relation((query, query), (wide[0], wide[0]), 1),
    )
    assert torch.autograd.gradcheck(lambda a, b: relation_distance((a, b), wide, 2, mask), (query, key))
    assert torch.autograd.gradcheck(lambda a: relation_distance((a, a), (wide[0], wide[0]), 2, mask), query)
    assert relation_distance(wide, wide, 3, mask).abs().max().item() < 1e-12


def test_relations_of_rows_against_loops() -> None:
    student, teacher = _drawn(1, 4, learned=True), _drawn(2)
    torch.testing.assert_close(sentence_distance(student, teacher, MASK).tolist(), _sentences(student, teacher))
    assert torch.autograd.gradcheck(lambda states: sentence_distance(states, teacher, MASK), student)
    alone = sentence_distance(student[:1], teacher[:1], MASK[:1])
    assert alone.tolist() == [0.0]


def test_a_projection_is_learned_with_the_states() -> None:
    student, teacher = _drawn(1, 4, learned=True), _drawn(2)
    made = Projection(4, 6, seed=0).double()
    assert torch.autograd.gradcheck(
        lambda states, weight: hidden_distance(torch.nn.functional.linear(states, weight), teacher, MASK),
        (student, made.weight),
    )
    assert torch.equal(Projection(4, 6, seed=1).weight, Projection(4, 6, seed=1).weight)
    torch.testing.assert_close(made(student), student @ made.weight.T)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(3, 6, (1, 3, 5)), (4, 12, (2, 5, 8, 11)), (1, 2, (1,)), (2, 2, (0, 1)), (3, 2, (0, 0, 1))],
)
def test_layers_are_spread_with_the_top_beside_the_top(student: int, teacher: int, expected: tuple[int, ...]) -> None:
    assert beside(student, teacher) == expected


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("kernels", [False, True])
def test_what_is_read_is_what_transformers_says(family: str, kernels: bool, tmp_path: Path) -> None:
    """Outputs of all layers, and the attention of each, under a head that reads the first token alone."""
    folder = tiny_model(tmp_path / family, family)
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    given = {"input_ids": torch.arange(5, 23).view(2, 9), "attention_mask": torch.ones(2, 9, dtype=torch.int64)}
    given["attention_mask"][1, 6:] = 0
    with torch.no_grad():
        wanted = model(**given, output_hidden_states=True, output_attentions=True)
        if kernels:
            model.set_attn_implementation("sdpa")
            accelerate(model, torch.device("cpu"))
        hooks = [len(module._forward_hooks) for module in model.modules()]
        with layers_seen(model) as seen:
            logits = model(**given).logits
        torch.testing.assert_close(logits, wanted.logits, rtol=1e-4, atol=1e-5)
        assert len(seen.made) == 2
        for place in range(2):
            real = given["attention_mask"].bool()
            made = seen.made[place]
            torch.testing.assert_close(made[real], wanted.hidden_states[place + 1][real], rtol=1e-4, atol=1e-4)
            query, key, _ = queries_keys_values(model, place, seen.given[place])
            looks = log_relations(query, key, model.config.num_attention_heads, real).exp().transpose(1, 2)
            expected = wanted.attentions[place].transpose(1, 2)
            torch.testing.assert_close(looks[real], expected[real], rtol=1e-4, atol=1e-5)
        after = model(**given).logits  # nothing of the looking is left
    torch.testing.assert_close(after, wanted.logits, rtol=1e-4, atol=1e-5)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return short_run("text-classification", tmp_path_factory.mktemp("teacher") / "x", training__steps=30)


ALL = Distillation(hidden=1.0, attention=0.5, relation=0.5, sentences=0.2)


def test_the_objective_is_the_sum_of_its_parts(teacher: Run, tmp_path: Path) -> None:
    """And but for the relations of rows it does not matter how a batch is cut."""
    predictor = load_predictor(teacher.artifact)
    folder = narrow_model(tmp_path / "narrow", teacher.path.parent / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.arange(5, 41).view(4, 9)
    mask = torch.ones(4, 9, dtype=torch.int64)
    mask[1, 5:] = 0
    targets, said = torch.tensor([0, 1, 1, 0]), torch.randn(4, 2, generator=torch.Generator().manual_seed(2))
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    references = softened(said, "class", 2.0)
    inner = class_objective(Spec(name="cross-entropy"), targets.numpy())
    projection = Projection(16, 32, seed=0)

    def gradients(options: Distillation, pieces: Sequence[slice]) -> tuple[float, dict[str, torch.Tensor]]:
        losses = StateLosses(options, (1,), 2, 2, projection) if options.reads_states else None
        made = Distilled(inner, "class", options, (predictor,) if losses else (), losses)
        for parameter in (*model.parameters(), projection.weight):
            parameter.grad = None
        total = 0.0
        for piece in pieces:
            part = {name: values[piece] for name, values in inputs.items()}
            batch = Batch(part, targets[piece], np.arange(4)[piece], 0, references[piece])
            total += float(made.accumulate(model, batch)[0])
        named = {**dict(model.named_parameters()), "projection": projection.weight}
        return total, {name: each.grad for name, each in named.items() if each.grad is not None}

    whole = [slice(0, 4)]
    base, _ = gradients(Distillation(), whole)
    parts = {}
    for name in ("hidden", "attention", "relation", "sentences"):
        parts[name] = gradients(Distillation(**{name: 1.0}), whole)[0] - base  # type: ignore[arg-type]
        assert parts[name] > 1e-6
    together, _ = gradients(ALL, whole)
    expected = base + sum(getattr(ALL, name) * value for name, value in parts.items())
    assert together == pytest.approx(expected, rel=1e-4)
    by_rows = Distillation(hidden=1.0, attention=0.5, relation=0.5)
    total, wanted = gradients(by_rows, whole)
    again, found = gradients(by_rows, [slice(0, 1), slice(1, 4)])
    assert again == pytest.approx(total, rel=1e-4)
    assert "projection" in wanted
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4)
    assert all(parameter.grad is None for parameter in predictor.forward.model.parameters())


def _settings(teacher: Run, model: Path, **changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"model": str(model), "training.steps": 20, "training.threads": 1}
    known |= {"training.precision": "float32", "optimizer.learning_rate": 5e-3}
    known |= {"distillation.teachers": [str(teacher.path)]}
    return known | {f"distillation.{name}": value for name, value in changes.items()}


def test_a_narrower_student_learns_states_and_keeps_nothing_of_the_projection(teacher: Run, tmp_path: Path) -> None:
    narrow = narrow_model(tmp_path / "narrow", teacher.path.parent / "model")
    data = teacher.path.parent / "rows" / "rows.csv"
    changes = {"hidden": 1.0, "attention": 1.0, "relation": 1.0, "sentences": 1.0}
    run = chainrule.train(str(data), out=tmp_path / "run", settings=_settings(teacher, narrow, **changes))
    losses = [event["loss"] for event in run.events() if event["event"] == "step"]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    folder = run.artifact.path
    with safe_open(folder / "model.safetensors", "pt") as kept:
        assert not [name for name in kept.keys() if "projection" in name]  # noqa: SIM118  (no mapping)
    plain, told = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert plain.config.hidden_size == 16
    assert run.summary["trained_parameters"] == sum(each.numel() for each in plain.parameters())
    recipe = chainrule.read_recipe(run.path / "resolved.yaml")
    assert recipe.distillation.hidden == 1.0
    assert not recipe.training.trunk_cache


def test_states_are_off_by_default(teacher: Run, tmp_path: Path) -> None:
    """A recipe without them gives the loss it gave before they were there: of what the teacher says alone."""
    data, model = teacher.path.parent / "rows" / "rows.csv", teacher.path.parent / "model"
    losses = []
    for name, changes in {"plain": {}, "zero": {"hidden": 0.0, "layers": [0, 1]}}.items():
        settings = _settings(teacher, model, **changes) | {"training.steps": 3}
        run = chainrule.train(str(data), out=tmp_path / name, settings=settings)
        losses.append([event["loss"] for event in run.events() if event["event"] == "step"])
    assert losses[0] == losses[1]


def test_words_learn_states_too(tmp_path: Path) -> None:
    taught = short_run("token-classification", tmp_path / "teacher", training__steps=20)
    data, model = tmp_path / "teacher" / "rows" / "rows.jsonl", tmp_path / "teacher" / "model"
    settings = _settings(taught, model, hidden=1.0, attention=1.0, relation=1.0)
    settings |= {"task": "token-classification", "structure.keep_layers": [0]}
    run = chainrule.train(str(data), out=tmp_path / "student", settings=settings)
    losses = [event["loss"] for event in run.events() if event["event"] == "step"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_compress_takes_keys_of_the_students_recipe(
    teacher: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, narrow = tmp_path / "student", narrow_model(tmp_path / "narrow", teacher.path.parent / "model")
    command = ["compress", str(teacher.path), "--distill", str(narrow), "--kept", "0.1", "--epochs", "0.3"]
    command += ["--set", "distillation.hidden=1", "--set", "distillation.attention=1", "--allow-slower", "--json"]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--out", str(out)])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["parity"]["rows"] == 24
    asked = chainrule.read_recipe(out / "resolved.yaml").distillation
    assert (asked.hidden, asked.attention, asked.relation) == (1.0, 1.0, 0.0)


def _refusals() -> dict[str, tuple[Callable[[Path, Run], dict[str, Any]], str, str]]:
    def like(run: Run) -> Path:
        return run.path.parent / "model"

    return {
        "no teacher": (
            lambda folder, run: {"model": str(like(run)), "distillation.teachers": [], "distillation.hidden": 1.0},
            "teachers, as their states are to be learned",
            "none",
        ),
        "two teachers": (
            lambda folder, run: _settings(run, like(run), hidden=1.0, teachers=[str(run.path)] * 2),
            "one teacher whose states are learned",
            "2",
        ),
        "other tokens": (
            lambda folder, run: _settings(run, Path("lstm"), hidden=1.0),
            "a transformers model of one stack of layers that reads tokens",
            "an LSTM",
        ),
        "layers": (
            lambda folder, run: _settings(run, like(run), hidden=1.0, layers=[0, 2]),
            "2 numbers of layers from 0 to 1, one for each of the student's",
            "0, 2",
        ),
        "deeper": (
            lambda folder, run: _settings(run, narrow_model(folder / "deep", like(run), layers=3), hidden=1.0),
            "at most 2 layers, as its teacher has",
            "3",
        ),
        "heads": (
            lambda folder, run: _settings(run, narrow_model(folder / "heads", like(run), heads=4), attention=1.0),
            "2 heads, as its teacher has",
            "4",
        ),
        "relation heads": (
            lambda folder, run: _settings(run, like(run), relation=1.0, relation_heads=5),
            "a number that divides 32 and 32, the widths of student and teacher",
            "5",
        ),
        "longer rows": (
            lambda folder, run: _settings(run, like(run), hidden=1.0) | {"model.max_length": 60},
            "rows of at most 32 tokens, as its teacher reads",
            "60",
        ),
    }


@pytest.mark.parametrize("case", _refusals())
def test_states_that_cannot_be_learned_are_refused(case: str, teacher: Run, tmp_path: Path) -> None:
    make, expected, got = _refusals()[case]
    data = write_csv(tmp_path / "rows.csv", sentences(60))
    if case == "longer rows":
        taught = short_run("text-classification", tmp_path / "short", model__max_length=32, training__steps=2)
        assert taught.artifact.manifest.max_length == 32
    else:
        taught = teacher
    with pytest.raises(RecipeError, match="The student cannot learn") as told:
        chainrule.train(str(data), out=tmp_path / "out", settings=make(tmp_path, taught))
    assert (told.value.problems[0].expected, told.value.problems[0].got) == (expected, got)
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_other_tokens_can_say_but_not_show(teacher: Run, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "rows.csv", sentences(60))
    other = tiny_model(tmp_path / "distilbert", "distilbert", seed=5)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["unheardof"])
    tokenizer.save_pretrained(other)
    model = AutoModel.from_pretrained(other)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(other)
    settings = _settings(teacher, other) | {"training.steps": 1}
    assert chainrule.train(str(data), out=tmp_path / "says", settings=settings).summary["steps"] == 1
    with pytest.raises(RecipeError) as told:
        chainrule.train(str(data), out=tmp_path / "shows", settings=settings | {"distillation.relation": 1.0})
    problem = told.value.problems[0]
    assert problem.expected == "a teacher that reads the student's tokens, where its states are learned"
    assert problem.got == f"another vocabulary: {teacher.path / 'artifact'}"
    assert problem.todo.startswith("Choose another teacher, or learn what it says alone")
