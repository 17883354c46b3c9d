"""tests/web/golden.json, which the front end's unit tests read, is what fipo computes and packs now.

Where this fails because fipo changed on purpose, `golden.py` writes the file anew.
"""

import base64
import gzip
import json

import pytest
from golden import FILE, golden

KEPT = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def fresh():
    return json.loads(json.dumps(golden()))


def test_credit_and_traces(fresh):
    assert KEPT["halves"] == fresh["halves"] and KEPT["traces"] == fresh["traces"]
    for kept, now in zip(KEPT["credit"], fresh["credit"], strict=True):
        assert kept["knobs"] == now["knobs"]
        for column in ("logRatio", "trained", "advantages", "futureKl", "weight"):
            assert kept[column] == pytest.approx(now[column], rel=1e-12, abs=1e-15)


def test_blocks(fresh):
    """Uncompressed, for the compressed bytes may differ between versions of zlib."""
    assert KEPT["blocks"].keys() == fresh["blocks"].keys()
    for name, text in KEPT["blocks"].items():
        kept, now = (gzip.decompress(base64.b64decode(one)) for one in (text, fresh["blocks"][name]))
        assert kept == now, name
