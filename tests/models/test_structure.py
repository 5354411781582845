"""Changed models: what they compute, that they load again, and what is refused before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    Gemma3TextConfig,
    ModernBertConfig,
    Qwen2Config,
    T5Config,
)

from chainrule.core.recipe import Structure
from chainrule.errors import ModelError, RecipeError, UserError
from chainrule.models.accelerate import accelerate, restore
from chainrule.models.inspect import anatomy, layer_stack, output_layer
from chainrule.models.load import load_classifier, load_language_model, load_saved, load_tokenizer
from chainrule.models.save import save_model
from chainrule.testing.models import tiny_chat_model, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.unit

FAMILIES = ("bert", "roberta", "distilbert", "llama")
LABELS, KIND, CPU = ["a", "b", "c"], "single_label_classification", torch.device("cpu")
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
CHANGES: dict[str, dict[str, Any]] = {
    "keep": {"keep_layers": [1]},
    "drop": {"drop_layers": [1]},
    "reinitialise": {"reinitialise_top": 1},
    "insert": {"insert_blocks": [0, 1, 1]},
    "activation": {"activation": "relu"},
    "tokens": {"add_tokens": ["goodfilm", "Zebra"]},
    "all-layers": {"keep_layers": "1", "reinitialise_top": 1, "insert_blocks": [1]},
    **{f"pooling-{name}": {"pooling": name} for name in ("cls", "last", "mean", "max", "attention")},
    **{f"head-{name}": {"head": name} for name in ("linear", "mlp", "cnn")},
    "all": {"drop_layers": [0], "add_tokens": ["goodfilm"], "pooling": "attention", "head": "cnn"},
}
HEADS = ("classifier", "pooler", "score", "model.norm")
# What transformers' own classifiers of a family read and how, so that its classes hold these changes, too.
OWN = {"bert": ("pooling-cls", "head-mlp"), "llama": ("pooling-last", "head-linear")}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "bert")


def load(folder: Path, seed: int = 3, **changes: Any) -> Any:
    structure = Structure(**changes)
    tokenizer = load_tokenizer(str(folder), structure.add_tokens)
    return load_classifier(str(folder), tokenizer, LABELS, KIND, structure, seed=seed).eval()


def made(folder: Path, config: Any) -> Path:
    """The folder of a random model of any family."""
    tokenizer = tiny_tokenizer(64)
    config.vocab_size = len(tokenizer)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def batch(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Two rows, the second padded; and the second alone."""
    pad = model.config.pad_token_id
    ids = torch.tensor([[2, 7, 8, 9, 4, 5], [2, 7, 6, pad, pad, pad]])
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": mask}, {"input_ids": ids[1:, :3]}


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found


def refused(folder: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, **changes)
    [problem] = caught.value.problems
    return str(problem)


@pytest.mark.contract
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_the_same_saved_padded_and_with_the_kernels(
    change: str, folder: Path, tmp_path: Path
) -> None:
    if folder.name == "llama" and change == "pooling-cls":
        assert "the first token of a decoder sees no other, got cls" in refused(folder, **CHANGES[change])
        return
    model = load(folder, **CHANGES[change])
    together, alone = batch(model)
    before = logits(model, together)
    assert torch.allclose(before[1:], logits(model, alone), atol=1e-4)
    accelerate(model, CPU)
    assert torch.allclose(logits(model, together), before, atol=1e-4)
    restore(model)
    parts = anatomy(model)
    roles = [*parts.embeddings, *(name for layer in parts.layers for name in layer), *parts.head]
    assert sorted(roles) == sorted(name for name, _ in model.named_parameters())
    assert len(parts.layers) == model.config.num_hidden_layers
    assert all(any(part in name for part in HEADS) for name in parts.head)
    assert output_layer(model).out_features == len(LABELS)
    tokenizer = load_tokenizer(str(folder), Structure(**CHANGES[change]).add_tokens)
    loads_in = save_model(tmp_path, model, tokenizer, max_length=64, base="")
    assert torch.equal(logits(load_saved(tmp_path, "classifier", "").eval(), together), before)
    own = OWN["llama" if folder.name == "llama" else "bert"]
    is_ours = change == "all" or (change.startswith(("pooling", "head")) and change not in own)
    assert loads_in == (("chainrule",) if is_ours else ("transformers",))
    if is_ours:
        trunk = AutoModel.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            states = [part(**together).last_hidden_state for part in (trunk, model.base_model)]
        assert torch.equal(*states)
    else:
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        assert torch.equal(logits(plain, together), before)
    again = load_tokenizer(str(tmp_path))("goodfilm zebra")["input_ids"]
    assert again == tokenizer("goodfilm zebra")["input_ids"]


