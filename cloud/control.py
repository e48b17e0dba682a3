"""Everything but infer: health, metadata, statistics, metrics. FastAPI routes, documented at /docs.

Health is open, so that a load balancer needs no key, and so are /docs and /openapi.json, which say nothing about the
models. Everything else needs a key: names, shapes and counts of models are nobody else's business.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response, Security
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict

from harmony.cloud.deploy import Deployment
from harmony.cloud.keys import Caller, KeyScope
from harmony.cloud.lanes import Lane, Table
from harmony.cloud.metrics import Total
from harmony.cloud.outputs import OWN_MASS, PROBABILITIES
from harmony.cloud.refusal import Refusal, malformed
from harmony.cloud.repository import repository_routes
from harmony.cloud.service import Service
from harmony.cloud.tensors import FEATURE, FRAME

EXTENSIONS = ("binary_tensor_data", "statistics", "model_configuration", "model_repository")
_NOTHING = Total()
Describe = Callable[[Lane, Table], dict[str, Any]]
_bearer = HTTPBearer(auto_error=False, description="an API key of this service")


class Protocol(BaseModel):
    """Base of the answers; `model_` is the protocol's prefix, not pydantic's."""

    model_config = ConfigDict(protected_namespaces=())


class Failure(Protocol):
    """Every error's body."""

    error: str


class ServerMetadata(Protocol):
    """Who answers."""

    name: str
    version: str
    extensions: Sequence[str]


class TensorMetadata(Protocol):
    """One tensor; −1 is the batch axis."""

    name: str
    datatype: str
    shape: Sequence[int]


class ModelMetadata(Protocol):
    """A model; `inputs` are alternatives, a request sends one of them. parameters.cut is its cut contract."""

    name: str
    versions: Sequence[str]
    platform: str
    inputs: Sequence[TensorMetadata]
    outputs: Sequence[TensorMetadata]
    parameters: dict[str, str]


_KEYED: dict[int | str, dict[str, Any]] = {401: {"model": Failure}, 403: {"model": Failure}}


def control_routes(service: Service, deployment: Deployment, version: str) -> tuple[APIRouter, ...]:
    """Open routes, routes that need a key, the model repository of a service, and what it refuses by name."""
    read, admin = _require(service, "read"), _require(service, "admin")
    repository = repository_routes(deployment, service.settings, read, admin)
    return _health(service), _keyed(service, version, [Depends(read)]), _models(service), repository, _shared(read)


def _health(service: Service) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        """The process answers."""
        return {"live": True}

    @router.get("/v2/health/ready", responses={503: {"model": Failure}})
    async def ready() -> dict[str, bool]:
        """Every model is loaded, and the service is not stopping."""
        if service.draining:
            raise Refusal(503, "stopping", "the service is stopping")
        return {"ready": True}

    return router


def _keyed(service: Service, version: str, read: Sequence[Any]) -> APIRouter:
    router = APIRouter(dependencies=read, responses=_KEYED)

    @router.get("/v2", tags=["server"])
    async def server() -> ServerMetadata:
        """Name, version and protocol extensions of this server."""
        return ServerMetadata(name="harmony", version=version, extensions=EXTENSIONS)

    @router.get("/metrics", tags=["server"], response_class=Response)
    async def metrics() -> Response:
        """Prometheus text."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v2/models/stats", tags=["models"])
    async def all_statistics() -> dict[str, Any]:
        """Counts and times of every model since the start, in nanoseconds."""
        return {"model_stats": [statistics(lane) for lane in service.table.lanes.values()]}

    @router.get("/v2/models/{model}/stats", tags=["models"], responses={404: {"model": Failure}})
    async def model_statistics(model: str) -> dict[str, Any]:
        """Counts and times of every served version of a model since the start, in nanoseconds."""
        return {"model_stats": [statistics(lane) for lane in service.table.of_model(model)]}

    @router.get("/v2/models/{model}/versions/{version}/stats", tags=["models"], responses={404: {"model": Failure}})
    async def version_statistics(model: str, version: str) -> dict[str, Any]:
        """Counts and times of one version since the start, in nanoseconds."""
        return {"model_stats": [statistics(service.table.route(model, version).lane)]}

    return router


def _models(service: Service) -> APIRouter:
    """What a model takes: for whoever may ask it, too."""
    router = APIRouter(dependencies=[Depends(_require(service, "read", "infer"))], responses=_KEYED)
    for suffix, describe in _DESCRIPTIONS.items():
        _add_model_route(router, service, suffix, describe)
    return router


def _shared(read: Any) -> APIRouter:
    """The protocol's shared memory, which is refused: it would be the service's own memory, in strangers' hands."""
    router = APIRouter(prefix="/v2", dependencies=[Depends(read)], include_in_schema=False)

    @router.api_route("/systemsharedmemory/{what:path}", methods=["GET", "POST"])
    @router.api_route("/cudasharedmemory/{what:path}", methods=["GET", "POST"])
    async def shared_memory(what: str) -> None:
        raise malformed("shared memory is not offered; send tensors in the body")

    return router


