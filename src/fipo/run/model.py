"""Models and tokenizers by name: a hub name, a folder, a .gguf file, or a Python package that carries one."""

import hashlib
import importlib.util
import os
import shutil
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from fipo.core.precision import processor_has_bfloat16
from fipo.errors import DataError, InvalidParameterError

PACKAGE = "package:"
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

    Args:
        name: A hub name, a folder, a `.gguf` file, or `package:NAME` for the GGUF file in a Python package. GGUF
            weights are unpacked once into a cache of safetensors, since packed ones train several times slower.
        dtype: "float32", "bfloat16" …, or "auto": bfloat16 for frozen weights under adapters where the device is fast
            at it, else float32. Weights that are trained must not be bfloat16: it rounds small updates away.
        adapters: Whether adapters are trained and the weights themselves are frozen.
        kwargs: For `AutoModelForCausalLM.from_pretrained`.

    Raises:
        DataError: The model cannot be found or loaded.
    """
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    weights_dtype = _choose_dtype(dtype, adapters)
    try:
        path = _unpacked(_gguf_file(name)) if name.endswith(".gguf") or name.startswith(PACKAGE) else name
        model = AutoModelForCausalLM.from_pretrained(path, dtype=weights_dtype, **common, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", **common)
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"The model {name!r} needs a package that is not installed ({error}); install it.") from error
    except (OSError, ValueError, RuntimeError, KeyError, struct.error, SafetensorError) as error:
        raise DataError(
            f"The model {name!r} cannot be loaded ({(str(error).splitlines() or [''])[0]}); give a hub name, a folder "
            f"with a model, a .gguf file, or {PACKAGE}NAME."
        ) from error
    return model, tokenizer


def end_at(character: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Makes every token that holds the character an end of the model's responses, here and where it is saved; returns
    all ends.

    Raises:
        InvalidParameterError: No token holds it.
    """
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    holding = [token for token, text in enumerate(texts) if character in text]
    if not holding:
        raise InvalidParameterError(
            f"stop_character is {character!r}, but no token of the model's vocabulary holds it; choose another."
        )
    known = model.generation_config.eos_token_id
    known = [known] if isinstance(known, int) else known or []
    ends = sorted({*known, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]), *holding})
    model.generation_config.eos_token_id = ends
    return ends


def _choose_dtype(name: str, adapters: bool) -> torch.dtype:
    if name != "auto":
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise InvalidParameterError(
                f"dtype is {name!r}, but must be auto, float32, bfloat16 or float16; change it."
            )
        return dtype
    fast = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else processor_has_bfloat16()
    return torch.bfloat16 if adapters and fast else torch.float32


def _gguf_file(name: str) -> Path:
    if not name.startswith(PACKAGE):
        path = Path(name)
        if not path.is_file():
            raise DataError(f"The model file {name} does not exist; check the path.")
        return path
    package = name.removeprefix(PACKAGE)
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # of a package's parent, or of an empty name
        found = None
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise DataError(
            f"No installed package {package!r} holds a GGUF file; check the name, or install the package that does."
        )
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
        config = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, quantization_config=config, dtype=torch.bfloat16
        )
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(partial)
        with suppress(OSError):  # another process was faster
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
