"""The service as one ASGI application: FastAPI for control, raw ASGI for infer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from harmony.cloud.control import control_routes
from harmony.cloud.deploy import Deployment, Opened
from harmony.cloud.described import with_infer
from harmony.cloud.history import History
from harmony.cloud.infer import InferEndpoint
from harmony.cloud.models import ServedModel
from harmony.cloud.refusal import Refusal
from harmony.cloud.service import Service
from harmony.cloud.settings import ServiceSettings
from harmony.cloud.share import Share
from harmony.cloud.status import status_route

log = logging.getLogger("harmony.cloud")
_BATCH_SECONDS = 1.0  # for the batches that run while the service stops


class ServiceApp(FastAPI):
    """A FastAPI app whose infer paths never enter FastAPI: its routing costs more than a small batch."""

    service: Service
    deployment: Deployment
    history: History
    infer: InferEndpoint

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, with what FastAPI does not route."""
        known = self.openapi_schema is not None
        document = super().openapi()
        return document if known else with_infer(document)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One ASGI connection."""
        if scope["type"] == "http" and _is_infer(scope["path"]):
            await self.infer(scope, receive, send)
            return
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:  # it outlived the drain; nothing of its answer is out yet, or all of it
            await JSONResponse({"error": "the service is stopping"}, 503)(scope, receive, send)


def _is_infer(path: str) -> bool:
    """/v2/models/NAME/infer or /v2/models/NAME/versions/VERSION/infer."""
    return path.endswith("/infer") and path.startswith("/v2/models/") and path.count("/") in (4, 6)


def create_app(
    models: Sequence[ServedModel] | Opened, settings: ServiceSettings, share: Share | None = None
) -> ServiceApp:
    """The app that serves `models`. Its lifespan starts and stops the model threads, and follows the models' source.

    share: what it has in common with other workers, None for a service of one process.
    """
    opened = models if isinstance(models, Opened) else Opened.fixed(models)
    release = version("harmony-sfl")
    app = ServiceApp(
        title="HARMONY fallback",
        version=release,
        description="Open Inference Protocol v2. `POST /v2/models/{model}/infer` is described in docs/serving.md.",
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.service = Service(opened.models, opened.wanted.aliases, settings, opened.wanted.grants, share)
    app.deployment = Deployment(app.service, opened)
    app.history = History(app.service)
    app.infer = InferEndpoint(app.service)
    for router in control_routes(app.service, app.deployment, release):
        app.include_router(router)
    app.include_router(status_route(app.service, app.history, release))
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unexpected)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    assert isinstance(app, ServiceApp)  # noqa: S101  # FastAPI hands over its base class
    service = app.service
    loop = asyncio.get_running_loop()
    for lane in service.table.lanes.values():
        lane.batcher.start(loop)
    beside = [asyncio.create_task(work) for work in (app.deployment.watch(), app.history.keep())]
    try:
        yield
    finally:
        for task in beside:
            task.cancel()
        app.deployment.close()
        for lane in service.table.lanes.values():
            lane.batcher.stop(seconds=0)
        deadline = time.monotonic() + _BATCH_SECONDS
        for lane in service.table.lanes.values():
            lane.batcher.stop(seconds=max(0.0, deadline - time.monotonic()))
        if service.metrics.tracer is not None:
            service.metrics.tracer.close()


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refusal)  # noqa: S101  # registered for this type alone
    request.app.service.metrics.refused(error.reason)
    headers = {name.decode(): value.decode() for name, value in error.headers}
    return JSONResponse({"error": str(error)}, error.status, headers)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    status, detail, headers = 500, "internal error", None
    if isinstance(error, HTTPException):
        status, detail, headers = error.status_code, error.detail, error.headers
    return JSONResponse({"error": f"{request.method} {request.url.path[:200]}: {detail}"}, status, headers)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": "invalid"}
    return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 400)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("unexpected error", exc_info=error, extra={"path": request.url.path[:200]})
    return JSONResponse({"error": "internal error"}, 500)
