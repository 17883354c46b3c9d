"""`fipo watch`: the report of runs that are under way, on this machine alone.

It listens on loopback; every request must carry the token that the address holds, name a loopback host (or another site
could reach it by a name of its own) and come from the page itself. Needs starlette and uvicorn.
"""

import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from fipo.errors import DataError
from fipo.report.curves import draw_curves
from fipo.report.follow import FollowedRun, follow
from fipo.report.page import labels_of, live_page

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


def watch(paths: list[Path], port: int, tell: Callable[[str], None]) -> None:
    """Serves the report of these runs until Ctrl-C; `tell` gets the address.

    Raises:
        DataError: A path is no folder, or the port is taken.
    """
    runs, token, listener = follow(paths, labels_of(paths)), secrets.token_urlsafe(24), socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
        listener.listen()  # so that the address answers as soon as it is told
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"port {port} cannot be had ({why}); choose another with --port.") from error
    address = f"http://{LOOPBACK}:{listener.getsockname()[1]}/?token={token}"
    config = uvicorn.Config(
        watching(runs, token, lambda: tell(address)),
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
    )
    with suppress(KeyboardInterrupt):  # uvicorn ends well, and then raises it again
        uvicorn.Server(config).run(sockets=[listener])


def watching(runs: list[FollowedRun], token: str, ready: Callable[[], None]) -> Starlette:
    """What the server answers. Requests are answered one at a time: they share what was read.

    `ready` is called once a signal ends it as it should.
    """
    lock, page = threading.Lock(), live_page([run.label for run in runs])

    def show_page(_: Request) -> Response:
        return HTMLResponse(page)

    def state(_: Request) -> Response:
        for run in runs:
            run.look()
        return JSONResponse({"charts": sum(run.version for run in runs), "runs": [_state_of(run) for run in runs]})

    def charts(_: Request) -> Response:
        return JSONResponse(draw_curves([run.metrics for run in runs if run.metrics.series]))

    def traces(request: Request) -> Response:
        run, rollout = (_index(request.query_params.get(name)) for name in ("run", "rollout"))
        if run is None or rollout is None or run >= len(runs) or rollout not in runs[run].rollouts:
            raise DataError("No traces of this rollout lie here any more; choose another.")
        return JSONResponse(runs[run].traces(rollout))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        ready()
        yield

    answers = {"/": show_page, "/state": state, "/charts": charts, "/traces": traces}
    return Starlette(
        routes=[Route(path, _guarded(answer, token, lock), methods=["GET"]) for path, answer in answers.items()],
        middleware=[Middleware(GZipMiddleware, minimum_size=2000)],
        exception_handlers={HTTPException: _no_such_page},
        lifespan=lifespan,
    )


def _guarded(answer: Callable[[Request], Response], token: str, lock: threading.Lock) -> Callable[[Request], Response]:
    def guarded(request: Request) -> Response:
        if refusal := _refusal(request, token):
            return PlainTextResponse(refusal, 403, HEADERS)
        try:
            with lock:
                response = answer(request)
        except DataError as error:
            return PlainTextResponse(str(error), 404, HEADERS)
        response.headers.update(HEADERS)
        return response

    return guarded


def _refusal(request: Request, token: str) -> str | None:
    host = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
    if host not in HOSTS:
        return f"The host is {host[:100]!r}, but must be one of {', '.join(sorted(HOSTS))}."
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return "The request comes from another site."
    if not secrets.compare_digest(request.query_params.get("token", "").encode(), token.encode()):
        return "The token is missing or wrong; open the address that fipo watch printed."
    return None


def _state_of(run: FollowedRun) -> dict[str, object]:
    age = None if run.written is None else max(0, round(time.time() - run.written))
    rollouts = list(run.rollouts.items())
    return {"label": run.label, "status": run.status, "updates": run.updates, "age": age, "rollouts": rollouts}


def _no_such_page(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(error.detail, error.status_code, HEADERS)


def _index(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else None
