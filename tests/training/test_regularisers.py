"""Every regulariser against its formula, by torch's own differentiation in float64, and in micro-batches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import chainrule
from chainrule.core.recipe import Spec, Structure
from chainrule.core.task import Objective
from chainrule.data.batch import Batch, collate
from chainrule.data.encode import Encoded, encode
from chainrule.errors import RecipeError
from chainrule.models.accelerate import accelerate
from chainrule.models.load import is_pretrained, load_classifier, load_tokenizer
from chainrule.strategies import make_strategy
from chainrule.tasks.language_model import NextTokenObjective
from chainrule.tasks.objectives import class_objective
from chainrule.testing.data import sentences
from chainrule.testing.models import tiny_chat_model
from chainrule.training.regularisers import REGULARISERS, regularised
from chainrule.training.regularisers.mixout import Mixout
from chainrule.training.regularisers.mixout import Options as MixoutOptions
from chainrule.training.regularisers.rounding import rounded_input, rounded_weight

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")
OPTIONS: dict[str, dict[str, Any]] = {
    "r-drop": {"alpha": 0.7},
    "fgm": {"epsilon": 0.5},
    "mixout": {"probability": 0.5},
    "rounding": {"bits": 8},
    "l1": {"strength": 0.01},
    "l2": {"strength": 0.02},
    "l2-sp": {"strength": 0.03},
}
OF_A_BATCH = {"mixout", "rounding"}  # masks are drawn, and ranges taken, for every micro-batch
PENALTIES = ("l1", "l2", "l2-sp")


@pytest.fixture(scope="module")
def tokenizer(tiny_bert: Path) -> Any:
    return load_tokenizer(str(tiny_bert))


@pytest.fixture(scope="module")
def rows(tokenizer: Any) -> Encoded:
    made = sentences(12)
    targets = np.array([row["label"] == "positive" for row in made], dtype=np.int64)
    return encode(tokenizer, {"text": [row["text"] for row in made]}, targets, 64)


@pytest.fixture
def model(tiny_bert: Path, tokenizer: Any) -> Any:
    """In float64, with dropout that is off."""
    structure = Structure(dropout=0.2, attention_dropout=0.0)
    loaded = load_classifier(str(tiny_bert), tokenizer, ["a", "b"], "single_label_classification", structure, seed=0)
    return loaded.double().eval()


def batch_of(rows: Encoded, places: np.ndarray) -> Batch:
    return collate(rows, places, pad_id=0, left=False, device=CPU)


def base(rows: Encoded) -> Objective:
    return class_objective(Spec(name="default"), np.asarray(rows.targets))


def names_of(model: Any) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def around(name: str, model: Any, rows: Encoded) -> Objective:
    return regularised(base(rows), {name: OPTIONS[name]}, model, names_of(model))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.allclose(value, expected[name], atol=tolerance), name


def moved(model: Any) -> Any:
    """The model a little away from its start, as after some steps."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def mean_loss(model: Any, batch: Batch, weights: dict[str, torch.Tensor], **inputs: torch.Tensor) -> torch.Tensor:
    assert batch.targets is not None
    logits = torch.func.functional_call(model, weights, (), {**batch.inputs, **inputs}).logits
    return functional.cross_entropy(logits.float(), batch.targets)


@pytest.mark.parametrize("name", sorted(set(REGULARISERS) - OF_A_BATCH))
@pytest.mark.parametrize("micro", [1, 5])
def test_micro_batches_give_what_the_whole_batch_gives(name: str, micro: int, model: Any, rows: Encoded) -> None:
    objective = around(name, moved(model), rows)
    whole, count = objective.accumulate(model, batch_of(rows, np.arange(12)))
    expected = gradients(model)
    total, counted = 0.0, 0
    for start in range(0, 12, micro):
        part, part_count = objective.accumulate(model, batch_of(rows, np.arange(start, min(start + micro, 12))))
        total, counted = total + float(part), counted + part_count
    assert (count, counted) == (12, 12)
    assert total == pytest.approx(float(whole), rel=1e-6)
    close(gradients(model), expected, 1e-5)  # logits are float32


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_is_its_formula(name: str, model: Any, rows: Encoded) -> None:
    """Beside the mean loss, in the units of the mean loss; matrices alone pay."""
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    objective, batch = around(name, model, rows), batch_of(rows, np.arange(8))
    moved(model)
    loss, count = objective.accumulate(model, batch)
    found = gradients(model)
    weights = {key: value.detach().clone().requires_grad_() for key, value in model.named_parameters()}
    penalty = torch.zeros((), dtype=torch.float64)
    for key, value in weights.items():
        if value.ndim >= 2:
            fresh = key == "classifier.weight"
            distance = value if name != "l2-sp" or fresh else value - start[key]
            penalty = penalty + (value.abs().sum() if name == "l1" else distance.square().sum() / 2)
    expected = mean_loss(model, batch, weights) + OPTIONS[name]["strength"] * penalty
    expected.backward()
    assert float(loss) / count == pytest.approx(expected.item(), rel=1e-6)
    mean = {key: value / count for key, value in found.items()}
    close(mean, {key: value.grad for key, value in weights.items() if value.grad is not None}, 1e-6)


