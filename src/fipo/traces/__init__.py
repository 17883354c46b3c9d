"""The token-credit record: what it holds, and how it is written and read. Needs pyarrow, once it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fipo.traces.columns import FLAGS
    from fipo.traces.schema import SCHEMA_VERSION, Trace
    from fipo.traces.store import TraceSet, read_traces, write_traces

__all__ = ["FLAGS", "SCHEMA_VERSION", "Trace", "TraceSet", "read_traces", "write_traces"]


def __getattr__(name: str) -> Any:
    """pyarrow is imported with the first of these names: an engine's plugin needs it only where it traces."""
    if name in __all__:
        home = {"FLAGS": "columns", "SCHEMA_VERSION": "schema", "Trace": "schema"}.get(name, "store")
        return getattr(import_module(f"fipo.traces.{home}"), name)
    raise AttributeError(f"module 'fipo.traces' has no attribute {name!r}")
