"""`fipo doctor verl` beside a verl that is installed; there is no GPU here."""

import json

import pytest

from fipo.cli import main

pytestmark = pytest.mark.verl


def test_what_is_here_and_what_is_not(capsys):
    assert main(["doctor", "verl", "--json"]) == 1
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert not found["GPUs"]["ok"]
    assert found["verl"]["ok"] and found["Ray"]["ok"]  # whether a cluster runs is not this test's business
    assert found["fipo's policy loss"]["found"] == "registered as fipo"
    assert found["verl's fused head"]["found"] == "keeps all gradients"
