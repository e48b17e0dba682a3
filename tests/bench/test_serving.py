"""The serving benchmark's own parts: its back ends, its probe, its arithmetic. Figures are not asserted here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from harmony.bench.serving import cpu_seconds, measured, summary, table
from harmony.bench.serving_attack import main as attack
from harmony.bench.serving_load import LoadResult, LoadSettings
from harmony.bench.serving_models import write_bundles
from harmony.bench.serving_peers import environment
from harmony.bench.serving_probe import probe
from harmony.bench.serving_requests import CUT
from harmony.cloud.models import Weights, open_model, open_models
from harmony.core.bundle import VECTORS, read_vectors
from harmony.core.errors import ServiceError


def test_back_ends_are_served_as_they_are_and_quantised(tmp_path: Path) -> None:
    plain, quantised, mflop = write_bundles(tmp_path, 32)
    assert 30 < mflop < 31
    (fp32,), (int8,) = open_models(plain), open_models(quantised)
    assert fp32.feature == int8.feature == CUT
    feature = read_vectors(plain / VECTORS)["feature"]
    exact, rounded = fp32.program.run(feature), int8.program.run(feature)
    assert 0 < np.abs(exact - rounded).max() < 0.05, "a quantised model is nearly the same, and not the same"
    in_torch = open_model(plain, weights=Weights(plain.parent / "checkpoint"))
    np.testing.assert_allclose(in_torch.program.run(feature), exact, atol=1e-5)
    assert (quantised / "back_end.onnx").stat().st_size < (plain / "back_end.onnx").stat().st_size / 2
    found = probe(plain, 0.01)
    assert set(found) == {"8", "16", "32"}
    assert min(found.values()) > 0


def result(statuses: dict[str, int]) -> LoadResult:
    return LoadResult(
        settings=LoadSettings(),
        seconds=1,
        sent=sum(statuses.values()),
        statuses=statuses,
        broken=0,
        unanswered=0,
        goodput=float(statuses.get("200", 0)),
        latency=None,
        late_ms=0,
        sent_bytes=0,
        received_bytes=0,
    )


def test_cpu_is_counted_for_answers_alone() -> None:
    def burn() -> LoadResult:
        before = cpu_seconds(os.getpid())
        while cpu_seconds(os.getpid()) < before + 0.1:
            pass
        return result({"200": 10, "503": 90})

    values = measured(os.getpid(), burn)
    assert 9.9 < values["cpu_ms"] < 40
    assert values["refused"] == 90
    assert "cpu_ms" not in measured(os.getpid(), lambda: result({"503": 5}))


def test_shares_are_of_the_same_round() -> None:
    found = {"probe": [{"cpu_ms": 1.0}, {"cpu_ms": 2.0}, {"cpu_ms": 4.0}], "case": [{"cpu_ms": 2.0}, {"cpu_ms": 2.5}]}
    found["case"].append({"cpu_ms": 4.0, "p99_ms": 3.0})
    values = summary("case", found, "probe")
    assert values["share"] == {"median": 0.8, "min": 0.5, "max": 1.0, "rounds": [0.5, 0.8, 1.0]}
    assert "p99_ms" not in values, "what one round lacks has no median"
    text = table({"cases": {"case": values, "probe": summary("probe", found, None)}})
    assert "0.800" in text


def test_a_peer_that_cannot_be_installed_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ServiceError, match="litserve cannot be installed"):
        environment("litserve", tmp_path / "cache")


def test_a_short_fuzz_and_a_short_soak(capsys: pytest.CaptureFixture[str]) -> None:
    """The long ones are commands; what they say when all is well, and that they look at all."""
    attack(["fuzz", "--count", "300", "--seed", "5"])
    said = json.loads(capsys.readouterr().out)["fuzz"]
    assert sum(said["statuses"].values()) == 300
    assert {"200", "400"} <= set(said["statuses"])
    attack(["soak", "--count", "400", "--connections", "4"])
    assert json.loads(capsys.readouterr().out)["soak"]["requests"] == 400
