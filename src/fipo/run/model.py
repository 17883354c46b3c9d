"""Models and tokenizers by name: a hub name, a folder, a .gguf file, or a Python package that carries one."""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from fipo.errors import DataError, InvalidParameterError
from fipo.messages import one_line

PACKAGE = "package:"
ADAPTER_CONFIG = "adapter_config.json"
CACHE = Path(os.environ.get("FIPO_CACHE", Path.home() / ".cache" / "fipo"))


def load_model(
    name: str,
    *,
    dtype: str,
    adapters: bool,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in evaluation mode and its tokenizer, which pads on the left.

    A folder with a LoRA adapter, as a run leaves it, gives the base model with this adapter: to be trained further
    where `adapters` are, else merged into the weights. Raises a DataError where something is missing.

    Args:
        name: A hub name, a folder, a `.gguf` file, or `package:NAME` for the GGUF file in a Python package. GGUF
            weights are unpacked once into a cache of safetensors, since packed ones train several times slower.
        dtype: "float32", "bfloat16" …, or "auto": float16 for frozen weights under adapters on a GPU, else float32.
            Weights that are trained must be float32: others round small updates away.
        adapters: Whether adapters are trained and the weights themselves are frozen.
        kwargs: For `AutoModelForCausalLM.from_pretrained`.
    """
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        path = _unpacked(_gguf_file(name)) if name.endswith(".gguf") or name.startswith(PACKAGE) else name
        adapter = PeftConfig.from_pretrained(path) if Path(path, ADAPTER_CONFIG).is_file() else None
        source = path if adapter is None else adapter.base_model_name_or_path
        kwargs["dtype"] = resolved(dtype, adapters=adapters)
        model, about = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **common, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", **common)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, path, is_trainable=adapters)
    except Exception as error:  # of readers of configurations, weights and tokenizers, of many kinds
        raise DataError(
            f"The model {name!r} cannot be loaded ({type(error).__name__}: {one_line(error)}); give a hub name, a "
            f"folder with a model, a .gguf file, or {PACKAGE}NAME."
        ) from error
    if missing := sorted(about["missing_keys"]):
        raise DataError(
            f"The model {name!r} lacks {len(missing)} weights, {missing[0]} among them, which would be random; give a "
            "whole checkpoint."
        )
    rows = model.get_input_embeddings().num_embeddings  # the weight itself may lie on other ranks, under ZeRO-3
    if len(tokenizer) > rows:
        raise DataError(
            f"The tokenizer of {name!r} has {len(tokenizer)} tokens, but the model's embedding has {rows} rows; take "
            "the tokenizer that the model was trained with, or resize the embedding and save the model."
        )
    if adapter is not None and not adapters:
        model = model.merge_and_unload().requires_grad_(requires_grad=True)
    return model, tokenizer


def resolved(dtype: str, *, adapters: bool) -> str:
    """`dtype`, with "auto" as `load_model` takes it."""
    if dtype != "auto":
        return dtype
    return "float16" if adapters and torch.cuda.is_available() else "float32"


def end_at(character: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Makes every token that holds the character an end of responses, of the saved model's too; returns all ends."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    holding = [token for token, text in enumerate(texts) if character in text]
    if not holding:
        raise InvalidParameterError(
            f"stop_character is {character!r}, but no token of the model's vocabulary holds it; choose another."
        )
    known = model.generation_config.eos_token_id
    ends = sorted({*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id, *holding} - {None})
    model.generation_config.eos_token_id = ends
    return ends


def require_an_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises a DataError where no token ends a response."""
    if model.generation_config.eos_token_id is None and tokenizer.eos_token_id is None:
        raise DataError(
            f"{model.name_or_path} has no end-of-sequence token, so no response would end; set stop_character, or "
            "eos_token in the tokenizer's folder."
        )


def _gguf_file(name: str) -> Path:
    files = [Path(name)]
    if name.startswith(PACKAGE):
        found = importlib.util.find_spec(name.removeprefix(PACKAGE))
        files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files or not files[0].is_file():
        raise FileNotFoundError("there is no such file, or no installed package of that name holds one")
    return files[0]


def _unpacked(gguf: Path) -> Path:
    """The folder with the file's weights as bfloat16 safetensors, written once; a killed run leaves no half folder."""
    about = gguf.stat()
    known = hashlib.sha256(f"{gguf.resolve()} {about.st_size} {about.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = CACHE / f"{gguf.stem}-{known}"
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".partial", dir=CACHE))
    try:
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        unpacking = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.bfloat16}
        AutoModelForCausalLM.from_pretrained(**source, **unpacking).save_pretrained(partial)
        AutoTokenizer.from_pretrained(**source).save_pretrained(partial)
        with suppress(OSError):  # another process was faster
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
