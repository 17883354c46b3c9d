"""Token bytes, joined, are the text, also where one character is spread over several tokens."""

from types import SimpleNamespace

import pytest
from support import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fipo import DataError
from fipo.traces.tokens import byte_decoder

TEXT = "naïve 🙂 日本語\n\ttabs \x00 and e\u0301 <|end|> “quotes”"


def byte_level():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def byte_fallback():
    pieces = ["<unk>", "▁", *(f"<0x{byte:02X}>" for byte in range(256)), *"abdenotuqsv"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


@pytest.mark.parametrize("backend", [byte_level, byte_fallback])
def test_joined_bytes_are_the_text(backend):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend(), additional_special_tokens=["<|end|>"])
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    decode = byte_decoder(tokenizer)
    assert b"".join(decode(index) for index in ids) == TEXT.encode()
    assert any(len(decode(index)) == 1 and decode(index)[0] > 127 for index in ids)  # half a character


def test_unknown_ids_have_no_bytes():
    assert byte_decoder(tiny.tokenizer())(10**6) == b""


def test_a_tokenizer_that_does_not_tell_is_a_sentence():
    with pytest.raises(
        DataError, match=r"SimpleNamespace does not give the bytes of its tokens, .* fipo_trace_every to 0"
    ):
        byte_decoder(SimpleNamespace())
