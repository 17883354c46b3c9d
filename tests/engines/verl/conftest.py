"""These tests need verl, which wants an older transformers than fipo: `make test-verl` sets up their environment."""

from importlib.metadata import PackageNotFoundError, version

try:
    version("verl")
except PackageNotFoundError:
    collect_ignore_glob = ["test_*.py"]
