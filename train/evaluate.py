"""How a trained federation answers mixes of in- and out-of-distribution images: protocol in docs/algorithm.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harmony.core.adaptive import HeldOut
from harmony.core.checkpoint import CheckpointManifest, ClientRecord, open_checkpoint
from harmony.core.config import TrainConfig, recorded_config
from harmony.core.data import Dataset
from harmony.core.errors import ContractMismatch
from harmony.core.mix import RHOS, test_mix
from harmony.core.spec import Frozen
from harmony.train.federation import Federation, federation
from harmony.train.promises import BudgetCurve, mean_promised, promised
from harmony.train.test_images import test_images
from harmony.train.verdict import Bools, Verdict


class Accuracy(Frozen):
    """One client under one mix. Shares of 1; None where the mix holds no such image.

    overall, id, ood: of the device with its cloud, by the exits' thresholds; switched: the same, but the device's
    answer stands where the cloud, too, puts more than half of its mass on own classes; fused: the same, but what was
    sent is answered by both together (see Answers.fused); adaptive, offload_adaptive: by a threshold that follows the
    stream (harmony.core.adaptive), None where the client's held-out images are not at hand; client_*, server_*: if that
    one answered everything; oracle: if in-distribution images stayed and all others were sent. offload: share that was
    sent; id_to_server, ood_to_client: of in-distribution images that were sent, of the others that stayed.
    """

    rho: float
    overall: float
    switched: float
    fused: float
    adaptive: float | None = None
    adaptive_id: float | None = None
    adaptive_ood: float | None = None
    id: float
    ood: float | None
    client_only: float
    client_id: float
    server_only: float
    server_id: float
    server_ood: float | None
    oracle: float
    exit1: float
    offload: float
    offload_adaptive: float | None = None
    id_to_server: float
    ood_to_client: float | None


class ClientEvaluation(Frozen):
    """One client: its curve over ρ, and how well exit 2's score ranks ID before OOD at the largest ρ."""

    client: int
    architecture: str
    own: tuple[int, ...]
    curve: tuple[Accuracy, ...]
    auroc: float | None
    fpr95: float | None


class Evaluation(Frozen):
    """A federation: every client, their mean, and the mean of the worst tenth by overall accuracy at each ρ.

    budgets: what other promises would have given; empty where no client's held-out images are at hand.
    """

    run: str
    method: str
    dataset: str
    round: int
    seed: int
    clients: tuple[ClientEvaluation, ...]
    mean: tuple[Accuracy, ...]
    worst: tuple[float, ...]
    worst_adaptive: tuple[float | None, ...] = ()
    budgets: tuple[BudgetCurve, ...] = ()
    auroc: float | None
    fpr95: float | None


