"""Students that write: the mathematics against plain torch in float64, and from teacher to student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

import chainrule
from chainrule.api.exporting import rows_of_split
from chainrule.core.artifact import Parity, Run
from chainrule.core.recipe import Distillation
from chainrule.data.batch import IGNORED, Batch, collate
from chainrule.errors import GateError, RecipeError
from chainrule.evaluation.parity import Bound, require
from chainrule.inference.predict import load_predictor
from chainrule.system.assets import cache_folder
from chainrule.system.progress import Quiet
from chainrule.tasks.language_model import NextTokenObjective
from chainrule.testing.data import replies
from chainrule.testing.models import tiny_chat_model, tiny_language_model
from chainrule.training.taught_replies import Likely, TaughtReplies, divergence, listen, place_of

pytestmark = pytest.mark.unit
GENERATOR = torch.Generator().manual_seed(5)
TOKENS = 40


def _said(rows: int, *, kept: int, heat: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A teacher's probabilities (rows, TOKENS), its likeliest tokens and their logarithms."""
    whole = torch.randn(rows, TOKENS, generator=GENERATOR, dtype=torch.float64) * 3 / heat
    logarithms, tokens = whole.log_softmax(-1).topk(kept)
    return whole.softmax(-1), tokens, logarithms


@pytest.mark.parametrize("heat", [1.0, 2.5])
def test_all_tokens_kept_is_the_divergence_of_the_whole(heat: float) -> None:
    teacher, tokens, logarithms = _said(6, kept=TOKENS, heat=heat)
    student = torch.randn(6, TOKENS, generator=GENERATOR, dtype=torch.float64)
    asked = student.div(heat).log_softmax(-1)
    expected = heat**2 * (teacher * (teacher.log() - asked)).sum(-1)
    torch.testing.assert_close(divergence(student, tokens, logarithms, heat), expected, rtol=1e-6, atol=1e-6)


def test_the_rest_is_one_token_more() -> None:
    """Against the formula with sums of probabilities, below that of the whole, its gradient by differences."""
    teacher, tokens, logarithms = _said(6, kept=5, heat=1.0)
    student = torch.randn(6, TOKENS, generator=GENERATOR, dtype=torch.float64)
    own = student.softmax(-1)
    p = torch.cat([teacher.gather(1, tokens), 1 - teacher.gather(1, tokens).sum(1, keepdim=True)], 1)
    q = torch.cat([own.gather(1, tokens), 1 - own.gather(1, tokens).sum(1, keepdim=True)], 1)
    found = divergence(student, tokens, logarithms, 1.0)
    torch.testing.assert_close(found, (p * (p.log() - q.log())).sum(-1), rtol=1e-9, atol=1e-9)
    assert bool((found <= (teacher * (teacher.log() - own.log())).sum(-1)).all())
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: divergence(x, tokens, logarithms, 1.7), (student,))


def test_a_batch_against_the_formula() -> None:
    """Rows in another order than they are kept, padded, in pieces of three positions; the gradient of every weight."""
    torch.manual_seed(0)
    model: Any = tiny_language_model(TOKENS, positions=16, seed=1).double().eval()
    ids = torch.randint(0, TOKENS, (3, 9), generator=GENERATOR)
    mask = torch.arange(9)[None, :] < torch.tensor([9, 6, 4])[:, None]
    targets = torch.where(mask & (torch.arange(9) > 1)[None, :], ids, IGNORED)
    rows, counts = np.array([2, 0, 1]), [4, 2, 7]  # of rows 0, 1 and 2 as they are kept
    starts = np.concatenate([[0], np.cumsum(counts)])
    _, tokens, logarithms = _said(13, kept=8, heat=2.0)
    places = np.zeros(13, place_of(8))
    places["token"], places["logarithm"] = tokens.numpy(), logarithms.numpy()
    options = Distillation(weight=0.6, temperature=2.0)
    made = TaughtReplies(NextTokenObjective(chunk=3, label_smoothing=0.1), options, Likely(places, starts))
    batch = Batch({"input_ids": ids, "attention_mask": mask.long()}, targets, rows, int(mask.sum()))
    total, count = made.accumulate(model, batch)
    grown = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    logits = model(**batch.inputs, use_cache=False).logits[:, :-1][targets[:, 1:] != IGNORED]
    order = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])
    kept = torch.from_numpy(places["logarithm"].astype(np.float64))[order]
    wanted = targets[:, 1:][targets[:, 1:] != IGNORED]
    own = functional.cross_entropy(logits, wanted, reduction="sum", label_smoothing=0.1)
    expected = 0.4 * own + 0.6 * divergence(logits, tokens[order], kept, 2.0).sum()
    expected.backward()  # type: ignore[no-untyped-call]
    assert count == 13
    assert total.item() == pytest.approx(expected.item(), rel=1e-9)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(grown[name], parameter.grad, rtol=1e-6, atol=1e-8)


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replies(tmp_path_factory.mktemp("talks"))


