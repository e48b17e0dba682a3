"""The protocol's model repository: which versions there are, load, unload. And who did what, which needs a registry."""

# No postponed annotations here: FastAPI could not see the dependencies, which are local to a service.
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harmony.cloud.body import declared_length, read_body
from harmony.cloud.deploy import Deployment
from harmony.cloud.keys import Caller
from harmony.cloud.refusal import Refusal, malformed
from harmony.cloud.settings import ServiceSettings

Require = Callable[..., Awaitable[Caller]]
MAX_BODY_BYTES = 64 << 10
_OVERRIDES = "overrides are not offered; register a bundle, and load what is registered"


class IndexEntry(BaseModel):
    """A version in the repository: READY, or UNAVAILABLE and why."""

    name: str
    version: str
    state: str
    reason: str = ""


class AuditEntry(BaseModel):
    """One admin act."""

    id: int
    at: str
    who: str
    act: str
    subject: str
    detail: dict[str, Any]


class _Asked(BaseModel):
    """What the protocol lets a caller of the repository say; more is ignored."""

    model_config = ConfigDict(strict=True)

    ready: bool = False
    parameters: dict[str, Any] = Field(default_factory=dict)


_BODY = {"requestBody": {"content": {"application/json": {"schema": _Asked.model_json_schema()}}}}


def repository_routes(deployment: Deployment, settings: ServiceSettings, read: Require, admin: Require) -> APIRouter:
    """Routes of one service. read, admin: dependencies that let in whose key has that scope."""
    router = APIRouter(prefix="/v2/repository", tags=["repository"])

    async def asked(request: Request) -> _Asked:
        return await _read(request, settings)

    @router.post("/index", dependencies=[Depends(read)], openapi_extra=_BODY)
    async def index(asked: Annotated[_Asked, Depends(asked)]) -> list[IndexEntry]:
        """Every version that is served or named by an alias; with `ready`, only those that are served."""
        entries = [one for one in deployment.index() if one.state == "READY" or not asked.ready]
        return [IndexEntry(name=one.model, version=one.version, state=one.state, reason=one.reason) for one in entries]

    @router.post("/models/{model}/load", openapi_extra=_BODY, response_class=Response)
    async def load(
        model: str, caller: Annotated[Caller, Depends(admin)], asked: Annotated[_Asked, Depends(asked)]
    ) -> None:
        """Serve the model's versions that an alias names; those that are served already are left alone."""
        _refuse_overrides(asked)
        await deployment.set_loaded(model, loaded=True, who=f"key:{caller.name}")

    @router.post("/models/{model}/unload", openapi_extra=_BODY, response_class=Response)
    async def unload(
        model: str, caller: Annotated[Caller, Depends(admin)], _: Annotated[_Asked, Depends(asked)]
    ) -> None:
        """Stop serving the model, once what it was asked is answered."""
        await deployment.set_loaded(model, loaded=False, who=f"key:{caller.name}")

    @router.get("/audit", dependencies=[Depends(admin)])
    async def audit(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100, before: Annotated[int | None, Query(ge=1, lt=1 << 31)] = None
    ) -> list[AuditEntry]:
        """Admin acts, the newest first; `before` an id."""
        return [AuditEntry.model_validate(one) for one in await deployment.audit(limit, before)]

    return router


async def _read(request: Request, settings: ServiceSettings) -> _Asked:
    """The body, which stock clients send without a Content-Type, or not at all."""
    length = request.headers.get("content-length")
    try:
        declared_length(None if length is None else length.encode("latin-1"), MAX_BODY_BYTES)
        body = await read_body(request.receive, limit=MAX_BODY_BYTES, seconds=settings.body_seconds)
    except Refusal as refusal:
        if refusal.reason == "too_large":
            raise Refusal(413, "too_large", f"{refusal}; file: and config {_OVERRIDES}") from None
        raise
    try:
        return _Asked.model_validate_json(body or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise malformed(f"{'.'.join(map(str, first['loc']))[:100]}: {first['msg']}") from None


def _refuse_overrides(asked: _Asked) -> None:
    for name in asked.parameters:
        if name == "config" or name.startswith("file:"):
            raise malformed(f"{name[:64]}: {_OVERRIDES}")
