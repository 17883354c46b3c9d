"""`fipo doctor`, where something is as it should not be: every check that fails says what to do, and the code is 1."""

import json
from importlib import metadata

import pytest

from fipo.cli import main
from fipo.run import doctor


def checks(capsys, engine="trainer"):
    """Name → check; the exit code agrees."""
    code = main(["doctor", engine, "--json"])
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert code == (0 if all(check["ok"] for check in found.values()) else 1)
    assert all(check["remedy"] for check in found.values() if not check["ok"])
    return found


def install(folder, name, version, *needs):
    """What tells Python that such a distribution is installed in the folder; returns its own folder."""
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    (about / "METADATA").write_text("\n".join(lines) + "\n")
    return about


def test_this_machine_can_train(capsys):
    found = checks(capsys)
    assert {name for name, check in found.items() if not check["ok"]} == set()
    assert found["trl"]["found"].endswith("(fipo needs <1.17,>=1.16)")
    assert found["fipo.trainer"]["ok"]


def test_versions_that_do_not_fit(capsys, monkeypatch, tmp_path):
    """What `pip install 'trl[vllm]'` beside an installed fipo leaves behind, with exit code 0."""
    install(tmp_path, "vllm", "0.31.0", "transformers<5.18.0,>=5.10.4")
    install(tmp_path, "trl", "1.15.0")
    monkeypatch.syspath_prepend(tmp_path)
    found = checks(capsys)
    assert found["trl"]["found"] == "1.15.0 (fipo needs <1.17,>=1.16)"
    assert found["vllm"]["found"] == "0.31.0 (fipo needs <0.31,>=0.28)"
    assert [name for name, check in found.items() if not check["ok"]] == ["trl", "vllm"]
    assert "fipo.trainer" not in found  # it would not be the cause
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"ok     torch: {metadata.version('torch')}")
    assert "fails  trl: 1.15.0 (fipo needs <1.17,>=1.16); pip install '.[train]' in a clone of fipo" in lines


VLLM = {  # an installed version → what is said of it
    None: "use_vllm is true, but vLLM is not installed; pip install '.[vllm]'",
    "0.31.0": "vLLM cannot be used: vllm: 0.31.0 (fipo needs <0.31,>=0.28); pip install '.[vllm]'",
}


@pytest.mark.parametrize("version", VLLM)
def test_a_vllm_that_does_not_fit_is_refused_before_data_are_read(version, capsys, monkeypatch, tmp_path):
    if version:
        install(tmp_path, "vllm", version, "transformers<5.18.0")
        monkeypatch.syspath_prepend(tmp_path)
    flags = ["--use_vllm", "true", "--dataset", "nowhere/nothing", "--rewards", "exact", "--use_cpu", "true"]
    assert main(["train", "--output_dir", str(tmp_path / "run"), *flags]) == 2
    assert VLLM[version] in capsys.readouterr().err


def test_a_lost_gradient(monkeypatch):
    head = doctor.head_logps
    monkeypatch.setattr(doctor, "head_logps", lambda hidden, *rest: head(hidden.detach() + 0 * hidden, *rest))
    check = doctor._gradients()
    assert not check.ok and "differ by 1e+00" in check.found


def test_no_verl(capsys):
    found = checks(capsys, "verl")
    assert found["verl"]["found"] == "ModuleNotFoundError: No module named 'verl'"
    assert found["verl"]["remedy"].startswith("run `pip install verl==0.9.1`")