def test_layers_that_are_kept_are_those_that_were_named(folder: Path) -> None:
    whole, kept, dropped = load(folder), load(folder, keep_layers=[1]), load(folder, drop_layers="0")
    wanted = layer_stack(whole)[1].state_dict()
    for model in (kept, dropped):
        [layer] = layer_stack(model)
        assert all(torch.equal(value, wanted[name]) for name, value in layer.state_dict().items())


def test_the_top_is_drawn_anew_by_the_seed_and_the_rest_is_kept(folder: Path) -> None:
    whole = dict(load(folder).named_parameters())
    models = [dict(load(folder, seed, reinitialise_top=1).named_parameters()) for seed in (3, 3, 4)]
    parts = anatomy(load(folder))
    assert all(torch.equal(models[0][name], models[1][name]) for name in whole)
    for name in [*parts.embeddings, *parts.layers[0]]:
        assert torch.equal(models[0][name], whole[name])
    for name in [*parts.layers[1], *parts.head]:
        if whole[name].ndim >= 2:
            assert not torch.equal(models[0][name], whole[name])
            assert not torch.equal(models[0][name], models[2][name])
            assert float(models[0][name].detach().std()) == pytest.approx(0.2, rel=0.25)  # initializer_range
        elif "norm" in name.lower():
            assert (models[0][name] == float(name.endswith("weight"))).all()
        else:
            assert not models[0][name].any()


def test_an_inserted_block_changes_nothing_until_it_is_trained(folder: Path) -> None:
    plain, changed = load(folder), load(folder, insert_blocks=[0, 1])
    inputs, _ = batch(plain)
    assert torch.allclose(logits(plain, inputs), logits(changed, inputs), atol=1e-4)
    assert len(layer_stack(changed)) == 4
    changed(**inputs).logits.square().sum().backward()
    for place in (1, 3):
        gradients = [p.grad for p in layer_stack(changed)[place].parameters() if p.grad is not None]
        assert max(float(gradient.abs().max()) for gradient in gradients) > 1e-4


def test_an_inserted_block_keeps_norms_that_were_learned(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "bert")
    model = AutoModel.from_pretrained(folder)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" in name:
                parameter.add_(torch.randn_like(parameter) / 2)
    model.save_pretrained(folder)
    plain, changed = load(folder), load(folder, insert_blocks=[0, 0, 1])
    inputs, _ = batch(plain)
    assert torch.allclose(logits(plain, inputs), logits(changed, inputs), atol=1e-4)


def test_a_dropout_alone_makes_no_other_model(bert: Path) -> None:
    assert load(bert, dropout=0.3).name_or_path == str(bert)
    assert load(bert, keep_layers=[0]).name_or_path == ""


def test_new_tokens_begin_as_the_mean_of_their_pieces(folder: Path) -> None:
    before, after = load_tokenizer(str(folder)), load_tokenizer(str(folder), ["goodfilm", "<b>", "电影院"])
    model, plain = load(folder, add_tokens=["goodfilm", "<b>", "电影院"]), load(folder)
    table, old = (made.get_input_embeddings().weight for made in (model, plain))
    assert torch.equal(table[: len(old)], old)
    for token in ("goodfilm", "<b>", "电影院"):
        pieces = before(token, add_special_tokens=False)["input_ids"]
        assert len(pieces) > 1
        assert torch.allclose(table[after.convert_tokens_to_ids(token)], old[pieces].mean(0))
    words = after.convert_ids_to_tokens(after("a goodfilm goodfilms <b>it<b>", add_special_tokens=False)["input_ids"])
    assert words[:2] == ["a", "goodfilm"]
    assert words[2] == "good"  # not inside another word
    assert words[-3:] == ["<b>", "it", "<b>"]
    assert after.convert_tokens_to_ids("电影院") in after("我喜欢电影院的")["input_ids"]
    assert model.config.vocab_size == len(table) == len(after)


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_of_a_language_model_reach_its_output_layer(tmp_path: Path, tied: bool) -> None:
    folder = tiny_chat_model(tmp_path / "chat", tied=tied)
    structure = Structure(add_tokens=("goodfilm",))
    before, after = load_tokenizer(str(folder)), load_tokenizer(str(folder), structure.add_tokens)
    model = load_language_model(str(folder), after, structure, seed=0)
    into, out = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (into is out) == tied
    pieces = before("goodfilm", add_special_tokens=False)["input_ids"]
    for table in (into, out):
        assert torch.allclose(table[after.convert_tokens_to_ids("goodfilm")], table[pieces].mean(0))


