"""tests/web/golden.json, which the front end's unit tests read, is what fipo computes and packs now.

Where this fails because fipo changed on purpose, `golden.py` writes the file anew.
"""

import base64
import gzip
import json

import pytest
from golden import FILE, golden


def test_what_fipo_computes_and_packs_is_kept():
    kept, fresh = json.loads(FILE.read_text(encoding="utf-8")), json.loads(json.dumps(golden()))
    assert kept["halves"] == fresh["halves"] and kept["traces"] == fresh["traces"]
    for old, now in zip(kept["credit"], fresh["credit"], strict=True):
        assert old["knobs"] == now["knobs"]
        for column in ("logRatio", "trained", "advantages", "futureKl", "weight"):
            assert old[column] == pytest.approx(now[column], rel=1e-12, abs=1e-15)
    assert kept["blocks"].keys() == fresh["blocks"].keys()
    for name, text in kept["blocks"].items():  # the compressed bytes may differ between versions of zlib
        assert len({gzip.decompress(base64.b64decode(one)) for one in (text, fresh["blocks"][name])}) == 1, name
