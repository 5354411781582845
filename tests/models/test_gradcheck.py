"""Backward against differences of the forward: right models pass, and what is wrong is named, however deep it sits."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import chainrule
from chainrule.core.recipe import Spec, Structure
from chainrule.core.report import Derivative
from chainrule.errors import ModelError, UserError
from chainrule.kernels import native
from chainrule.kernels import norm as norm_kernel
from chainrule.models.adapters import let_learn
from chainrule.models.catalog import model_folder
from chainrule.models.gradcheck import INSIDE, compare_gradients, responsible
from chainrule.models.load import load_classifier, load_tokenizer
from chainrule.strategies import make_strategy
from chainrule.system.progress import Quiet
from chainrule.testing.catalog import fetched
from chainrule.testing.models import tiny_language_model, tiny_model

pytestmark = pytest.mark.unit

FAMILIES = ["bert", "roberta", "distilbert", "llama", "qwen2"]


@pytest.fixture
def bert(tiny_bert: Path) -> Any:
    """A tiny BERT classifier with dropout."""
    folder = str(tiny_bert)
    return load_classifier(
        folder, load_tokenizer(folder), ["a", "b"], "single_label_classification", Structure(), seed=0
    )


def compared(model: nn.Module, *arguments: torch.Tensor) -> list[Derivative]:
    return compare_gradients(model, arguments, seed=0, display=Quiet())


def outcomes(model: nn.Module, *arguments: torch.Tensor) -> dict[tuple[str, str], str]:
    return {(d.module, d.wrt): d.outcome for d in compared(model, *arguments)}


def the_first_wrong(model: nn.Module) -> Derivative:
    report = chainrule.check_gradients(model)
    assert not report.ok
    return report.wrong[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_models_as_they_come_are_right(family: str, tmp_path: Path) -> None:
    report = chainrule.check_gradients(tiny_model(tmp_path / "model", family))
    assert report.ok, report.text
    assert not report.undecided
    assert report.derivatives > 50
    assert {kind.kind for kind in report.kinds} >= {"Linear", "Embedding"}
    assert max(kind.errors["float64"] or 0.0 for kind in report.kinds) < 1e-8  # of 1e-6 that is allowed
    assert report.text.startswith(f"Backward is right: {report.derivatives} derivatives of {report.modules} modules")


@pytest.mark.parametrize("family", ["bert", "distilbert", "qwen2"])
def test_the_kernels_on_them_are_right(family: str, tmp_path: Path) -> None:
    report = chainrule.check_gradients(tiny_model(tmp_path / "model", family), kernels=True)
    assert report.ok, report.text
    assert not report.undecided
    assert list(report.tolerances) == ["float64", "float32", "bfloat16"]
    assert {derivative.format for derivative in report.worst} == set(report.tolerances)


def test_a_language_model_whose_head_is_its_embeddings() -> None:
    assert chainrule.check_gradients(tiny_language_model(), kernels=True).ok


@pytest.mark.slow
def test_the_catalogs_model_is_right() -> None:
    fetched(model_folder, "minilm")
    report = chainrule.check_gradients("minilm", kernels=True)
    assert report.ok, report.text
    assert report.derivatives > 500


def test_an_artifact_and_its_run(trained: chainrule.Run) -> None:
    from_run, from_folder = (chainrule.check_gradients(model, seed=3) for model in (trained, trained.artifact.path))
    assert from_run.ok, from_run.text
    assert from_folder.kinds == from_run.kinds


def test_adapters_and_nothing_below_them(tiny_bert: Path, bert: Any) -> None:
    options = {"rank": 4, "targets": ["value"], "dropout": 0.1}
    model = make_strategy(Spec(name="lora", options=options)).prepare(bert, print)
    for parameter in model.parameters():
        parameter.requires_grad = False
    let_learn(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    report = chainrule.check_gradients(model, kernels=True)
    assert report.ok, report.text
    own = {d.module for d in compare_gradients(model, batch_of(model), seed=0, display=Quiet()) if d.wrt == "weight"}
    assert own
    assert all(".lora_" in name or "modules_to_save" in name for name in own)


def batch_of(model: Any) -> Mapping[str, Any]:
    ids = torch.tensor([[2, 7, 8, 9, 3], [2, 7, 3, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


# What a custom backward can get wrong. The forward is x · sigmoid(x); its derivative is s + x · s · (1 − s).
class WrongSilu(nn.Module):
    def __init__(self, scale: float = 1.0, *, whole: bool = True) -> None:
        super().__init__()
        self.scale, self.whole = scale, whole

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = _WrongSilu.apply(values, self.scale, self.whole)  # type: ignore[no-untyped-call]
        return result


class _WrongSilu(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: torch.Tensor, scale: float, whole: bool) -> torch.Tensor:
        context.save_for_backward(values)
        context.scale, context.whole = scale, whole
        return values * torch.sigmoid(values)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (values,) = context.saved_tensors
        share = torch.sigmoid(values)
        slope = share + values * share * (1 - share) if context.whole else share
        return gradients[0] * slope * context.scale, None, None


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (WrongSilu(1.01), "it is 1.01 times what it should be"),
        (WrongSilu(0.9999), "it is 0.9999 times what it should be"),
        (WrongSilu(-1.0), "it has the wrong sign"),
        (WrongSilu(0.0), "no gradient arrives: it is cut off"),
        (WrongSilu(float("nan")), "it is not the derivative: a term is wrong, missing or too many"),
        (WrongSilu(whole=False), "it is not the derivative: a term is wrong, missing or too many"),
    ],
    ids=["percent", "ten-thousandth", "sign", "zero", "nan", "term"],
)
def test_what_is_wrong_with_a_backward_is_told(wrong: nn.Module, reason: str) -> None:
    torch.manual_seed(0)
    found = compared(nn.Sequential(nn.Linear(4, 6), wrong, nn.LayerNorm(6), nn.Linear(6, 2)), torch.randn(3, 4))
    assert [(d.module, d.wrt, d.reason) for d in responsible(found)] == [("1", "values", reason)]


def test_a_wrong_backward_deep_in_a_model_is_named(bert: Any) -> None:
    bert.bert.encoder.layer[1].intermediate.intermediate_act_fn = WrongSilu(1.01)
    report = chainrule.check_gradients(bert)
    name, reason = "bert.encoder.layer.1.intermediate.intermediate_act_fn", "it is 1.01 times what it should be"
    assert [(d.module, d.wrt, d.reason) for d in report.wrong] == [(name, "values", reason)]
    assert report.around == ("", "bert", "bert.encoder", "bert.encoder.layer.1", "bert.encoder.layer.1.intermediate")
    assert report.text.startswith(f"Backward is wrong. The first: {name} (WrongSilu), with respect to values: {reason}")
    assert report.text.endswith(" Modules around that are wrong for this reason: 5.")


def test_a_right_custom_backward_passes() -> None:
    assert chainrule.check_gradients(nn.Sequential(nn.Linear(4, 6), WrongSilu()), (torch.randn(3, 4),)).ok


def test_the_first_of_several_in_the_order_of_the_forward(bert: Any) -> None:
    for layer in (1, 0):
        bert.bert.encoder.layer[layer].intermediate.intermediate_act_fn = WrongSilu(2.0)
    report = chainrule.check_gradients(bert)
    assert [d.module.partition(".intermediate")[0] for d in report.wrong] == [
        "bert.encoder.layer.0", "bert.encoder.layer.1",
    ]  # fmt: skip
    assert " Wrong too: bert.encoder.layer.1.intermediate.intermediate_act_fn." in report.text


class HalfLinear(nn.Linear):
    """Its weight gets a gradient only from the first row."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rest = functional.linear(input[1:], self.weight.detach(), self.bias)
        return torch.cat([functional.linear(input[:1], self.weight, self.bias), rest])