def test_parameters_that_are_not_trained_pay_nothing(model: Any, rows: Encoded) -> None:
    model.bert.requires_grad_(False)
    objective = regularised(base(rows), {"l2": {"strength": 1.0}}, model, {"classifier.weight", "classifier.bias"})
    objective.accumulate(model, batch_of(rows, np.arange(4)))
    assert set(gradients(model)) == {"classifier.weight", "classifier.bias"}


class Drifting(nn.Module):
    """Logits that depend on a row's place in the batch, as another dropout mask for every row would make them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4, dtype=torch.float64)
        self.dropout = nn.Dropout(0.1)
        self.scale = torch.randn(16, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def forward(self, x: torch.Tensor) -> Any:
        class Output:
            logits = self.layer(x * (1 + 0.3 * self.scale[: len(x)]))

        return Output


def test_r_drop_is_equation_4_with_the_mean_of_both_losses() -> None:
    torch.manual_seed(0)
    model = Drifting()
    targets, inputs = torch.randint(0, 4, (8,)), {"x": torch.randn(8, 3, dtype=torch.float64)}
    objective = regularised(
        class_objective(Spec(name="default"), targets.numpy()), {"r-drop": {"alpha": 0.7}}, model, ()
    )
    loss, count = objective.accumulate(model, Batch(inputs, targets, np.arange(8), 8))
    found = gradients(model)
    first, second = model(torch.cat([inputs["x"], inputs["x"]])).logits.float().chunk(2)
    logs = first.log_softmax(-1), second.log_softmax(-1)
    forth = functional.kl_div(logs[0], logs[1], reduction="sum", log_target=True)
    back = functional.kl_div(logs[1], logs[0], reduction="sum", log_target=True)
    divergence = forth + back
    nll = functional.nll_loss(logs[0], targets, reduction="sum") + functional.nll_loss(
        logs[1], targets, reduction="sum"
    )
    expected = 0.5 * nll + 0.7 * 0.5 * divergence
    expected.backward()  # type: ignore[no-untyped-call]
    assert count == 8
    assert float(loss) == pytest.approx(expected.item(), rel=1e-6)
    close(found, gradients(model), 1e-5)
    assert divergence.item() > 0.1


@pytest.mark.parametrize("native", [True, False])
def test_r_drop_draws_two_masks_and_the_same_two_from_the_same_seed(native: bool, model: Any, rows: Encoded) -> None:
    model = model.float()
    if native:
        accelerate(model, CPU)
    batch, plain = batch_of(rows, np.arange(4)), base(rows)
    found = []
    for seed, alpha in ((0, 1.0), (0, 1.0), (1, 1.0), (0, 1e-12)):
        objective = regularised(plain, {"r-drop": {"alpha": alpha}}, model.train(), names_of(model))
        torch.manual_seed(seed)
        found.append(float(objective.accumulate(model, batch)[0]))
    assert found[0] == found[1] != found[2]
    assert found[0] > found[3] + 1e-3  # the two answers differ


def test_r_drop_changes_nothing_where_both_answers_agree(model: Any, rows: Encoded) -> None:
    batch = batch_of(rows, np.arange(6))
    around("r-drop", model, rows).accumulate(model, batch)
    found = gradients(model)
    base(rows).accumulate(model, batch)
    close(found, gradients(model), 1e-5)


def test_fgm_moves_each_row_along_its_own_gradient(model: Any, rows: Encoded) -> None:
    batch, table = batch_of(rows, np.arange(5)), model.get_input_embeddings().weight
    before = table.detach().clone()
    loss, count = around("fgm", model, rows).accumulate(model, batch)
    found = gradients(model)
    assert torch.equal(table, before)
    weights = dict(model.named_parameters())
    inputs = {key: value for key, value in batch.inputs.items() if key != "input_ids"}
    bare = Batch(inputs, batch.targets, batch.rows, batch.tokens)
    words = functional.embedding(batch.inputs["input_ids"], table)
    clean = 5 * mean_loss(model, bare, weights, inputs_embeds=words)
    (slope,) = torch.autograd.grad(clean, words, retain_graph=True)
    lengths = slope.flatten(1).norm(dim=1)
    shift = 0.5 * slope / lengths[:, None, None]
    assert torch.allclose(shift.flatten(1).norm(dim=1), torch.full((5,), 0.5, dtype=torch.float64))
    dirty = 5 * mean_loss(model, bare, weights, inputs_embeds=words + shift)
    (clean + dirty).backward()  # type: ignore[no-untyped-call]
    assert dirty.item() > clean.item()
    assert count == 5
    assert float(loss) == pytest.approx((clean + dirty).item(), rel=1e-6)
    close(found, gradients(model), 1e-6)


def test_fgm_needs_no_trained_table(model: Any, rows: Encoded) -> None:
    model.get_input_embeddings().requires_grad_(False)
    batch, objective = batch_of(rows, np.arange(5)), around("fgm", model, rows)
    loss, _ = objective.accumulate(model, batch)
    frozen = gradients(model)
    model.get_input_embeddings().requires_grad_(True)
    again, _ = objective.accumulate(model, batch)
    trained = gradients(model)
    assert float(loss) == float(again)
    assert trained.keys() - frozen.keys() == {"bert.embeddings.word_embeddings.weight"}
    close(frozen, {name: trained[name] for name in frozen})


def test_mixout_is_its_formula_and_differentiates_through_it(model: Any, rows: Encoded) -> None:
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    objective, batch = around("mixout", model, rows), batch_of(rows, np.arange(6))
    assert isinstance(objective, Mixout)
    assert all(".weight" in key and start[key].ndim == 2 for key in objective.pretrained)
    assert not any("embeddings" in key or "classifier" in key for key in objective.pretrained)
    own = {key: value.detach().clone() for key, value in moved(model).named_parameters()}
    base(rows).accumulate(model, batch)
    earlier = gradients(model)
    base(rows).accumulate(model, batch)  # what an earlier micro-batch has left
    torch.manual_seed(5)
    loss, _ = objective.accumulate(model, batch)
    found = gradients(model)
    assert all(torch.equal(value, own[key]) for key, value in model.named_parameters())
    torch.manual_seed(5)
    keeps = {key: objective._keep(value) for key, value in model.named_parameters() if key in objective.pretrained}
    weights = {key: value.requires_grad_() for key, value in own.items()}
    mixed = {
        key: start[key] + keeps[key] * (value - start[key]) if key in keeps else value for key, value in weights.items()
    }
    expected = 6 * mean_loss(model, batch, mixed)
    expected.backward()  # type: ignore[no-untyped-call]
    assert float(loss) == pytest.approx(expected.item(), rel=1e-6)
    close(
        {key: value - earlier[key] for key, value in found.items()},
        {key: value.grad for key, value in weights.items() if value.grad is not None},
        1e-5,
    )


def test_mixout_keeps_the_expectation(model: Any, rows: Encoded) -> None:
    objective = Mixout(MixoutOptions(probability=0.7), base(rows), model, names_of(model))
    torch.manual_seed(0)
    kept = objective._keep(torch.zeros(1000, 100, dtype=torch.float64))
    share = round(0.7 * 256) / 256
    assert torch.allclose(kept[kept > 0], torch.tensor(1 / (1 - share), dtype=torch.float64))
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)


def test_rounding_is_its_formula_and_gradients_pass_through_it(model: Any, rows: Encoded) -> None:
    """w + stop(rounded(w) - w), and inputs alike: the gradient with respect to w is that at the rounded weight."""
    objective, batch = around("rounding", moved(model), rows), batch_of(rows, np.arange(6))
    own = {key: value.detach().clone() for key, value in model.named_parameters()}
    loss, _ = objective.accumulate(model, batch)
    found = gradients(model)
    assert all(torch.equal(value, own[key]) for key, value in model.named_parameters())
    weights = {key: value.clone().requires_grad_() for key, value in own.items()}
    linear = {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    in_layers = {key for key in linear if ".layer." in key}
    mixed = {
        key: value + (fake(value, 1) - value).detach() if key in in_layers else value for key, value in weights.items()
    }
    hooks = [
        part.register_forward_pre_hook(lambda _, given: (given[0] + (fake_tensor(given[0]) - given[0]).detach(),))
        for name, part in model.named_modules()
        if f"{name}.weight" in in_layers
    ]
    expected = 6 * mean_loss(model, batch, mixed)
    expected.backward()  # type: ignore[no-untyped-call]
    for hook in hooks:
        hook.remove()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-6)
    assert len(in_layers) >= 12
    wanted = {key: value.grad for key, value in weights.items() if value.grad is not None}
    close(found, wanted, 1e-4)  # a step of an input more or less, where float32 scales round otherwise
    base(rows).accumulate(model, batch)
    plain = gradients(model)
    assert any(not torch.allclose(value, plain[key], atol=1e-5) for key, value in found.items())


def fake(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """torch's own fake quantisation, in float32: symmetric, by output."""
    wide = weight.detach().float()
    scale = wide.abs().amax(axis) / 127
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(wide, scale, zeros, 0, -127, 127).double()


