"""The exact bytes of every token. Decoding tokens one by one breaks characters that span several."""

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from fipo.errors import DataError

BytesOf = Callable[[int], bytes]  # from a token id

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTE_LEVEL = {  # GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for characters from U+0100 on
    **{chr(byte): bytes([byte]) for byte in PRINTABLE},
    **{chr(0x100 + place): bytes([byte]) for place, byte in enumerate(OTHERS)},
}


def byte_decoder(tokenizer: Any) -> BytesOf:
    """A function from a token id to its bytes, for a fast Hugging Face tokenizer; ids it does not know give b"".

    Byte-level BPE (GPT-2, Llama 3, Qwen), SentencePiece with byte fallback (Llama 2, Gemma) and plain vocabularies.
    A text is the name or the folder of a tokenizer, which is loaded.

    Raises:
        DataError: It cannot be loaded, or is not of the package `tokenizers`, so that its bytes are not known.
    """
    if isinstance(tokenizer, str):
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        except (OSError, ValueError) as error:
            raise DataError(f"The tokenizer is {tokenizer}, but must be a tokenizer's folder: {error}") from error
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise DataError(
            f"The tokenizer {type(tokenizer).__name__} does not give the bytes of its tokens, which traces need; set "
            "fipo_trace_every to 0, or take a tokenizer of the package tokenizers."
        )
    pieces = json.dumps(json.loads(fast.to_str()).get("decoder"))
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    convert = _byte_level if '"ByteLevel"' in pieces else _word_piece if '"WordPiece"' in pieces else _sentence_piece

    @cache
    def decode(index: int) -> bytes:
        if index in added:
            return added[index].encode()
        piece = tokenizer.convert_ids_to_tokens(index)
        return b"" if piece is None else convert(piece)

    return decode


def in_brackets(index: int) -> bytes:
    """What stands for a token where there is no tokenizer."""
    return f"⟨{index}⟩".encode()


def _byte_level(piece: str) -> bytes:
    return b"".join(BYTE_LEVEL.get(character, character.encode()) for character in piece)


def _sentence_piece(piece: str) -> bytes:
    found = BYTE_TOKEN.fullmatch(piece)
    return bytes([int(found[1], 16)]) if found else piece.replace("▁", " ").encode()


def _word_piece(piece: str) -> bytes:
    return piece.removeprefix("##").encode() if piece.startswith("##") else b" " + piece.encode()
