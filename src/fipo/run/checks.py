"""What `fipo doctor` is made of: checks, and imports that are tried where they can do no harm."""

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

TIMEOUT = 120  # seconds: an engine's import takes half a minute on a cold disk

IMPORT = """
import importlib, json, os, sys
try:
    module = importlib.import_module(sys.argv[1])
    answer = {"path": list(getattr(module, "__path__", []))[:1], "version": str(getattr(module, "__version__", ""))}
except BaseException as error:
    answer = {"error": f"{type(error).__name__}: {error}"}
print("\\n" + json.dumps(answer), flush=True)
os._exit(0)  # nothing that was imported has the last word
"""


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, what was found, and what to do where it is not right."""

    name: str
    ok: bool
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'fails':<6} {self.name}: {self.found}" + f"; {self.remedy}" * (not self.ok)


def show(checks: list[Check], as_json: bool) -> int:
    """Prints one line a check, or all of them as JSON; returns the exit code: 1 where a run would fail."""
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        print(*checks, sep="\n")
    return 0 if all(check.ok for check in checks) else 1


def package(name: str, remedy: str) -> tuple[Check, str]:
    """Whether a package can be imported, and the folder where it lies."""
    answer = imported(name)
    if "error" in answer:
        return Check(name, False, answer["error"], remedy), ""
    if not answer["path"]:
        return Check(name, False, "is a file or an empty folder of that name, not the package", remedy), ""
    (folder,) = answer["path"]
    return Check(name, True, f"{answer['version'] or 'unknown version'} in {folder}", remedy), folder


def imported(module: str) -> dict[str, Any]:
    """`path` and `version` of a module, or the `error` of its import."""
    return python("-c", IMPORT, module)


def python(*arguments: str) -> dict[str, Any]:
    """The JSON on the last line that a Python of its own prints, so that no import can end, hang or change this one."""
    try:
        # -P: what lies in the current folder is not there for Ray's actors either.
        done = subprocess.run([sys.executable, "-P", *arguments], capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return {"error": f"did not answer within {TIMEOUT} seconds"}
    if done.returncode < 0:
        return {"error": f"ended with {signal.Signals(-done.returncode).name}"}
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        answer = {"error": done.stderr.strip().rpartition("\n")[2] or f"ended with exit code {done.returncode}"}
    if "error" in answer:
        answer["error"] = answer["error"].strip().splitlines()[0].rstrip(".;: ")
    return answer
