"""Models that people have: adapters of a run, checkpoints and tokenizers that do not fit."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support import tiny

from fipo import InvalidParameterError
from fipo.errors import DataError
from fipo.run.model import load_model, require_an_end
from fipo.trainer import trainer as of_trainer


@pytest.fixture
def base(tmp_path):
    return tiny.save(tmp_path / "base")


@pytest.fixture
def stage_1(tmp_path, base):
    """A folder as a LoRA run leaves it, and the logits of its policy."""
    model, _ = load_model(base, dtype="float32", adapters=True)
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "stage_1")
    tiny.tokenizer().save_pretrained(tmp_path / "stage_1")
    return str(tmp_path / "stage_1"), logits(adapted)


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 12)[None]).logits


@pytest.mark.parametrize("adapters", [True, False])
def test_a_runs_adapter_goes_on_from_where_it_was(base, stage_1, adapters):
    folder, expected = stage_1
    model, _ = load_model(folder, dtype="float32", adapters=adapters)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    assert (logits(load_model(base, dtype="float32", adapters=False)[0]) - expected).abs().max() > 0.1
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and all(("lora" in name) == adapters for name in trained)


def test_missing_weights_are_told(tmp_path, base):
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 weights, model.layers.1.mlp.up_proj.weight among them"):
        load_model(base, dtype="float32", adapters=False)


def test_a_tokenizer_larger_than_the_embedding_is_told(tmp_path, base):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["one", "more"])
    tokenizer.save_pretrained(base)
    with pytest.raises(DataError, match=r"has 52 tokens, but the model's embedding has 50 rows"):
        load_model(base, dtype="float32", adapters=False)


def test_a_model_without_an_end_is_told(base):
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = f"{base}/{name}"
        with open(path) as file:
            content = json.load(file)
        content.pop("eos_token_id", None), content.pop("eos_token", None)
        with open(path, "w") as file:
            json.dump(content, file)
    with pytest.raises(DataError, match="has no end-of-sequence token"):
        require_an_end(*load_model(base, dtype="float32", adapters=False))


def test_a_replaced_trainer_and_a_frozen_model_are_refused(tmp_path, monkeypatch):
    from support import harness

    model = tiny.model()
    model.requires_grad_(False)
    with pytest.raises(InvalidParameterError, match="no trainable weight"):
        harness.make(tmp_path, model)
    monkeypatch.setattr(of_trainer, "GRPOTrainer", type("UnslothGRPOTrainer", (), {"__module__": "unsloth_compiled"}))
    with pytest.raises(InvalidParameterError, match="import fipo before unsloth"):
        harness.make(tmp_path)
