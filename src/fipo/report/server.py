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
MOST_POINTS = 2000  # of a line: a chart is some 600 pixels wide
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Watch:
    """What the server answers. Requests are answered one at a time: they share what was read. `ready` is called once a
    signal ends it as it should."""

    def __init__(self, runs: list[FollowedRun], token: str, ready: Callable[[], None]) -> None:
        self.runs, self.token, self.ready = runs, token, ready
        self.lock = threading.Lock()
        self.page = live_page([run.label for run in runs])

    def app(self) -> Starlette:
        routes = {"/": self._page, "/state": self._state, "/charts": self._charts, "/traces": self._traces}
        guarded = [Route(path, self._guard(answer), methods=["GET"]) for path, answer in routes.items()]
        return Starlette(
            routes=guarded,
            middleware=[Middleware(GZipMiddleware, minimum_size=2000)],
            exception_handlers={HTTPException: _no_such_page},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.ready()
        yield

    def _guard(self, answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
        def guarded(request: Request) -> Response:
            refusal = self._refusal(request)
            response = PlainTextResponse(refusal, 403) if refusal else self._answer(answer, request)
            response.headers.update(HEADERS)
            return response

        return guarded

    def _answer(self, answer: Callable[[Request], Response], request: Request) -> Response:
        with self.lock:
            try:
                return answer(request)
            except DataError as error:
                return PlainTextResponse(str(error), 404)

    def _refusal(self, request: Request) -> str | None:
        host = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
        if host not in HOSTS:
            return f"The host is {host[:100]!r}, but must be one of {', '.join(sorted(HOSTS))}."
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "The request comes from another site."
        if not secrets.compare_digest(request.query_params.get("token", "").encode(), self.token.encode()):
            return "The token is missing or wrong; open the address that fipo watch printed."
        return None

    def _page(self, request: Request) -> Response:
        return HTMLResponse(self.page)

    def _state(self, request: Request) -> Response:
        for run in self.runs:
            run.look()
        return JSONResponse(
            {
                "charts": sum(run.version for run in self.runs),
                "runs": [
                    {
                        "label": run.label,
                        "status": run.status,
                        "updates": run.updates,
                        "age": None if run.written is None else max(0, round(time.time() - run.written)),
                        "rollouts": list(run.rollouts.items()),
                    }
                    for run in self.runs
                ],
            }
        )

    def _charts(self, request: Request) -> Response:
        known = [run.metrics for run in self.runs if run.metrics.series]
        return JSONResponse(draw_curves(known, MOST_POINTS))

    def _traces(self, request: Request) -> Response:
        run, rollout = (_index(request.query_params.get(name)) for name in ("run", "rollout"))
        if run is None or rollout is None or run >= len(self.runs) or rollout not in self.runs[run].rollouts:
            raise DataError("No traces of this rollout lie here any more; choose another.")
        return JSONResponse(self.runs[run].traces(rollout))


def _no_such_page(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(error.detail, error.status_code, HEADERS)


def _index(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else None


def watch(paths: list[Path], port: int, tell: Callable[[str], None]) -> None:
    """Serves the report of these runs until Ctrl-C; `tell` gets the address.

    Raises:
        DataError: A path is no folder, or the port is taken.
    """
    runs = follow(paths, labels_of(paths))
    token = secrets.token_urlsafe(24)
    listener = _listen(port)
    address = f"http://{LOOPBACK}:{listener.getsockname()[1]}/?token={token}"
    app = Watch(runs, token, lambda: tell(address)).app()
    with suppress(KeyboardInterrupt):  # uvicorn ends well, and then raises it again
        config = uvicorn.Config(app, lifespan="on", log_level="error", access_log=False, server_header=False)
        uvicorn.Server(config).run(sockets=[listener])


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
        listener.listen()  # so that the address answers as soon as it is told
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"port {port} cannot be had ({why}); choose another with --port.") from error
    return listener
