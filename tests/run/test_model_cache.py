"""The cache of unpacked GGUF files."""

import pytest

from fipo.errors import DataError
from fipo.run import model


def test_a_broken_gguf_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "CACHE", tmp_path / "cache")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(DataError, match="cannot be loaded"):
        model.load_model(str(broken), dtype="float32", adapters=False)
    assert list((tmp_path / "cache").iterdir()) == []
