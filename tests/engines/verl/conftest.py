"""These tests need verl, whose transformers is another one than fipo's own: `make test-verl` gives them an environment."""

from importlib.metadata import PackageNotFoundError, version

try:
    version("verl")
except PackageNotFoundError:
    collect_ignore_glob = ["test_*.py"]