def fake_tensor(values: torch.Tensor) -> torch.Tensor:
    values = values.detach()
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = (high - low) / 255
    return torch.fake_quantize_per_tensor_affine(values.float(), scale, round(-low / scale), 0, 255).double()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounded_numbers_are_the_nearest_steps(bits: int) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 40, generator=draw, dtype=torch.float64)
    weight[3] = 0
    found = rounded_weight(weight, bits)
    step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((found - weight).abs() <= step / 2 + 1e-12).all()
    assert all(len(set(row.tolist())) <= 2**bits - 1 for row in found)
    values = torch.rand(7, 30, generator=draw, dtype=torch.float64) * 3 - 1
    close_by = rounded_input(values, bits)
    assert len(set(close_by.flatten().tolist())) <= 2**bits
    assert float((close_by - values).abs().max()) <= float((values.max() - values.min()) / (2**bits - 1)) + 1e-12
    assert float(rounded_input(torch.zeros(3), bits).abs().max()) == 0


def test_inputs_are_rounded_where_they_can_be_reached(model: Any, rows: Encoded) -> None:
    model = model.float()
    accelerate(model, CPU)
    with pytest.raises(RecipeError, match="The inputs of layers cannot be rounded"):
        regularised(base(rows), {"rounding": {}}, model, names_of(model))
    assert regularised(base(rows), {"rounding": {"inputs": False}}, model, names_of(model))
    with pytest.raises(RecipeError, match="Nothing would be rounded"):
        regularised(base(rows), {"rounding": {"inputs": False}}, model, {"classifier.weight"})