def _require(service: Service, *scopes: KeyScope) -> Callable[..., Awaitable[Caller]]:
    """A dependency that lets in whose key has one of the scopes."""

    async def require_key(request: Request, _: Annotated[Any, Security(_bearer)]) -> Caller:
        return service.require_key(dict(request.headers.raw), *scopes)

    return require_key


def _add_model_route(router: APIRouter, service: Service, suffix: str, describe: Describe) -> None:
    """The same description with and without a version, or an alias, in the path; `cut` picks what an alias means."""

    async def latest(model: str, cut: str | None = None) -> JSONResponse:
        return JSONResponse(describe(service.table.route(model).lane_for(cut), service.table))

    async def exact(model: str, version: str, cut: str | None = None) -> JSONResponse:
        return JSONResponse(describe(service.table.route(model, version).lane_for(cut), service.table))

    for path, endpoint in (("", latest), ("/versions/{version}", exact)):
        router.add_api_route(
            f"/v2/models/{{model}}{path}{suffix}",
            endpoint,
            name=describe.__name__,
            description=describe.__doc__ or "",
            responses={404: {"model": Failure}, 409: {"model": Failure}},
            tags=["models"],
        )


def metadata(lane: Lane, table: Table) -> dict[str, Any]:
    """Inputs, outputs and cut contract of a version, its aliases, and every version of its model that is served."""
    model = lane.model
    aliases = [one.name for one in table.aliases if (one.model, one.version) == (model.name, model.version)]
    return ModelMetadata(
        name=model.name,
        versions=[one.model.version for one in table.of_model(model.name)],
        platform=model.program.platform,
        inputs=[
            TensorMetadata(name=FEATURE, datatype="FP32", shape=[-1, *model.feature.shape]),
            TensorMetadata(name=FRAME, datatype="BYTES", shape=[-1]),
        ],
        outputs=[
            TensorMetadata(name=PROBABILITIES, datatype="FP32", shape=[-1, model.tokens]),
            TensorMetadata(name=OWN_MASS, datatype="FP32", shape=[-1]),
        ],
        parameters={"cut": str(model.feature), "version": model.version, "aliases": ",".join(sorted(aliases))},
    ).model_dump()


def ready(lane: Lane, _: Table) -> dict[str, Any]:
    """Whether the model can be asked."""
    return {"name": lane.model.name, "ready": True}


def config(lane: Lane, _: Table) -> dict[str, Any]:
    """The model in the form of Triton's configuration."""
    model, expected = lane.model, lane.expected
    return {
        "name": model.name,
        "platform": model.program.platform,
        "max_batch_size": expected.max_batch,
        "input": [
            {"name": FEATURE, "data_type": "TYPE_FP32", "dims": list(model.feature.shape), "optional": True},
            {"name": FRAME, "data_type": "TYPE_STRING", "dims": [1], "reshape": {"shape": []}, "optional": True},
        ],
        "output": [
            {"name": PROBABILITIES, "data_type": "TYPE_FP32", "dims": [model.tokens]},
            {"name": OWN_MASS, "data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}},
        ],
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
    }


def statistics(lane: Lane) -> dict[str, Any]:
    """Counts and times of the model since the start, in nanoseconds."""
    counted = lane.statistics.counted()
    return {
        "name": lane.model.name,
        "version": lane.model.version,
        "last_inference": counted.last_ms,
        "inference_count": counted.rows,
        "execution_count": counted.compute.count,
        "inference_stats": {
            "success": _total(counted.success),
            "fail": _total(counted.fail),
            "queue": _total(counted.queue),
            **_computed(counted.compute),
            "cache_hit": _total(_NOTHING),
            "cache_miss": _total(_NOTHING),
        },
        "batch_stats": [{"batch_size": rows, **_computed(total)} for rows, total in sorted(counted.by_rows.items())],
        "memory_usage": [],
    }


def _computed(total: Total) -> dict[str, dict[str, int]]:
    """Reading the input and writing the output are part of the one run."""
    nothing = _total(Total(count=total.count))
    return {"compute_input": nothing, "compute_infer": _total(total), "compute_output": nothing}


def _total(total: Total) -> dict[str, int]:
    return {"count": total.count, "ns": total.ns}


_DESCRIPTIONS: dict[str, Describe] = {"": metadata, "/ready": ready, "/config": config}