def test_a_parameter_that_is_cut_off_is_named(bert: Any) -> None:
    bert.bert.encoder.layer[0].output.dense = HalfLinear(64, 32)
    wrong = the_first_wrong(bert)
    assert (wrong.module, wrong.wrt) == ("bert.encoder.layer.0.output.dense", "weight")


class Hidden(nn.Module):
    """Works on a tensor where autograd does not see it."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            values.mul_(3.0)
        return values


class Overwrites(nn.Module):
    """Changes what backward still needs."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        result = torch.exp(values)
        result.mul_(2.0)
        return result


def test_changes_in_place_that_autograd_does_not_see(bert: Any) -> None:
    bert.bert.encoder.layer[0].intermediate.intermediate_act_fn = Hidden()
    wrong = the_first_wrong(bert)
    assert wrong.module == "bert.encoder.layer.0.intermediate.intermediate_act_fn"
    assert wrong.reason == "it is 0.3333 times what it should be"


def test_a_backward_that_fails(bert: Any) -> None:
    bert.bert.encoder.layer[0].intermediate.intermediate_act_fn = Overwrites()
    wrong = the_first_wrong(bert)
    assert wrong.module == "bert.encoder.layer.0.intermediate.intermediate_act_fn"
    assert wrong.reason.startswith("backward fails: one of the variables needed for gradient computation")