def test_copies_in_bfloat16_follow_the_mixed_weights_and_the_restored_ones(model: Any, rows: Encoded) -> None:
    model = model.float()
    accelerate(model, CPU)
    objective, batch = around("mixout", model, rows), batch_of(rows, np.arange(6))
    moved(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = base(rows).accumulate(model, batch)[0]
        mixed = objective.accumulate(model, batch)[0]
        after = base(rows).accumulate(model, batch)[0]
    assert float(before) == float(after)
    assert abs(float(before) - float(mixed)) > 1e-3


def test_weights_come_back_where_a_mixed_forward_fails(model: Any, rows: Encoded) -> None:
    class Failing:
        def accumulate(self, model: Any, batch: Any) -> tuple[Any, int]:
            raise MemoryError

    objective = Mixout(MixoutOptions(), Failing(), model, names_of(model))
    own = copy.deepcopy(moved(model).state_dict())
    with pytest.raises(MemoryError):
        objective.accumulate(model, batch_of(rows, np.arange(2)))
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())


def test_the_trunk_is_pretrained_and_the_head_is_not(model: Any) -> None:
    fresh = {name for name, parameter in model.named_parameters() if not is_pretrained(parameter)}
    assert fresh == {"classifier.weight", "classifier.bias"}


def test_penalties_go_around_what_changes_the_forward(model: Any, rows: Encoded) -> None:
    """Whatever the order in the recipe: FGM would count a penalty inside it twice."""
    both = [{"l2": OPTIONS["l2"], "fgm": OPTIONS["fgm"]}, {"fgm": OPTIONS["fgm"], "l2": OPTIONS["l2"]}]
    batch = batch_of(rows, np.arange(4))
    losses = [float(regularised(base(rows), each, model, names_of(model)).accumulate(model, batch)[0]) for each in both]
    alone = float(around("fgm", model, rows).accumulate(model, batch)[0])
    squares = sum(float(p.detach().square().sum()) / 2 for p in model.parameters() if p.ndim >= 2)
    assert losses[0] == losses[1] == pytest.approx(alone + 4 * 0.02 * squares, rel=1e-6)