ALWAYS: dict[str, Any] = {"task": "text-generation", "training.precision": "float32", "training.threads": 1}


@pytest.fixture(scope="module")
def teacher(talks: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("teacher")
    settings = ALWAYS | {"model": str(tiny_chat_model(folder / "llama")), "strategy": "full", "training.epochs": 12}
    return chainrule.train(str(talks), out=folder / "run", settings=settings | {"optimizer.learning_rate": 1e-2})


def test_a_teacher_has_nothing_to_teach_itself(teacher: Run, talks: Path) -> None:
    """What is kept of each place is what the same model says there, in whatever order and company rows come."""
    predictor = load_predictor(teacher.artifact, device="cpu", precision="float32")
    encoded = rows_of_split(predictor, str(talks), "validation").encoded.take(np.arange(12))
    objective = NextTokenObjective()
    known = listen(predictor, encoded, objective, 1.0, Quiet())
    asked = TaughtReplies(objective, Distillation(weight=1.0, temperature=1.0), known)
    for rows in (np.array([0]), np.array([7, 0, 11]), np.arange(12)):
        batch = collate(encoded, rows, pad_id=0, left=False, device=torch.device("cpu"))
        total, count = asked.accumulate(predictor.forward.model, batch)
        assert abs(float(total)) / count < 1e-4  # logarithms have sixteen bits
    before = [path.stat().st_mtime_ns for path in (cache_folder() / "teachers").iterdir()]
    again = listen(predictor, encoded, objective, 1.0, Quiet())
    assert np.array_equal(again.places, known.places)
    assert len(list((cache_folder() / "teachers").iterdir())) == len(before)


@pytest.mark.parametrize("packing", [False, True])
def test_a_student_that_writes(packing: bool, teacher: Run, talks: Path, tmp_path: Path) -> None:
    """One of two layers; it learns, is judged by the loss of the replies, and is a model of transformers."""
    settings = {"optimizer.learning_rate": 1e-2, "training.packing": packing}
    limits: Any = {"kept": 0.3, "allow_slower": True, "epochs": 12, "settings": settings}
    run, done = chainrule.distill(teacher, "self:1", tmp_path / "student", data=str(talks), **limits)
    losses = [event["loss"] for event in map(json.loads, run.path.joinpath("events.jsonl").read_text().splitlines())
              if event.get("event", event.get("type")) == "step"]  # fmt: skip
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert done.parity is not None
    assert done.parity.metric == "loss"
    model = AutoModelForCausalLM.from_pretrained(run.artifact.path)
    assert model.config.num_hidden_layers == 1


def test_a_student_whose_loss_is_too_high_is_told() -> None:
    measured: dict[str, Any] = {"metric": "loss", "before": 1.5, "difference": -0.2, "low": -0.3, "high": -0.1}
    parity = Parity(rows=40, data="talks", distance=9.0, largest=9.0, after=1.7, **measured)
    require(parity, Bound(kept=0.88), "compress --distill self:1")
    with pytest.raises(GateError) as caught:
        require(parity, Bound(kept=0.9), "compress --distill self:1")
    (problem,) = caught.value.problems
    assert (problem.expected, problem.got) == ("loss of at most 1.6667, 1.5000 divided by 0.9", "1.7000")
    assert problem.todo == "Take a larger student, train it for longer, or allow more: --kept."


def test_what_a_student_that_writes_cannot_learn_is_refused(teacher: Run, talks: Path, tmp_path: Path) -> None:
    def refused(**changes: Any) -> str:
        model = {"model": str(teacher.artifact.path), "distillation.teachers": [str(teacher.path)]}
        with pytest.raises(RecipeError) as caught:
            chainrule.train(str(talks), out=tmp_path / "run", settings=ALWAYS | model | changes)
        (problem,) = caught.value.problems
        return f"{problem.expected}: {problem.got}"

    both = {"distillation.teachers": [str(teacher.path)] * 2}
    alone = "one teacher, and what it says alone, for a model that writes"
    assert refused(**both) == f"{alone}: 2 teachers"
    assert refused(**{"distillation.hidden": 1.0}) == f"{alone}: states, too"
    template = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}[SEP]{% endif %}{% endfor %}"
    other = tiny_chat_model(tmp_path / "other", template=template)
    said = refused(model=str(other))
    assert said.startswith("a teacher with the student's chat template: another template: ")
