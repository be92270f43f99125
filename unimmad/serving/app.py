"""The service's paths: samples in, answers out, and how it is doing."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

import unimmad
from unimmad.inference.detector import Detector
from unimmad.inference.prediction import Prediction
from unimmad.serialization.text import one_line
from unimmad.serving.answers import Answer, Refusal, answer
from unimmad.serving.batching import Batching, BatchScorer, NotScoredError, Question, QueueFullError
from unimmad.serving.forms import UploadLimits, read_form
from unimmad.serving.metrics import ServingMetrics
from unimmad.serving.openapi import api_page, request_body

logger = logging.getLogger(__name__)

LEFT = 499
"""Status, as others have it, of a request whose sender has left: it is counted, and nobody reads it."""
REFUSALS = {
    400: "The form is not one sample: no image, a part that is not known, two of a kind, too many",
    408: "The request did not arrive in time",
    413: "It is larger than the limit",
    415: "It is not a form",
    422: "An image can't be read or does not fit, or the class, dataset or modality is not known",
    429: "Too many requests are in the house: ask again after as many seconds as Retry-After says",
    500: "The sample was read and could not be scored; the service's log says more",
}
NOTHING_ELSEWHERE = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
"""Content security policy of the page: it loads nothing, and runs nothing."""


@dataclass(frozen=True)
class ServingSettings:
    """How a detector is served."""

    title: str = "UniMMAD"
    """What the page is called: the checkpoint, say."""
    batching: Batching = field(default_factory=Batching)
    limits: UploadLimits = field(default_factory=UploadLimits)
    host_names: tuple[str, ...] | None = None
    """By which a request may call this machine, others are refused: a page in a browser could have its own name lead
    here. None: any."""


def create_app(detector: Detector, settings: ServingSettings) -> FastAPI:
    """The service as an ASGI application. Its threads run from its start-up to its shutdown."""
    service = _Service(detector, settings)
    app = FastAPI(
        title=settings.title,
        version=unimmad.__version__,
        description="Anomaly scores of samples, each of one or several images",
        lifespan=service.lifespan,
        docs_url=None,  # these pages run scripts from another server
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},  # nothing is sent out
    )
    app.add_exception_handler(AnyHTTPException, _refused)
    app.add_exception_handler(Exception, _failed)
    if settings.host_names is not None:
        names = list(settings.host_names)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)
    app.add_api_route(
        "/predict",
        service.predict,
        methods=["POST"],
        summary="Score one sample",
        response_model=None,
        responses={
            200: {"model": Answer, "description": "What is said of it"},
            **{status: {"model": Refusal, "description": said} for status, said in REFUSALS.items()},
        },
        openapi_extra=request_body(detector),
    )
    app.add_api_route("/healthz", service.live, summary="Whether the service runs: 200, or 503", response_model=None)
    app.add_api_route("/readyz", service.ready, summary="Whether it takes requests: 200, or 503", response_model=None)
    app.add_api_route("/metrics", service.count, summary="Counts for Prometheus", response_class=Response)

    async def page() -> HTMLResponse:
        return HTMLResponse(api_page(app.openapi()), headers={"Content-Security-Policy": NOTHING_ELSEWHERE})

    app.add_api_route("/", page, include_in_schema=False, response_model=None)
    return app


class _Service:
    """What the paths share."""

    def __init__(self, detector: Detector, settings: ServingSettings) -> None:
        self._detector = detector
        self._settings = settings
        self._scorer: BatchScorer | None = None
        self._metrics = ServingMetrics(lambda: self._scorer.inside if self._scorer else 0)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        self._scorer = scorer = BatchScorer(self._detector, self._settings.batching, self._metrics.scored)
        try:
            yield
        finally:
            await asyncio.to_thread(scorer.close)

    async def predict(self, request: Request) -> Response:
        """One form is one sample: its images as parts called by their modalities, all else as the table says."""
        try:
            answered = await self._answered(request)
        except AnyHTTPException as refusal:
            self._metrics.answered(refusal.status_code)
            raise
        except ClientDisconnect:
            self._metrics.answered(LEFT)
            return Response(status_code=LEFT)
        except Exception:
            self._metrics.answered(500)
            raise
        self._metrics.answered(200)
        return answered

    async def _answered(self, request: Request) -> Response:
        started = time.perf_counter()
        scorer = self._scorer
        assert scorer is not None, "start-up comes before requests"
        try:
            with scorer.admitted():
                form = await read_form(request, self._detector.catalogue, self._settings.limits)
                prediction = await _scored(scorer, form.question)
                body = await _encoded(prediction, form.maps)
        except QueueFullError as full:
            raise HTTPException(
                429,
                f"{scorer.batching.queue_size} requests are in the house already: ask again in {full.retry_after} s",
                {"Retry-After": str(full.retry_after)},
            ) from None
        self._metrics.predicted(prediction, time.perf_counter() - started)
        return Response(body, media_type="application/json")

    async def live(self) -> JSONResponse:
        running = self._scorer is not None and self._scorer.alive
        return JSONResponse({"live": running}, 200 if running else 503)

    async def ready(self) -> JSONResponse:
        scorer = self._scorer
        ready = scorer is not None and scorer.alive and scorer.inside < scorer.batching.queue_size
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def count(self) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _scored(scorer: BatchScorer, question: Question) -> Prediction:
    """
    Raises:
        HTTPException: the sample can't be scored.
    """
    try:
        return await asyncio.wrap_future(scorer.ask(question))
    except ValueError as error:
        raise HTTPException(422, one_line(error)) from None
    except NotScoredError as error:
        logger.error("%s", one_line(error))
        raise HTTPException(500, one_line(f"the sample could not be scored: {error}")) from None


async def _encoded(prediction: Prediction, maps: Sequence[str]) -> bytes:
    """The answer's JSON; maps are drawn and written beside the loop that serves the others."""
    try:
        said = await asyncio.to_thread(answer, prediction, maps) if maps else answer(prediction, maps)
    except ValueError as error:
        raise HTTPException(422, one_line(error)) from None
    return json.dumps(said, ensure_ascii=False, allow_nan=False).encode()


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": f"{type(error).__name__}: the service's log says more"}, 500)
