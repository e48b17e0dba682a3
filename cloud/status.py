"""GET /status: what the service does, for a person. One page without a script, which loads nothing from anywhere.

A browser can send a key, too: as the password of HTTP's basic authentication, with any name.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from harmony.cloud.history import History, quantile
from harmony.cloud.lanes import Lane
from harmony.cloud.metrics import Counted
from harmony.cloud.refusal import Refusal
from harmony.cloud.service import Service

_PAGE = Template(files("harmony.cloud").joinpath("status.html").read_text(encoding="utf-8"))
_STYLE = files("harmony.cloud").joinpath("status.css").read_text(encoding="utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_WHERE = (("exit1", "on the device, first exit"), ("exit2", "on the device, second exit"), ("cloud", "here"))
_SILENT = "No device has told how many samples it answers itself (the header Harmony-Exits of docs/serving.md)."


def status_route(service: Service, history: History, release: str) -> APIRouter:
    """The page, for keys with the scope read."""
    router = APIRouter(tags=["server"])

    @router.get("/status", response_class=HTMLResponse, responses={401: {}, 403: {}})
    async def status(request: Request) -> HTMLResponse:
        """Versions, traffic, latency, exit and offload shares, as a page for people."""
        _require_key(service, dict(request.headers.raw))
        return HTMLResponse(page(service, history, release), headers=_HEADERS)

    return router


def _require_key(service: Service, headers: dict[bytes, bytes]) -> None:
    """Refusal 401, which has a browser ask its user for the key, or 403."""
    sent = headers.get(b"authorization", b"")
    if sent[:6].lower() == b"basic ":
        try:
            headers[b"authorization"] = b"Bearer " + base64.b64decode(sent[6:], validate=True).partition(b":")[2]
        except binascii.Error:
            del headers[b"authorization"]
    try:
        service.require_key(headers, "read")
    except Refusal as refusal:
        if refusal.status != 401:
            raise
        ask = (b"www-authenticate", b'Basic realm="a key of this service, as the password"')
        raise Refusal(401, "unauthorized", str(refusal), headers=(ask,)) from None


def page(service: Service, history: History, release: str) -> str:
    """The whole document."""
    lanes = list(service.table.lanes.values())
    counted = [lane.statistics.counted() for lane in lanes]
    workers = service.settings.workers
    return _PAGE.substitute(
        style=_STYLE,
        state="stopping" if service.draining else "serving",
        release=escape(release),
        workers="1 process" if workers == 1 else f"{workers} workers",
        uptime=_duration(time.monotonic() - history.started),
        tiles=_tiles(history, counted),
        curve=_curve(history.rates()),
        versions="".join(_version(service, lane, one) for lane, one in zip(lanes, counted, strict=True))
        or '<p class="none">No model is loaded.</p>',
        shares="".join(_shares(lane, one) for lane, one in zip(lanes, counted, strict=True)),
        failures=_failures([one.counted() for one in service.metrics.known.values()]),
    )


def _tiles(history: History, counted: list[Counted]) -> str:
    recent = history.last_minute()
    tiles = (
        (f"{recent.rate:,.1f}", "answers a second"),
        (_milliseconds(recent.p50), "median latency"),
        (_milliseconds(recent.p99), "99 % within"),
        (f"{recent.refused:,.1f}", "refusals a second"),
        (f"{sum(one.waiting for one in counted):,}", "samples waiting"),
    )
    return "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for value, name in tiles)


def _curve(rates: list[float]) -> str:
    top = max(*rates, 1.0, 0.0)
    step = 300 / max(len(rates) - 1, 1)
    points = " ".join(f"{place * step:.1f},{58 - 54 * rate / top:.1f}" for place, rate in enumerate(rates))
    line = f"M{points}" if len(rates) > 1 else "M0,58 300,58"
    label = f"now {rates[-1]:,.1f}, at most {max(rates):,.1f}"
    return (
        f'<svg class="curve" viewBox="0 0 300 60" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<path d="{line}"/></svg><p class="none">{label}</p>'
    )


def _version(service: Service, lane: Lane, counted: Counted) -> str:
    model = lane.model
    aliases = [one for one in service.table.aliases if (one.model, one.version) == (model.name, model.version)]
    names = ", ".join(f"{one.name} ({one.share:.0%})" if one.share else one.name for one in aliases)
    batches = counted.compute.count
    rows = (
        ("cut", str(model.feature)),
        ("runs in", model.program.platform),
        ("requests", f"{counted.success.count:,}"),
        ("samples", f"{counted.rows:,}"),
        ("not served", f"{counted.fail.count:,}"),
        ("median latency", _milliseconds(quantile(list(counted.latency), 0.5))),
        ("99 % within", _milliseconds(quantile(list(counted.latency), 0.99))),
        ("computing a batch", _milliseconds(counted.compute.ns / 1e9 / batches if batches else None)),
        ("samples a batch", f"{counted.rows / batches:.1f}" if batches else "–"),
    )
    title = f"{escape(model.name)} {escape(model.version)} <em>{escape(names)}</em>"
    return f'<article class="card"><h3>{title}</h3>{_list(rows)}</article>'


def _shares(lane: Lane, counted: Counted) -> str:
    """Of the samples that a device saw, or at least of those that came here."""
    samples = {str(exit_): count for exit_, count in counted.told.items()} | {"cloud": counted.rows}
    whole = sum(samples.values())
    title = f"<h3>{escape(lane.model.name)} {escape(lane.model.version)}</h3>"
    if not any(counted.told.values()):
        return f'{title}<p class="none">{_SILENT}</p>'
    bars, names, start = "", "", 0.0
    for key, text in _WHERE:
        share = samples[key] / whole
        bars += f'<rect class="{key}" x="{start:.2f}" y="0" width="{100 * share:.2f}" height="10"/>'
        names += f'<li><i class="{key}"></i>{text}: {share:.1%}</li>'
        start += 100 * share
    picture = f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{bars}</svg>'
    return f"{title}{picture}<ul>{names}</ul>"


def _failures(counted: list[Counted]) -> str:
    reasons: dict[str, int] = {}
    for one in counted:
        for reason, count in one.failures.items():
            reasons[reason] = reasons.get(reason, 0) + count
    if not reasons:
        return '<p class="none">Nothing.</p>'
    rows = sorted(reasons.items(), key=lambda one: -one[1])
    return f'<div class="card bad">{_list((name.replace("_", " "), f"{count:,}") for name, count in rows)}</div>'


def _list(rows: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in rows)}</dl>"


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:,.1f} ms"


def _duration(seconds: float) -> str:
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if hours >= 48:
        return f"{hours // 24} days"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min" if minutes else f"{int(seconds)} s"
