"""What `fipo doctor` is made of: checks, and imports that are tried where they can do no harm."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass

TIMEOUT = 120  # seconds: an engine's import takes half a minute on a cold disk

IMPORT = """
import importlib, os, sys
module = importlib.import_module(sys.argv[1])
print(f"\\n{getattr(module, '__version__', 'unknown version')} in {module.__path__[0]}", flush=True)
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


def python(name: str, remedy: str, code: str = IMPORT) -> Check:
    """What a Python of its own says last about `name`, so that no import can end, hang or change this one."""
    command = [sys.executable, "-P", "-c", code, name]  # -P: Ray's actors do not see the current folder either
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return Check(name, False, f"did not answer within {TIMEOUT} seconds", remedy)
    ok = done.returncode == 0 and bool(done.stdout.strip())
    lines = (done.stdout if ok else done.stderr).strip().splitlines()
    return Check(name, ok, lines[-1].rstrip(".;: ") if lines else f"ended with exit code {done.returncode}", remedy)
