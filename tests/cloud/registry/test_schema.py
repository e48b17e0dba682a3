"""Schemathesis reads the OpenAPI document of a running service, and asks what it allows and what it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode

from harmony.cloud.process import running_service
from harmony.cloud.registry.catalogue import Registry

if TYPE_CHECKING:
    from tests.cloud.conftest import Bundle

EXAMPLES = 5
BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def schema(
    bundle: Bundle, folder_registry: Registry, admin_key: str, tmp_path: Path
) -> Iterator[schemathesis.BaseSchema]:
    folder_registry.register(bundle.folder, who="test")
    with running_service(None, "--registry", str(tmp_path / "registry")) as service:
        yield schemathesis.openapi.from_url(f"{service.url}/openapi.json")


def test_nothing_that_the_document_names_can_be_made_to_fail(schema: schemathesis.BaseSchema, admin_key: str) -> None:
    headers = {"Authorization": f"Bearer {admin_key}"}
    asked: Counter[str] = Counter()

    def ask(case: schemathesis.Case[Any]) -> None:
        response = case.call(headers=headers, timeout=20)
        assert response.status_code < 500, (case.as_curl_command(headers), response.text)
        asked[case.operation.label] += 1

    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        BOUNDED(given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE))(ask))()
        with suppress(Unsatisfiable):  # it has no parameter that could be wrong
            BOUNDED(given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))(ask))()
    assert {"POST /v2/models/{model}/infer", "GET /v2/repository/audit", "GET /metrics"} <= asked.keys()