def refusal(objective: Objective, name: str, model: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        regularised(objective, {name: OPTIONS.get(name, {})}, model, names_of(model))
    return str(caught.value.problems[0])


def test_what_cannot_be_used_is_refused(tiny_bert: Path, tokenizer: Any, rows: Encoded, model: Any) -> None:
    assert refusal(NextTokenObjective(), "r-drop", model) == (
        "field 'regularisers.r-drop': expected a task with a few logits a row or a word, got a task without these. "
        "Leave r-drop out."
    )
    still = Structure(dropout=0.0, attention_dropout=0.0)
    plain = load_classifier(str(tiny_bert), tokenizer, ["a", "b"], "single_label_classification", still, seed=0)
    assert refusal(base(rows), "r-drop", plain) == (
        "field 'regularisers.r-drop': expected a model with dropout, so that two answers differ, got a model without. "
        "Set structure.dropout or structure.attention_dropout, or leave r-drop out."
    )
    adapted = make_strategy(Spec(name="lora")).prepare(plain, lambda line: None)
    trained = {name for name in names_of(adapted) if "lora" in name}
    with pytest.raises(RecipeError) as caught:
        regularised(base(rows), {"mixout": {}}, adapted, trained)
    assert str(caught.value.problems[0]) == (
        "field 'regularisers.mixout': expected a strategy that trains pretrained linear layers, such as full or "
        "partial, got one that trains none. Choose another strategy, or leave mixout out."
    )
    assert refusal(base(rows), "r_drop", model) == (
        "field 'regularisers': expected one of r-drop, fgm, mixout, rounding, l1, l2, l2-sp, got 'r_drop'. Choose one "
        "of the names; `chainrule show regularisers` describes them."
    )
    with pytest.raises(RecipeError) as caught:
        regularised(base(rows), {"l2-sp": {}}, model, ())
    assert str(caught.value.problems[0]) == (
        "field 'regularisers.l2-sp.strength': expected a value, got nothing. Set 'regularisers.l2-sp.strength' in the "
        "recipe or by its flag."
    )


def test_fgm_on_packed_rows_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "talks.csv"
    data.write_text("prompt,response\n" + "".join(f"film {n},good {n}\n" for n in range(40)), encoding="utf-8")
    settings: dict[str, Any] = {"task": "text-generation", "model": str(tiny_chat_model(tmp_path / "llama"))}
    settings |= {"training.packing": True, "regularisers": "fgm"}
    with pytest.raises(RecipeError, match="FGM cannot be used on packed rows") as caught:
        chainrule.train(str(data), out=tmp_path / "run", settings=settings)
    assert str(caught.value.problems[0]) == (
        "field 'regularisers.fgm': expected rows apart, as each is moved by itself, got training.packing. "
        "Leave fgm out, or training.packing."
    )
    assert not (tmp_path / "run").exists()


def test_fgm_reads_words_where_layers_are_frozen(tiny_bert: Path, reviews: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "model": str(tiny_bert),
        "strategy": "head",
        "training.steps": 16,
        "training.threads": 1,
    }
    settings |= {"training.precision": "float32", "regularisers": "fgm", "training.averaging": "swa"}
    run = chainrule.train(str(reviews), out=tmp_path / "run", settings=settings)
    resolved = chainrule.read_recipe(run.path / "resolved.yaml")
    assert not resolved.training.trunk_cache
    assert resolved.regularisers == {"fgm": {"epsilon": 1.0}}
    assert resolved.training.averaging is not None
    assert resolved.training.averaging.options == {"start": 0.75}
