"""Which sources of slime and Megatron the other tests of this folder accept. This needs neither."""

import re

import pytest
from engine_sources import SLIME

REMEDY = "; name a checkout or an export of https://github.com/THUDM/slime at 624b824a, unpatched."


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (None, "SLIME_SRC is not set, but this test runs that code"),
        ({}, "SLIME_SRC is .*, which has no folder slime"),
        (
            {"slime/__init__.py": ""},
            "SLIME_SRC is .*, whose slime has the digest [0-9a-f]+, but commit 624b824a has .*",
        ),
    ],
)
def test_other_sources_are_refused_in_one_sentence(monkeypatch, tmp_path, files, problem):
    monkeypatch.delenv("SLIME_SRC", raising=False)
    if files is not None:
        monkeypatch.setenv("SLIME_SRC", str(tmp_path))
        for name, text in files.items():
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=problem) as error:
        SLIME.folder()
    assert str(error.value).endswith(REMEDY) and re.fullmatch(r"[^\n]+", str(error.value))