def test_a_language_model_without_some_layers_writes_with_its_cache_what_it_writes_without(tmp_path: Path) -> None:
    folder = tiny_chat_model(tmp_path / "chat")
    structure = Structure(keep_layers=(1,), insert_blocks=(1,))
    model = load_language_model(str(folder), load_tokenizer(str(folder)), structure, seed=0).eval()
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]
    ids = torch.tensor([[5, 9, 17, 30]])
    written = [model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*written)


def test_settings_of_single_layers_go_with_them(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    qwen = Qwen2Config(**SIZES, num_key_value_heads=2, layer_types=kinds, sliding_window=4, use_sliding_window=True)
    gemma = Gemma3TextConfig(**SIZES, num_key_value_heads=2, head_dim=16, layer_types=kinds, sliding_window=4)
    for name, config in (("qwen2", qwen), ("gemma3", gemma)):
        model = load(made(tmp_path / name, config), keep_layers="1-3", insert_blocks=[1])
        assert model.config.layer_types == [kinds[place] for place in (1, 1, 2, 3)]
        inputs, _ = batch(model)
        before = logits(model, inputs)
        out = tmp_path / f"{name}-changed"
        model.save_pretrained(out)
        plain = AutoModelForSequenceClassification.from_pretrained(out).eval()
        assert torch.equal(logits(plain, inputs), before)


def test_where_transformers_has_a_name_for_it_its_own_class_is_kept(tmp_path: Path) -> None:
    tokens = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    folder = made(tmp_path / "modernbert", ModernBertConfig(**SIZES, **tokens))
    model = load(folder, pooling="mean")
    assert (type(model).__name__, model.config.classifier_pooling) == ("ModernBertForSequenceClassification", "mean")
    assert type(load(folder, pooling="max")).__name__ == "PooledClassifier"
    said = refused(folder, keep_layers=[1, 3])
    assert "'structure': expected layers that transformers would build like this" in said
    assert "model.layers.0.attn_norm.weight" in said


def test_a_head_that_there_is_not_is_never_built(bert: Path, tmp_path: Path) -> None:
    save_model(tmp_path, load(bert, pooling="mean"), load_tokenizer(str(bert)), max_length=64, base="")
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"mean"', '"os.system"'))
    said = (
        "The classifier's config cannot be read.\n  - field 'chainrule_head': expected the names of a pooling and a "
        "head, got {'head': 'mlp', 'pooling': 'os.system'}. Put the config.json back as it was saved."
    )
    uses: list[dict[str, Any] | None] = [None, {}, {"head": "linear"}]
    for changes in uses:
        with pytest.raises(ModelError) as caught:
            load_saved(tmp_path, "classifier", "") if changes is None else load(tmp_path, **changes)
        assert str(caught.value) == said


def test_a_changed_model_can_be_changed_again(bert: Path, tmp_path: Path) -> None:
    model = load(bert, keep_layers=[1], pooling="mean", head="linear")
    save_model(tmp_path, model, load_tokenizer(str(bert)), max_length=64, base="")
    inputs, _ = batch(model)
    again = load(tmp_path)
    assert torch.equal(logits(again, inputs), logits(model, inputs))
    assert load(tmp_path, head="mlp").config.chainrule_head == {"pooling": "mean", "head": "mlp"}
    back = load(tmp_path, pooling="cls", head="mlp")
    assert type(back).__name__ == "BertForSequenceClassification"
    assert not hasattr(back.config, "chainrule_head")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"keep_layers": [0, 2, 5]},
            "field 'structure.keep_layers': expected layers from 0 to 1, which this model has, got 2, 5. Change it.",
        ),
        (
            {"drop_layers": [7]},
            "field 'structure.drop_layers': expected layers from 0 to 1, which this model has, got 7. Change it.",
        ),
        (
            {"drop_layers": "0-1"},
            "field 'structure.drop_layers': expected at least one layer that stays, got none of 2. Keep one.",
        ),
        (
            {"keep_layers": []},
            "field 'structure.keep_layers': expected at least one layer that stays, got none of 2. Keep one.",
        ),
        (
            {"keep_layers": [1, 0]},
            "field 'structure.keep_layers': expected layers in ascending order, each once, got 1, 0. Change it.",
        ),
        (
            {"keep_layers": [1], "drop_layers": [0]},
            "field 'structure.drop_layers': expected keep_layers or drop_layers, not both, got both. "
            "Remove one of them.",
        ),
        (
            {"reinitialise_top": 2, "keep_layers": [1]},
            "field 'structure.reinitialise_top': expected at most 1, the layers there are by then, got 2. Lower it.",
        ),
        (
            {"insert_blocks": [0], "keep_layers": [1]},
            "field 'structure.insert_blocks': expected layers out of 1, those that stay, got 0. Change it.",
        ),
        (
            {"pooling": "cls", "head": "cnn"},
            "field 'structure.pooling': expected max, mean or attention with the head 'cnn', which reads all tokens, "
            "got cls. Choose one of these, or another structure.head.",
        ),
        (
            {"add_tokens": ["good"]},
            "field 'structure.add_tokens.0': expected a token that the vocabulary lacks, got 'good', which is one "
            "piece already. Remove it.",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_what_there_is(changes: dict[str, Any], said: str, bert: Path) -> None:
    assert refused(bert, **changes) == said


def test_all_wrong_layers_are_told_at_once(bert: Path) -> None:
    with pytest.raises(RecipeError, match=r"The model cannot be changed like this\.") as caught:
        load(bert, keep_layers=[0, 4], insert_blocks=[1], reinitialise_top=3)
    fields = [str(problem.where) for problem in caught.value.problems]
    assert fields == [f"field 'structure.{key}'" for key in ("keep_layers", "insert_blocks", "reinitialise_top")]


def test_all_wrong_tokens_are_told_at_once(bert: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_tokenizer(str(bert), ["goodfilm", " x", "goodfilm", "", "\u200b"])
    assert [str(problem).partition(": ")[2] for problem in caught.value.problems] == [
        "expected a text without space at its ends, got ' x'. Remove the space, or the token.",
        "expected each token once, got 'goodfilm' again. Remove it.",
        "expected a text without space at its ends, got ''. Remove the space, or the token.",
        "expected a token that the tokenizer does not drop, got '\\u200b'. Remove it.",
    ]


def test_a_language_model_has_no_pooling(tmp_path: Path) -> None:
    folder = str(tiny_chat_model(tmp_path / "chat"))
    with pytest.raises(RecipeError) as caught:
        load_language_model(folder, load_tokenizer(folder), Structure(pooling="mean"), seed=0)
    assert str(caught.value) == (
        "A language model has no pooling to replace.\n  - field 'structure.pooling': expected a task whose head gives "
        "a few numbers a row, got a language model. Leave it out."
    )


def test_families_that_nobody_has_looked_at_are_refused(tmp_path: Path) -> None:
    config = T5Config(d_model=32, d_ff=64, num_layers=2, num_heads=2, d_kv=16, decoder_start_token_id=0)
    folder = made(tmp_path / "t5", config)
    assert "or a decoder such as llama or qwen2, got t5." in refused(folder, pooling="mean")
    for structure in ({"insert_blocks": [0]}, {"keep_layers": [1]}):
        assert "expected a model with one stack of layers, got a t5, which has two" in refused(folder, **structure)
    assert "hidden_act, hidden_activation, activation" in refused(folder, activation="relu")
