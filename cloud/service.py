"""What one app serves, who may ask, and what is under way."""

from __future__ import annotations

from collections.abc import Sequence

from harmony.cloud.keys import EVERY_SCOPE, ORDINARY, Caller, KeyRing, KeyScope, granted
from harmony.cloud.lanes import LATEST, Alias, Lane, Table
from harmony.cloud.metrics import Metrics
from harmony.cloud.models import ServedModel
from harmony.cloud.refusal import unauthorized
from harmony.cloud.settings import ServiceSettings


class Service:
    """What one app serves: its lanes by path, who may ask, and whether it is going away.

    table: replaced whole when what is served changes, see harmony.cloud.lanes.
    """

    def __init__(self, models: Sequence[ServedModel], settings: ServiceSettings) -> None:
        self.settings = settings
        given = [*granted(settings.keys, ORDINARY), *granted(settings.admin_keys, EVERY_SCOPE)]
        self.keys = KeyRing(given, is_open=not given)
        self.metrics = Metrics()
        lanes = [Lane.of(model, settings, self.metrics) for model in models]
        self.table = Table(lanes, [Alias(model.name, LATEST, model.version) for model in models])
        self.draining = False
        self.inflight_bytes = 0

    def require_key(self, authorization: bytes | None, scope: KeyScope) -> Caller:
        """The caller; 401 for a stranger, 403 if its key lacks the scope."""
        caller = self.keys.find(authorization)
        if caller is None:
            raise unauthorized()
        caller.require(scope)
        return caller
