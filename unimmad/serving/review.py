"""The page on which people look at predictions: pictures, scores, two buttons; each decision is on disk at once.

It serves one folder of predictions. Pictures are asked for by number, so that no path comes from outside, and nothing
is loaded from elsewhere.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from unimmad.checkpoint.feedback import Decision
from unimmad.inference.output import PICTURES
from unimmad.inference.predicted import (
    DECISIONS_NAME,
    Predicted,
    check_known,
    predictions_digest,
    read_decisions,
    read_predictions,
    save_decisions,
)
from unimmad.report.html_page import render_page
from unimmad.serialization.text import one_line
from unimmad.serialization.validation import Entry, first_problem

FROM_HERE_ALONE = (
    "default-src 'none'; img-src 'self' data:; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy of the page."""
HEADERS = {
    "Content-Security-Policy": FROM_HERE_ALONE,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
MOST_BODY_BYTES = 4096
SCRIPT = "review.js"


class _Said(Entry):
    """What the page sends."""

    number: int
    decision: Decision | None
    """None: nothing is said of it any more."""


class Review:
    """A folder's predictions and what was said of them; threads may share it."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ValueError: there are no predictions, or the decisions that lie there are damaged, or of others.
        """
        self.folder = folder
        self.digest = predictions_digest(folder)
        self.predictions = read_predictions(folder)
        self.samples: Sequence[Predicted] = list(self.predictions.values())
        self.file = folder / DECISIONS_NAME
        self.decisions: dict[str, Decision] = read_decisions(self.file, folder, True) if self.file.exists() else {}
        try:
            check_known(self.decisions, self.predictions, folder)
        except ValueError as error:
            raise ValueError(f"{self.file} is of other predictions, move it away: {error}") from None
        self._turn = threading.Lock()

    def decide(self, number: int, decision: Decision | None) -> None:
        """Take a decision, or take it back; it is on disk when this returns.

        Raises:
            IndexError: there is no such sample.
            ValueError: it can't be written, and does not hold.
        """
        name = self._sample(number).name
        with self._turn:
            decisions = {known: said for known, said in self.decisions.items() if known != name}
            if decision is not None:
                decisions[name] = decision
            save_decisions(decisions, self.file, self.digest)
            self.decisions = decisions

    def picture(self, number: int) -> Path | None:
        """A sample's picture where it has one at a place that prediction writes to: anybody may have changed the lines.

        Raises:
            IndexError: there is no such sample.
        """
        said = self._sample(number).picture
        if not said or Path(said).parts[0] != PICTURES or ".." in Path(said).parts or not said.endswith(".png"):
            return None
        path = self.folder / said
        try:
            inside = path.resolve().is_relative_to(self.folder.resolve() / PICTURES)
            return path if inside and path.is_file() else None
        except (OSError, ValueError):  # no name that a file can have
            return None

    def listed(self) -> list[dict[str, Any]]:
        """What the page shows, in the order of the predictions."""
        return [
            {
                "name": one_line(one.name),
                "class": one.class_name,
                "score": one.score,
                "threshold": one.threshold,
                "anomalous": one.anomalous,
                "notes": [one_line(note) for note in one.notes],
                "picture": one.picture is not None,
                "decision": self.decisions.get(one.name),
            }
            for one in self.samples
        ]

    def _sample(self, number: int) -> Predicted:
        if not 0 <= number < len(self.samples):
            raise IndexError(number)
        return self.samples[number]


def create_review_app(review: Review, command: str, host_names: Sequence[str] | None) -> FastAPI:
    """The page as an ASGI application.

    Args:
        review: what is looked at.
        command: what to type when all is done, shown on the page.
        host_names: by which a request may call this machine, as for the service; None: any.
    """
    paths = _Paths(review, command)
    app = FastAPI(
        title="UniMMAD review",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},  # nothing is sent out
    )
    app.add_exception_handler(AnyHTTPException, _refused)
    if host_names is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(host_names), www_redirect=False)
    app.add_api_route("/", paths.page, response_model=None)
    app.add_api_route(f"/{SCRIPT}", paths.script, response_model=None)
    app.add_api_route("/samples", paths.samples, response_model=None)
    app.add_api_route("/pictures/{number}.png", paths.picture, response_model=None)
    app.add_api_route("/decisions", paths.decide, methods=["POST"], response_model=None)
    return app


class _Paths:
    """What the paths share."""

    def __init__(self, review: Review, command: str) -> None:
        self._review = review
        self._page = render_page("review.html.j2", Path("page.html"), folder=review.folder.resolve(), command=command)
        self._script = files("unimmad.report").joinpath("templates", SCRIPT).read_text(encoding="utf-8")

    async def page(self) -> Response:
        return HTMLResponse(self._page, headers=HEADERS)

    async def script(self) -> Response:
        return Response(self._script, media_type="text/javascript", headers=HEADERS)

    async def samples(self) -> Response:
        return JSONResponse(self._review.listed(), headers=HEADERS)

    def picture(self, number: str) -> Response:
        try:
            path = self._review.picture(int(number))
        except (ValueError, IndexError):
            path = None
        if path is None:
            raise HTTPException(404, "there is no such picture")
        return Response(path.read_bytes(), media_type="image/png", headers=HEADERS)

    async def decide(self, request: Request) -> Response:
        """Only of JSON, which a page from elsewhere can't send without being asked for leave, and nobody gives it."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise HTTPException(415, "send JSON")
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BODY_BYTES:
                raise HTTPException(413, f"a decision has {MOST_BODY_BYTES} bytes at most", {"Connection": "close"})
        try:
            said = _Said.model_validate_json(body)
            await asyncio.to_thread(self._review.decide, said.number, said.decision)
        except ValidationError as error:
            raise HTTPException(422, first_problem(error)) from None
        except IndexError:
            raise HTTPException(404, "there is no such sample") from None
        except ValueError as error:
            raise HTTPException(500, one_line(error)) from None
        return JSONResponse({"called": len(self._review.decisions)}, headers=HEADERS)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, {**HEADERS, **(error.headers or {})})
