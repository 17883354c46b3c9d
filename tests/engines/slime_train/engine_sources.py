"""The sources of slime and Megatron that SLIME_SRC and MEGATRON_SRC name, held to the commits that slime ships with."""

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    variable: str
    repository: str
    commit: str
    package: str
    digest: str  # of the package's Python files, so that an export without .git counts too, and no changed file does

    def folder(self):
        """The folder that the variable names; a ValueError of one sentence if it is not this commit."""
        value = os.environ.get(self.variable)
        remedy = f"name a checkout or an export of {self.repository} at {self.commit}, unpatched"
        if not value:
            raise ValueError(f"{self.variable} is not set, but this test runs that code; {remedy}.")
        package = Path(value, self.package)
        if not package.is_dir():
            raise ValueError(f"{self.variable} is {value}, which has no folder {self.package}; {remedy}.")
        if (found := digest(package)) != self.digest:
            raise ValueError(
                f"{self.variable} is {value}, whose {self.package} has the digest {found}, but commit {self.commit} "
                f"has {self.digest}; {remedy}."
            )
        return Path(value).resolve()


def digest(package):
    """The first digits of a SHA-256 over all Python files of a folder and their paths."""
    found = hashlib.sha256()
    for file in sorted(package.rglob("*.py"), key=lambda file: file.relative_to(package).as_posix()):
        found.update(f"{file.relative_to(package).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return found.hexdigest()[:16]


SLIME = Source("SLIME_SRC", "https://github.com/THUDM/slime", "624b824a", "slime", "17cbbec5144fe241")
MEGATRON = Source("MEGATRON_SRC", "https://github.com/NVIDIA/Megatron-LM", "1dcf0daf", "megatron", "9720e959b68409da")
PATCH = "docker/patch/v0.5.15.post1/megatron.patch"  # in slime's source: what its Docker image does to Megatron


def patched_megatron(slime, megatron, folder):
    """A copy of Megatron in `folder`, as slime's Docker image has it."""
    shutil.copytree(megatron / "megatron", folder / "megatron")
    subprocess.run(["git", "apply", slime / PATCH], cwd=folder, check=True)
    return folder
