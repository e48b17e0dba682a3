"""A small, made-up result that has everything a real one can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harmony.bench.curves import ClientCurve, CurvePoint, MethodCurves
from harmony.bench.links import LINKS
from harmony.bench.results import (
    Accuracy,
    AnswerPath,
    Bar,
    BenchResult,
    BenchSettings,
    BundleResult,
    CodecSize,
    Conditions,
    Host,
    MixResult,
    PathTiming,
    Prediction,
    Process,
    Timing,
    Wire,
)
from harmony.bench.statistics import ratio, summarise

RHOS = (0.0, 0.5, 1.0)
ARCHITECTURES = ("resnet-w16-d1", "mobilenet-w16-d1", "resnet-w24-d1", "mobilenet-w24-d1")


def _mix(rho: float, client: int) -> MixResult:
    cloud = 0.08 + 0.38 * rho + 0.01 * client
    return MixResult(
        rho=rho,
        n_id=600,
        n_ood=round(600 * rho),
        exit1=0.44 - 0.2 * rho,
        exit2=1 - cloud - (0.44 - 0.2 * rho),
        cloud=cloud,
        degraded=0.0,
        offload_id=0.1,
        keep_ood=0.2 if rho else None,
        accuracy=Accuracy(
            overall=0.91 - 0.1 * rho - 0.005 * client,
            id=0.92,
            ood=0.76 if rho else None,
            client=0.9 / (1 + rho),
            server=0.84,
            oracle=0.87,
        ),
    )


def _bundle(client: int) -> BundleResult:
    speed = 1 + 0.4 * (client % 4)
    local_paths: tuple[tuple[AnswerPath, float], ...] = (("exit1", 1.0), ("exit2", 2.2))
    paths = tuple(
        PathTiming(
            path=path,
            wall=summarise([0.0002 * speed * factor * (1 + 0.02 * i) for i in range(50)]),
            cpu=summarise([0.0002 * speed * factor for _ in range(50)]),
            bare=summarise([0.00018 * speed * factor] * 50),
            ratio=ratio([1.07, 1.08, 1.1, 1.06, 1.09]),
        )
        for path, factor in local_paths
    )
    offload = PathTiming(path="cloud", wall=summarise([0.0035] * 50), cpu=summarise([0.0012] * 50))
    links = tuple(
        Prediction(
            path="cloud",
            link=name,
            median_s=0.003 + link.exchange_s(1500, 400),
            p90_s=0.004 + link.exchange_s(1500, 400),
            cold_median_s=0.003 + link.exchange_s(1500, 400, cold=True),
        )
        for name, link in LINKS.items()
    )
    local = tuple(Prediction(path=p.path, link=None, median_s=p.wall.median, p90_s=p.wall.p90) for p in paths)
    return BundleResult(
        name=f"client-{client:03d}",
        run="demo",
        method="harmony",
        client=client,
        architecture=ARCHITECTURES[client % 4],
        parameters=40_000 + 1000 * client,
        dataset="fashion-mnist-mini",
        own_classes=("Shirt", "Bag", "Sneaker"),
        engine="onnxruntime",
        file_bytes={"onnxruntime": 160_000 + 9000 * client, "executorch": 190_000 + 9000 * client},
        mixes=tuple(_mix(rho, client) for rho in RHOS),
        process=Process(peak_rss_bytes=71_000_000, torch_loaded=False, cpu_s=1.4, versions={"onnxruntime": "1.0"}),
        wire=Wire(
            codec="int8-zstd",
            request=summarise([1500, 1520, 1490]),
            answer=summarise([400, 400, 410]),
            codecs=(
                CodecSize(codec="fp32", frame_bytes=6284),
                CodecSize(codec="fp16", frame_bytes=3148),
                CodecSize(codec="int8-zstd", frame_bytes=1180),
            ),
            image_bytes=784,
        ),
        timings=(
            Timing(
                conditions=Conditions(engine="onnxruntime", regime="hot"),
                first_answer_s=0.004,
                rounds=5,
                paths=(*paths, offload),
                ratio=ratio([1.07, 1.08, 1.1, 1.06, 1.09]),
            ),
        ),
        predictions=(*local, *links),
    )


@pytest.fixture
def result() -> BenchResult:
    """Eight devices, three mixes."""
    settings: dict[str, Any] = {"bundles": (Path("bundles/client-000"),), "rhos": RHOS, "key": "secret-key"}
    return BenchResult(
        harmony_version="0.1.0",
        settings=BenchSettings(**settings),
        host=Host(
            cpu="A CPU",
            cores=2,
            affinity=(0, 1),
            memory_bytes=8 << 30,
            system="Linux 6 x86_64",
            python="3.11.2",
            versions={"numpy": "2.0"},
            commit=None,
            load_before=0.1,
            load_after=0.9,
            steal=0.003,
        ),
        links=tuple(LINKS.values()),
        bundles=tuple(_bundle(client) for client in range(8)),
        speed=(
            Bar(name="device path over the bare engine call", value=1.08, limit=1.15, unit="×"),
            Bar(name="peak memory of a device process", value=71.0, limit=80.0, unit="MB"),
            Bar(name="harmony --help, CPU", value=0.34, limit=0.3, unit="s"),
        ),
    )


@pytest.fixture
def curves() -> dict[str, MethodCurves]:
    """Two methods, eight clients."""

    def clients(top: float, fall: float, ood: float) -> MethodCurves:
        def point(rho: float, client: int) -> CurvePoint:
            accuracy = Accuracy(
                overall=top - fall * rho - 0.01 * client,
                id=top,
                ood=ood if rho else None,
                client=0.85 / (1 + rho),
                server=(0.84 + ood) / 2,
                oracle=(0.9 + ood) / 2,
            )
            return CurvePoint(rho=rho, accuracy=accuracy)

        return MethodCurves(
            clients=tuple(
                ClientCurve(client=c, architecture=ARCHITECTURES[c % 4], points=tuple(point(rho, c) for rho in RHOS))
                for c in range(8)
            )
        )

    return {"splitgp": clients(0.88, 0.34, 0.38), "harmony": clients(0.93, 0.12, 0.78)}
