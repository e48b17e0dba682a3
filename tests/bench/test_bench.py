"""A real bench of tiny bundles: device processes, a service, everything that is measured."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harmony.bench import BenchEvent, BenchResult, BenchSettings, bench, save_bench
from harmony.bench.bare import BareFrontEnd
from harmony.bench.plan import make_plan
from harmony.bench.result_files import CSV_FILE, JSON_FILE, REPORT_FILE, read_result
from harmony.core.archive import pack
from harmony.core.errors import EngineError
from harmony.core.scores import neg_entropy

RHOS = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def settings(federation: Any, tmp_path_factory: pytest.TempPathFactory) -> BenchSettings:
    """The second device and the cloud are carried about as .tar."""
    folder = tmp_path_factory.mktemp("carried")
    pack(federation.devices[1], folder / "client-001.tar")
    pack(federation.cloud, folder / "cloud.tar")
    return BenchSettings(
        bundles=(federation.devices[0], folder / "client-001.tar"),
        cloud=folder / "cloud.tar",
        rhos=RHOS,
        limit=120,
        rounds=3,
        per_path=4,
        regimes=("hot", "sparse"),
    )


@pytest.fixture(scope="module")
def events() -> list[BenchEvent]:
    return []


@pytest.fixture(scope="module")
def result(settings: BenchSettings, events: list[BenchEvent]) -> BenchResult:
    return bench(settings, events.append)


def test_progress_comes_to_its_end(result: BenchResult, events: list[BenchEvent]) -> None:
    assert [event.done for event in events] == list(range(len(events)))
    assert (events[-1].step, events[-1].done) == ("end", events[-1].total)
    assert [event.step for event in events[:4]] == ["replay", "stream", "timing", "timing"]


def test_numbers_are_those_of_the_programs(result: BenchResult, settings: BenchSettings) -> None:
    """Recounted here from the plain programs: shares, accuracy of the device alone, and who was sent away."""
    for target, measured in zip(make_plan(settings).targets, result.bundles, strict=True):
        bare, own = BareFrontEnd(target.folder, target.manifest), np.asarray(target.manifest.classes.own)
        spec = target.manifest.image
        scaled = ((target.images / 255 - spec.mean[0]) / spec.std[0]).astype(np.float32).transpose(0, 3, 1, 2)
        logits = np.concatenate([bare.exit2(image[None])[1] for image in scaled])
        scores, local = neg_entropy(logits), own[logits.argmax(1)]
        exit1, exit2 = (scores >= np.float32(one.threshold) for one in target.manifest.exits)
        hardest = measured.hardest
        assert (hardest.n_id, hardest.n_ood) == (60, 60)
        assert hardest.exit1 == pytest.approx(exit1.mean())
        assert hardest.cloud == hardest.unsure == pytest.approx((~exit2).mean())
        assert hardest.accuracy.client == pytest.approx((local == target.truth).mean())
        assert hardest.offload_id == pytest.approx((~exit2)[target.stream.is_id].mean())
        assert hardest.degraded == 0


def test_offloading_buys_accuracy(result: BenchResult) -> None:
    for one in result.bundles:
        accuracy = one.hardest.accuracy
        assert accuracy.client is not None
        assert accuracy.oracle is not None
        assert accuracy.client < accuracy.overall < accuracy.oracle
        assert [mix.rho for mix in one.mixes] == list(RHOS)


def test_every_way_was_timed_in_every_regime(result: BenchResult) -> None:
    for one in result.bundles:
        assert [timing.conditions.regime for timing in one.timings] == ["hot", "sparse"]
        for timing in one.timings:
            assert [path.path for path in timing.paths] == ["exit1", "exit2", "cloud"]
            for path in timing.paths:
                assert path.wall.n == 12
                assert 0 < path.wall.min <= path.wall.median <= path.wall.p90 <= path.wall.p99
                assert (path.bare is None) == (path.path == "cloud")
            assert timing.ratio is not None
            assert timing.ratio.rounds == 3


def test_processes_and_bytes(result: BenchResult) -> None:
    for one in result.bundles:
        assert not one.process.torch_loaded
        assert 10e6 < one.process.peak_rss_bytes < 200e6
        assert one.wire.request is not None
        frame = {size.codec: size.frame_bytes for size in one.wire.codecs}
        assert frame["fp32"] == 12 + 4 * 98
        assert frame["fp16"] == 12 + 2 * 98
        assert one.wire.request.median > frame["int8-zstd"]
        assert one.wire.image_bytes == 784


def test_predictions_for_every_link(result: BenchResult) -> None:
    for one in result.bundles:
        by_link = {prediction.link: prediction for prediction in one.predictions if prediction.path == "cloud"}
        assert list(by_link) == ["wifi", "lte", "4g", "3g"]
        assert 0.070 < by_link["lte"].median_s < by_link["4g"].median_s < by_link["3g"].median_s
        assert [prediction.path for prediction in one.predictions if prediction.link is None] == ["exit1", "exit2"]


def test_limits_beside_measured_values(result: BenchResult) -> None:
    assert [(bar.limit, bar.unit) for bar in result.speed] == [(1.15, "×"), (80.0, "MB"), (0.3, "s")]
    assert all(bar.value > 0 for bar in result.speed)


def test_saved_and_read_back(result: BenchResult, tmp_path: Path) -> None:
    save_bench(tmp_path / "out", result)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted((JSON_FILE, CSV_FILE, REPORT_FILE))
    assert read_result(tmp_path / "out" / JSON_FILE, BenchResult) == result.model_copy()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / CSV_FILE).read_text())))
    found = json.loads((tmp_path / "out" / JSON_FILE).read_text())
    assert len(rows) == 6
    assert float(rows[2]["accuracy_overall"]) == found["bundles"][0]["mixes"][2]["accuracy"]["overall"]


def test_without_a_cloud_the_device_has_the_last_word(settings: BenchSettings, federation: Any) -> None:
    alone = settings.model_copy(update={"cloud": None, "bundles": federation.devices[:1], "regimes": ("hot",)})
    (one,) = bench(alone).bundles
    assert one.hardest.cloud == 0
    assert one.hardest.unsure > 0
    assert one.hardest.degraded == 0
    assert one.hardest.accuracy.overall == one.hardest.accuracy.client
    assert (one.hardest.accuracy.server, one.hardest.accuracy.oracle, one.wire.request) == (None, None, None)
    assert {prediction.path for prediction in one.predictions} == {"exit1", "exit2"}


def test_a_server_that_is_not_there(settings: BenchSettings, federation: Any) -> None:
    gone = settings.model_copy(
        update={"cloud": None, "server": "http://127.0.0.1:1", "bundles": federation.devices[:1]}
    )
    with pytest.raises(EngineError, match=r"client-000: the device process ended with code 2: .*CloudUnreachable"):
        bench(gone)