def test_a_branch_that_is_cut_off_between_modules(bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part is right by itself; the module that joins them is the one to name."""

    def without_residual(self: Any, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> Any:
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + input_tensor.detach())

    monkeypatch.setattr(type(bert.bert.encoder.layer[0].output), "forward", without_residual)
    wrong = the_first_wrong(bert)
    assert (wrong.module, wrong.wrt) == ("bert.encoder.layer.0.output", "input_tensor")
    assert wrong.reason == "no gradient arrives: it is cut off"


def test_a_branch_that_begins_at_numbers_without_gradient(bert: Any) -> None:
    """Positions are integers, so what is cut off behind their table shows only when the table is moved."""

    class Detached(nn.Module):
        def __init__(self, table: nn.Module) -> None:
            super().__init__()
            self.table = table

        def forward(self, places: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.table(places).detach()
            return result

    bert.bert.embeddings.position_embeddings = Detached(bert.bert.embeddings.position_embeddings)
    wrong = the_first_wrong(bert)
    assert (wrong.module, wrong.wrt) == ("bert.embeddings.position_embeddings", INSIDE)


def test_a_kernel_with_a_wrong_backward_is_named(bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = norm_kernel._ResidualNorm.backward

    def wrong(context: Any, *gradients: torch.Tensor) -> Any:
        values: Any
        values, *rest = right(context, *gradients)
        return 1.01 * values, *rest

    monkeypatch.setattr(norm_kernel._ResidualNorm, "backward", staticmethod(wrong))
    report = chainrule.check_gradients(bert, kernels=True)
    if not native.available():
        pytest.skip("there is no compiled kernel to get wrong")
    assert not report.ok
    assert {d.format for d in report.wrong} == {"float32"}  # bfloat16 cannot tell a percent
    assert report.wrong[0].module == "bert.embeddings.LayerNorm"
    assert {d.kind for d in report.wrong} == {"LayerNorm", "BertSelfOutput", "BertOutput"}


class Odd(nn.Module):
    """Takes and gives tuples and dicts, calls a module three times, works in place, and holds tied parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4, padding_idx=0)
        self.inner = nn.Linear(4, 4)
        self.square = Named()
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor, factor: torch.Tensor) -> dict[str, Any]:
        values = self.table(ids)
        for _ in range(3):
            values = values + self.drop(self.relu(self.inner(values)))
        parts = self.square({"a": values, "b": (values.exp(), 2)}, factor=factor)
        joined = self.norm((parts[0] + parts[1][0]).flatten(0, 1))
        return {"logits": self.head(joined), "ids": ids, "none": None, "mask": torch.full((2,), -float("inf"))}


class Named(nn.Module):
    def forward(self, parts: dict[str, Any], *, factor: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return parts["a"] * factor, [parts["b"][0].float() * parts["b"][1]]


def test_odd_but_right_modules_pass() -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[1, 2, 0], [3, 4, 5]])
    found = compared(Odd(), ids, torch.randn(4))
    assert {d.outcome for d in found} == {"right"}
    assert {(d.module, d.wrt) for d in found} >= {
        ("", INSIDE),
        ("square", "parts['a']"),
        ("square", "parts['b'][0]"),
        ("table", "weight"),
        ("head", "weight"),
        ("relu", "input"),
    }
    assert sorted({d.call for d in found if d.module == "inner"}) == [1, 2, 3]
    assert not [d for d in found if "factor" in d.wrt]  # nothing trainable lies behind it


