"""The token-credit record: what it holds, and how it is written and read. Needs pyarrow."""

from fipo.traces.schema import FLAGS, SCHEMA_VERSION, Trace
from fipo.traces.store import TraceSet, read_traces, write_traces

__all__ = ["FLAGS", "SCHEMA_VERSION", "Trace", "TraceSet", "read_traces", "write_traces"]
