"""The LSTM against its equations in float64; padding counts nowhere; saved as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

import chainrule
from chainrule.core.recipe import Model, Recipe, Structure
from chainrule.errors import ModelError, RecipeError
from chainrule.models import recurrent, scratch
from chainrule.models.inspect import parts
from chainrule.models.load import load_saved, load_tokenizer
from chainrule.models.lstm import LSTMConfig, LSTMTrunk
from chainrule.models.place import locate
from chainrule.models.save import save_model
from chainrule.tasks import find_task

pytestmark = pytest.mark.unit

LENGTHS = (4, 1, 6)
TEXTS = {"text": ["房间很干净，服务也不错", "太差了", "a", "房间很小，服务很差"]}


def sigmoid(values: np.ndarray) -> np.ndarray:
    return np.array(1 / (1 + np.exp(-values)))


def read(tokens: np.ndarray, layer: Any, *, back: bool) -> np.ndarray:
    """Hochreiter and Schmidhuber (1997) with forget gates (Gers et al., 2000), token by token from one end."""
    into, again, first, second = (value.detach().numpy() for value in layer.parameters())
    state = cell = np.zeros(again.shape[1])
    found = []
    for token in tokens[::-1] if back else tokens:
        inner, forget, new, outer = np.split(into @ token + again @ state + first + second, 4)
        cell = sigmoid(forget) * cell + sigmoid(inner) * np.tanh(new)
        state = sigmoid(outer) * np.tanh(cell)
        found.append(state)
    return np.array(found[::-1] if back else found)


def trunk(*, bidirectional: bool = True, layers: int = 2) -> LSTMTrunk:
    torch.manual_seed(0)
    config = LSTMConfig(20, 5, 6, layers, bidirectional=bidirectional)
    made: LSTMTrunk = LSTMTrunk(config).double().eval()
    return made


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids with rubbish where rows are padded, and their mask."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 20, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = torch.arange(max(LENGTHS)).expand_as(ids) < torch.tensor(LENGTHS)[:, None]
    return ids, mask.long()


@pytest.mark.parametrize("bidirectional", [True, False])
def test_states_are_those_of_the_equations_alone_and_padded(bidirectional: bool) -> None:
    model, (ids, mask) = trunk(bidirectional=bidirectional), padded()
    with torch.no_grad():
        found = model(ids, mask).last_hidden_state.numpy()
        for row, length in enumerate(LENGTHS):
            states = model.embed_tokens(ids[row, :length]).numpy()
            for layer in model.layers:
                onward = read(states, layer.onward, back=False)
                states = np.hstack([onward, read(states, layer.back, back=True)]) if bidirectional else onward
            np.testing.assert_allclose(found[row, :length], states, rtol=1e-10)
            assert not found[row, length:].any()
            alone = model(ids[row : row + 1, :length]).last_hidden_state[0].numpy()
            np.testing.assert_allclose(alone, states, rtol=1e-10)


def test_gradients_and_none_for_padding() -> None:
    (ids, mask), model = padded(), trunk()
    vectors = model.embed_tokens(ids).detach().requires_grad_()

    def states(values: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model(inputs_embeds=values, attention_mask=mask).last_hidden_state
        return found

    assert torch.autograd.gradcheck(states, (vectors,))
    (found,) = torch.autograd.grad(states(vectors).square().sum(), vectors)
    assert not found[mask == 0].any()
    assert found[mask == 1].any(1).all()


def test_fresh_weights() -> None:
    model: Any = trunk()
    for layer in model.layers:
        for gate in layer.back.weight_hh_l0.detach().chunk(4):
            torch.testing.assert_close(gate @ gate.T, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)
        bias = (layer.onward.bias_ih_l0 + layer.onward.bias_hh_l0).tolist()
        assert bias == [0.0] * 3 + [1.0] * 3 + [0.0] * 6
    assert not model.embed_tokens.weight[0].any()
    assert [part.name for part in parts(made())] == ["embeddings", "layer 0", "head"]


def test_inside_autocast_states_are_sums_in_float32() -> None:
    model, (ids, mask) = trunk().float(), padded()
    with torch.no_grad():
        plain = model(ids, mask).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            inside = model(ids, mask).last_hidden_state
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain)


def made(seed: int = 0, structure: Structure | None = None, **options: Any) -> Any:
    tokenizer, chosen = recurrent.tokenizer_of(recurrent.Options(min_count=1, hidden_size=8, **options), TEXTS)
    kind = "single_label_classification"
    return recurrent.make_classifier(chosen, tokenizer, ["x", "y"], kind, structure or Structure(), seed=seed)[0]


def test_a_saved_model_and_its_tokenizer_are_what_they_were(tmp_path: Path) -> None:
    tokenizer, chosen = recurrent.tokenizer_of(recurrent.Options(min_count=1, layers=2, hidden_size=8), TEXTS)
    assert chosen.vocabulary == "character"
    model = recurrent.make_classifier(chosen, tokenizer, ["x", "y"], "", Structure(pooling="attention"), seed=1)[0]
    batch = tokenizer(TEXTS["text"], padding=True, return_tensors="pt")
    assert save_model(tmp_path, model, tokenizer, max_length=8, base="lstm") == ("chainrule",)
    with torch.no_grad():
        before = model.eval()(**batch).logits
        assert torch.equal(load_saved(tmp_path, "classifier", "lstm").eval()(**batch).logits, before)
    plain = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for one in (plain, load_tokenizer(str(tmp_path))):
        assert one(TEXTS["text"])["input_ids"] == tokenizer(TEXTS["text"])["input_ids"]
        assert max(map(len, one(TEXTS["text"], truncation=True)["input_ids"])) == 8


def test_the_seed_decides_the_weights_and_the_structure_the_rest() -> None:
    one, same, other = made(), made(), made(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.lstm.embed_tokens.weight, other.lstm.embed_tokens.weight)
    assert (one.config.hidden_dropout_prob, one.config.chainrule_head) == (0.5, {"pooling": "max", "head": "linear"})
    changed = made(structure=Structure(dropout=0.1, pooling="mean", head="mlp"), bidirectional=False).config
    assert (changed.hidden_dropout_prob, changed.chainrule_head) == (0.1, {"pooling": "mean", "head": "mlp"})


def test_backward_is_the_derivative_of_forward_in_every_module() -> None:
    model = made(layers=2)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 2, 0]])
    report = chainrule.check_gradients(model, {"input_ids": ids, "attention_mask": (ids != 0).long()})
    assert report.ok
    assert not report.undecided
    assert {"LSTM", "LSTMLayer", "Embedding", "PooledHead"} <= {kind.kind for kind in report.kinds}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"hiden_size": 3}, "field 'model.options.hiden_size': expected one of the keys bidirectional, "),
        ({"hidden_size": 3}, "expected an even hidden_size where there are two directions"),
        ({"vocabulary": "byte", "vectors": "v.txt"}, "expected words or characters where there are vectors"),
        ({"vocabulary": "letters"}, "field 'model.options.vocabulary': expected 'auto', 'word', 'character' or 'byte'"),
    ],
)
def test_options_that_there_are_not(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        scratch.options_of(Model(name="lstm", options=options))
    assert caught.value.message == "The options of model 'lstm' are wrong."
    assert expected in str(caught.value)


def test_a_pretrained_model_has_no_options() -> None:
    with pytest.raises(RecipeError) as caught:
        scratch.options_of(Model(name="minilm", options={"layers": 2}))
    assert str(caught.value) == (
        "A pretrained model is as it is.\n  - field 'model.options': expected no options, as this model is pretrained, "
        "got layers. Leave them out; they are for the models 'lstm' and 'convnet'."
    )


def test_what_needs_pretrained_weights_is_refused_with_the_reason() -> None:
    recipe = Recipe.model_validate({"task": "text-generation", "model": "lstm", "strategy": "lora"})
    recipe = recipe.replace({"structure.keep_layers": [0], "structure.dropout": 0.2})
    with pytest.raises(RecipeError) as caught:
        scratch.refuse_misfit(recipe, find_task("text-generation"))
    assert str(caught.value) == (
        "The model 'lstm' is trained from scratch.\n"
        "  - field 'strategy.name': expected full, as nothing of this model is pretrained, got 'lora'. "
        "Leave --strategy out.\n"
        "  - field 'task.name': expected a task with a few numbers a row or a word, got text-generation. "
        "Choose another model.\n"
        "  - field 'structure.keep_layers': expected dropout, pooling, head alone: the others change what is "
        "pretrained, got [0]. Leave it out; model.options say how this model is made."
    )
    scratch.refuse_misfit(recipe.replace({"model.name": "minilm"}), find_task("text-generation"))


def test_what_an_lstm_cannot_be_read_by() -> None:
    with pytest.raises(RecipeError, match="as the first token of an LSTM is none to read a text by, got cls"):
        made(structure=Structure(pooling="cls"))


def test_without_rows_there_is_no_lstm_to_load() -> None:
    with pytest.raises(ModelError, match="expected a model with weights, got one that is made from training rows"):
        locate("lstm")