def test_a_module_that_is_wrong_only_when_called_again() -> None:
    class Second(nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return values * values.detach() if float(values.detach().sum()) > 30 else values.square()

    first, twice = nn.Linear(4, 4), Second()
    nn.init.constant_(first.weight, 1.0)
    wrong = responsible(compared(nn.Sequential(first, twice, twice), torch.ones(1, 4)))
    assert [(d.module, d.call) for d in wrong] == [("1", 2)]
    assert wrong[0].text.startswith("1 (Second), call 2, with respect to values: it is 0.5 times what it should be")


def test_what_cannot_be_judged_is_told_and_is_not_wrong() -> None:
    class Dice(nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return values * np.random.default_rng().random()

    class Counts(nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            if hasattr(self, "called"):
                raise RuntimeError("only once")
            self.called = True
            return values

    torch.manual_seed(0)
    zero = nn.Linear(3, 3)
    nn.init.zeros_(zero.weight)
    nn.init.zeros_(zero.bias)
    for below, module, reason in (
        (nn.Linear(3, 3), Dice(), "it returns other numbers each time it is called"),
        (zero, nn.ReLU(), "its outputs have a jump or a corner here"),
        (zero, Counts(), "it cannot be called alone: only once"),
    ):
        found = compared(nn.Sequential(below, module), torch.randn(2, 3))
        assert [(d.outcome, d.reason, d.error) for d in found if d.module == "1"] == [("undecided", reason, None)]
        assert not [d for d in found if d.outcome == "wrong"]


def test_float32_inside_a_module_is_no_error() -> None:
    """As the norms of language models do; the differences would be lost in float32."""

    class Narrow(nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return torch.softmax(values.float().to(torch.bfloat16), -1, dtype=torch.float32).type_as(values)

    found = compared(nn.Sequential(nn.Linear(4, 4), Narrow()), torch.randn(3, 4))
    assert all(d.outcome == "right" and (d.error or 0) < 1e-9 for d in found)


def test_the_model_and_the_generators_stay_as_they_were(bert: Any) -> None:
    before = {name: value.clone() for name, value in bert.state_dict().items()}
    bert.eval()
    bert.classifier.weight.requires_grad = False
    torch.manual_seed(5)
    random.seed(5)
    chainrule.check_gradients(bert, kernels=True)
    drawn = float(torch.rand(())), random.random()
    torch.manual_seed(5)
    random.seed(5)
    assert drawn == (float(torch.rand(())), random.random())
    assert all(torch.equal(value, before[name]) for name, value in bert.state_dict().items())
    assert not bert.training
    assert bert.config.use_cache
    assert {p.dtype for p in bert.parameters()} == {torch.float32}
    assert all(p.grad is None for p in bert.parameters())
    assert not any("forward" in module.__dict__ for module in bert.modules())


def test_the_same_seed_gives_the_same_report() -> None:
    torch.manual_seed(0)
    model, ids, factor = Odd(), torch.tensor([[1, 2, 0], [3, 4, 5]]), torch.randn(4)
    first, second, other = (chainrule.check_gradients(model, (ids, factor), seed=seed) for seed in (1, 1, 2))
    assert first == second != other


def test_wrong_input_is_told() -> None:
    linear = nn.Linear(2, 2)
    with pytest.raises(UserError, match="A batch cannot be made up for a Linear") as told:
        chainrule.check_gradients(linear)
    assert told.value.problems[0].todo == "Give them as `batch`."
    with pytest.raises(ModelError, match="The Linear cannot be run"):
        chainrule.check_gradients(linear, (torch.randn(3, 5),))
    for parameter in linear.parameters():
        parameter.requires_grad = False
    with pytest.raises(UserError, match="There is no derivative to compare"):
        chainrule.check_gradients(linear, (torch.randn(3, 2),))
    with pytest.raises(ModelError, match=r"The model '\./nowhere' cannot be used"):
        chainrule.check_gradients("./nowhere")


def test_differences_are_as_exact_as_they_claim() -> None:
    """Of exp, sin and a sharp tanh, where the truth is known, the error is below the doubt."""

    class Known(nn.Module):
        def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
            super().__init__()
            self.function = function
            self.place = nn.Parameter(torch.linspace(-1.0, 2.0, 7, dtype=torch.float64))

        def forward(self) -> torch.Tensor:
            return self.function(self.place)

    for function in (torch.exp, torch.sin, lambda x: torch.tanh(300 * x)):
        (found,) = compare_gradients(Known(function), (), seed=0, display=Quiet())
        assert found.outcome == "right"
        assert found.error is not None
        assert found.error < 1e-7


def test_reports_turn_into_json() -> None:
    document = chainrule.check_gradients(nn.Linear(2, 2), (torch.randn(3, 2),)).as_dict()
    assert (document["ok"], document["model"], document["derivatives"]) == (True, "Linear", 2)
    assert set(document["worst"][0]) == {"module", "kind", "call", "format", "wrt", "error", "outcome", "reason"}
