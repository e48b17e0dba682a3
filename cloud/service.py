"""What one app serves, who may ask, and what is under way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from harmony.cloud.keys import EVERY_SCOPE, ORDINARY, Caller, KeyGrant, KeyRing, KeyScope, granted
from harmony.cloud.lanes import Alias, Lane, Table
from harmony.cloud.metrics import Metrics, Tracer
from harmony.cloud.models import ServedModel
from harmony.cloud.refusal import Refusal, unauthorized
from harmony.cloud.settings import ServiceSettings, names_this_machine
from harmony.cloud.share import Share
from harmony.cloud.waiting import WaitingRoom


class Service:
    """What one app serves: its lanes by path, who may ask, and whether it is going away.

    table: replaced whole when what is served changes, see harmony.cloud.lanes.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        aliases: Sequence[Alias],
        settings: ServiceSettings,
        grants: Iterable[KeyGrant] | None = None,
        share: Share | None = None,
    ) -> None:
        """grants: keys beside those of the settings. None, and no key in the settings: everybody may ask. share: what
        it has in common with other workers, None for a service of one process."""
        self.settings = settings
        self._given = [*granted(settings.keys, ORDINARY), *granted(settings.admin_keys, EVERY_SCOPE)]
        share = share or Share.alone(settings)
        self.keys = KeyRing(is_open=not self._given and grants is None, ledger=share.keys)
        self.grant(grants)
        self.metrics = Metrics(share.counts, _tracer() if settings.otel else None)
        lanes = [Lane.of(model, settings, self.metrics) for model in models]
        self.table = Table(lanes, aliases)
        self.draining = False
        self.inflight_bytes = 0
        self.waiting = WaitingRoom(settings.queue_seconds)

    def grant(self, grants: Iterable[KeyGrant] | None) -> None:
        """From now on these keys count, and those of the settings."""
        self.keys.update((*self._given, *(grants or ())))

    def require_key(self, headers: Mapping[bytes, bytes], *scopes: KeyScope) -> Caller:
        """The caller; 401 for a stranger, 403 if its key has none of the scopes.

        Without keys, 403 for what a web page may have sent: its visitor's browser is on this machine, too. It says so
        by its Origin, or, if the page's name was made to mean this machine, by the Host.
        """
        caller = self.keys.find(headers.get(b"authorization"))
        if caller is None:
            raise unauthorized()
        if caller is self.keys.anyone:
            _, _, origin = headers.get(b"origin", b"//localhost").partition(b"//")
            if not (names_this_machine(headers.get(b"host")) and names_this_machine(origin)):
                raise Refusal(403, "forbidden", "without keys, only this machine may ask, by the name localhost")
        caller.require(*scopes)
        return caller


def _tracer() -> Tracer:
    from harmony.cloud.tracing import BatchTracer  # noqa: PLC0415  (nobody pays for it who did not ask)

    return BatchTracer()
