"""`fipo watch`: the report of runs that are under way, on this machine alone.

It listens on loopback; every request must carry the token that the address holds, name a loopback host (or another site
could reach it by a name of its own) and come from the page itself. Needs starlette and uvicorn.
"""

import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from fipo.errors import DataError
from fipo.report.curves import draw_curves
from fipo.report.follow import FollowedRun
from fipo.report.pack import pack_traces
from fipo.report.page import MAX_TRACE_BYTES, labels_of, live_page
from fipo.run_folder import trace_files_of
from fipo.traces import read_traces

LOOPBACK = "127.0.0.1"
HOSTS = {LOOPBACK, "localhost", "[::1]"}
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def watch(paths: list[Path], port: int, announce: Callable[[str], None]) -> None:
    """Serves the report of these runs until Ctrl-C; `announce` gets the address.

    Raises:
        DataError: A path is no folder, or the port is taken.
    """
    for path in paths:
        if path.exists() and not path.is_dir():  # one that does not exist yet may come
            raise DataError(f"{path} is a file, but must be a run's folder; `fipo report` shows single files.")
    runs = [FollowedRun(path, label) for path, label in zip(paths, labels_of(paths), strict=True)]
    token = secrets.token_urlsafe(24)
    try:
        listener = socket.create_server((LOOPBACK, port))
    except (OSError, OverflowError) as error:
        why = (getattr(error, "strerror", None) or str(error)).partition(" (")[0]
        raise DataError(f"port {port} cannot be had ({why}); choose another with --port.") from error
    config = uvicorn.Config(_answers(runs, token), log_level="error", access_log=False, server_header=False)
    with suppress(KeyboardInterrupt):  # uvicorn ends well, and then raises it again
        announce(f"http://{LOOPBACK}:{listener.getsockname()[1]}/?token={token}")
        uvicorn.Server(config).run(sockets=[listener])


def _answers(runs: list[FollowedRun], token: str) -> Starlette:
    """What the server answers, one request at a time: they share what was read."""
    shell = live_page([run.label for run in runs])

    async def page(_: Request) -> Response:
        return HTMLResponse(shell)

    async def state(_: Request) -> Response:
        states = [run.look() for run in runs]
        return JSONResponse({"charts": sum(run.version for run in runs), "runs": states})

    async def charts(_: Request) -> Response:
        return JSONResponse(draw_curves([run.metrics for run in runs if run.metrics.series]))

    async def traces(request: Request) -> Response:
        asked = tuple(request.query_params.get(name) for name in ("run", "rollout"))
        places = [(number, run, rollout) for number, run in enumerate(runs) for rollout in run.rollouts]
        for number, run, rollout in places:
            if asked == (str(number), str(rollout)):
                found = read_traces(run.path, trace_files_of(rollout), max_bytes=MAX_TRACE_BYTES)
                return JSONResponse({"blocks": pack_traces([(run.label, found)]), "problems": found.problems})
        return PlainTextResponse("No traces of this rollout lie here any more; choose another.", 404)

    async def guard(request: Request, answer: RequestResponseEndpoint) -> Response:
        refusal = _refusal(request, token)
        response = PlainTextResponse(refusal, 403) if refusal else await answer(request)
        response.headers.update(HEADERS)
        return response

    return Starlette(
        routes=[Route("/", page), *(Route(f"/{answer.__name__}", answer) for answer in (state, charts, traces))],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard), Middleware(GZipMiddleware, minimum_size=2000)],
        exception_handlers={DataError: lambda _, error: PlainTextResponse(str(error), 404)},
    )


def _refusal(request: Request, token: str) -> str | None:
    host = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
    if host not in HOSTS:
        return f"The host is {host[:100]!r}, but must be one of {', '.join(sorted(HOSTS))}."
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return "The request comes from another site."
    if not secrets.compare_digest(request.query_params.get("token", "").encode(), token.encode()):
        return "The token is missing or wrong; open the address that fipo watch printed."
    return None