def evaluate(
    checkpoint: Path,
    dataset: Dataset,
    *,
    rhos: Sequence[float] = RHOS,
    seed: int = 0,
    on_client: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Evaluate a checkpoint folder on the data set's test images. ContractMismatch if they are not of its kind."""
    manifest = open_checkpoint(checkpoint)
    config = recorded_config(manifest.config, where=checkpoint)
    check_kind(manifest, dataset, checkpoint, own_test=config.data.own_test > 0)
    tests, members = test_images(config, dataset), _members(manifest, config, dataset)
    clients, promises = [], []
    for record in manifest.clients:
        own = _own(checkpoint, manifest, record, members)
        held_out = record.held_out or (HeldOut.of(own.surety) if own is not None else None)
        rows = tests.of(record.index)
        mixes = {rho: test_mix(tests.y[rows], record.classes.own, rho, seed) for rho in sorted(rhos)}
        widest = rows[mixes[max(rhos)].indices]
        verdict = Verdict(checkpoint, manifest, record, tests.x[widest], tests.y[widest])
        # Mixes are nested and keep their order, so the smaller ones are parts of the largest.
        parts = {rho: np.isin(mixes[max(rhos)].indices, mix.indices) for rho, mix in mixes.items()}
        clients.append(_client(record, verdict, parts, held_out))
        if held_out is not None:
            promises.append(promised(verdict, parts, held_out, own))
        on_client(len(clients), len(manifest.clients))
    curves = [one.curve for one in clients]
    return Evaluation(
        run=manifest.run,
        method=manifest.method,
        dataset=dataset.name,
        round=manifest.round,
        seed=seed,
        clients=tuple(clients),
        mean=tuple(_mean(column) for column in zip(*curves, strict=True)),
        worst=tuple(_worst([one.overall for one in column]) for column in zip(*curves, strict=True)),
        worst_adaptive=tuple(_worst_known([one.adaptive for one in column]) for column in zip(*curves, strict=True)),
        budgets=mean_promised(promises),
        auroc=_mean_of([one.auroc for one in clients]),
        fpr95=_mean_of([one.fpr95 for one in clients]),
    )


def _members(manifest: CheckpointManifest, config: TrainConfig, dataset: Dataset) -> Federation | None:
    """Whose images are whose, where they are the run's own."""
    return federation(config, dataset) if dataset.name == manifest.dataset else None


def _own(
    checkpoint: Path, manifest: CheckpointManifest, record: ClientRecord, members: Federation | None
) -> Verdict | None:
    """A client's held-out images; None where they are not at hand, or it joined with images of its own."""
    if members is None or record.index >= len(members.clients):
        return None
    if not len(at := members.clients[record.index].holdout):
        return None
    return Verdict(checkpoint, manifest, record, members.dataset.x_train[at], members.dataset.y_train[at])


def check_kind(manifest: CheckpointManifest, dataset: Dataset, where: Path, *, own_test: bool) -> None:
    """ContractMismatch if the data set's images or classes are not of the run's kind.

    own_test: the run's clients are judged by images of their own, so it has to be the very data set.
    """
    here, there = dataset.image_spec(), manifest.image
    if (here.height, here.width, here.channels, here.dtype) != (there.height, there.width, there.channels, there.dtype):
        raise ContractMismatch(f"the run was trained on {there} images, {dataset.name} has {here}", where=where)
    if dataset.class_names != manifest.clients[0].classes.names:
        raise ContractMismatch(f"the run's classes are not those of {dataset.name}", where=where)
    if own_test and dataset.name != manifest.dataset:
        problem = f"the run's clients are judged by images of their own, which {dataset.name} has not"
        raise ContractMismatch(problem, where=where, mend=f"evaluate it on {manifest.dataset}")


def _client(
    record: ClientRecord, verdict: Verdict, parts: Mapping[float, Bools], held_out: HeldOut | None
) -> ClientEvaluation:
    curve = [_accuracy(verdict, rho, part, held_out) for rho, part in parts.items()]
    auroc, fpr95 = ranking(verdict.score2[verdict.is_id], verdict.score2[~verdict.is_id])
    return ClientEvaluation(
        client=record.index,
        architecture=str(record.architecture),
        own=record.classes.own,
        curve=tuple(curve),
        auroc=auroc,
        fpr95=fpr95,
    )


def _accuracy(verdict: Verdict, rho: float, part: Bools, held_out: HeldOut | None) -> Accuracy:
    """Accuracies over the images where `part` holds."""
    inside, outside = part & verdict.is_id, part & ~verdict.is_id
    oracle = np.where(verdict.is_id, verdict.right2, verdict.right_server)
    following: dict[str, float | None] = {}
    if held_out is not None:
        sent = verdict.sent_adaptively(part, held_out, verdict.threshold)
        right = verdict.right_if(sent)
        following = {
            "adaptive": _share(right, part),
            "adaptive_id": _share(right, inside),
            "adaptive_ood": _share_or_none(right, outside),
            "offload_adaptive": _share(sent, part),
        }
    return Accuracy(
        rho=rho,
        overall=_share(verdict.right, part),
        switched=_share(verdict.right_switched, part),
        fused=_share(verdict.right_fused, part),
        **following,
        id=_share(verdict.right, inside),
        ood=_share_or_none(verdict.right, outside),
        client_only=_share(verdict.right_local, part),
        client_id=_share(verdict.right_local, inside),
        server_only=_share(verdict.right_server, part),
        server_id=_share(verdict.right_server, inside),
        server_ood=_share_or_none(verdict.right_server, outside),
        oracle=_share(oracle, part),
        exit1=_share(verdict.at1, part),
        offload=_share(verdict.sent, part),
        id_to_server=_share(verdict.sent, inside),
        ood_to_client=_share_or_none(~verdict.sent, outside),
    )


def ranking(inside: NDArray[np.float32], outside: NDArray[np.float32]) -> tuple[float | None, float | None]:
    """AUROC of a score that should be larger inside than outside, and FPR95.

    FPR95: share of `outside` that scores at least as high as the lowest of the best 95 % of `inside`. None, None where
    one side is empty. Ties count half in the AUROC (Mann–Whitney).
    """
    if not len(inside) or not len(outside):
        return None, None
    ordered = np.sort(outside)
    below = np.searchsorted(ordered, inside, side="left")
    upto = np.searchsorted(ordered, inside, side="right")
    auroc = float((below + upto).mean() / (2 * len(outside)))
    threshold = np.sort(inside)[int(np.floor(0.05 * len(inside)))]
    return auroc, float((outside >= threshold).mean())


def _share(hits: Bools, among: Bools) -> float:
    return float(hits[among].mean())


def _share_or_none(hits: Bools, among: Bools) -> float | None:
    return _share(hits, among) if among.any() else None


def _mean(column: Sequence[Accuracy]) -> Accuracy:
    means = {name: _mean_of([getattr(one, name) for one in column]) for name in Accuracy.model_fields}
    return Accuracy.model_validate(means)


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _worst_known(overall: Sequence[float | None]) -> float | None:
    known = [one for one in overall if one is not None]
    return _worst(known) if known else None


def _worst(overall: Sequence[float]) -> float:
    count = max(1, len(overall) // 10)
    return float(np.mean(sorted(overall)[:count]))
