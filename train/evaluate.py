"""How a trained federation answers mixes of in- and out-of-distribution images: protocol in docs/algorithm.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harmony.core.adaptive import SUREST, AdaptiveThreshold, HeldOut, sent_in_order
from harmony.core.checkpoint import CheckpointManifest, ClientRecord, open_checkpoint
from harmony.core.config import recorded_config
from harmony.core.data import Dataset
from harmony.core.errors import ContractMismatch
from harmony.core.mix import RHOS, test_mix
from harmony.core.preprocess import Preprocessor
from harmony.core.scores import own_mass, score
from harmony.core.spec import Frozen
from harmony.train.answers import answers
from harmony.train.federation import federation
from harmony.train.models import load_back_end, load_front_end
from harmony.train.test_images import test_images

BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Promises of exit 2 that an evaluation looks at beside the checkpoint's own."""


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


class BudgetCurve(Frozen):
    """All clients, mean, had exit 2 made another promise, by thresholds that follow the stream. Shares of 1.

    budget: at most this share of own images is sent (`exits.offload`); adaptive: device and cloud together at every ρ;
    id_to_server, ood_to_client: at the largest ρ, of in-distribution images that were sent, of the others that stayed.
    """

    budget: float
    adaptive: tuple[float, ...]
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
    tests, held_out = test_images(config, dataset), _held_out(checkpoint, manifest, dataset)
    clients, promises = [], []
    for record in manifest.clients:
        rows = tests.of(record.index)
        mixes = {rho: test_mix(tests.y[rows], record.classes.own, rho, seed) for rho in sorted(rhos)}
        widest = rows[mixes[max(rhos)].indices]
        verdict = _Verdict(checkpoint, manifest, record, tests.x[widest], tests.y[widest])
        # Mixes are nested and keep their order, so the smaller ones are parts of the largest.
        parts = {rho: np.isin(mixes[max(rhos)].indices, mix.indices) for rho, mix in mixes.items()}
        clients.append(_client(record, verdict, parts, known := held_out.get(record.index)))
        if known is not None:
            promises.append([_promising(budget, verdict, parts, known) for budget in BUDGETS])
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
        budgets=tuple(_mean_promise(column) for column in zip(*promises, strict=True)),
        auroc=_mean_of([one.auroc for one in clients]),
        fpr95=_mean_of([one.fpr95 for one in clients]),
    )


def _held_out(checkpoint: Path, manifest: CheckpointManifest, dataset: Dataset) -> dict[int, HeldOut]:
    """By client: what the checkpoint says, or, where it is older than that, what the run's own images say."""
    known = {record.index: record.held_out for record in manifest.clients if record.held_out is not None}
    unknown = [record for record in manifest.clients if record.index not in known]
    if unknown and dataset.name == manifest.dataset:
        members = federation(recorded_config(manifest.config, where=checkpoint), dataset)
        x, y = members.dataset.x_train, members.dataset.y_train
        for record in unknown:
            if record.index < len(members.clients) and len(at := members.clients[record.index].holdout):
                found = HeldOut.of(_Verdict(checkpoint, manifest, record, x[at], y[at]).surety)
                known |= {} if found is None else {record.index: found}
    return known


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
    record: ClientRecord, verdict: _Verdict, parts: Mapping[float, NDArray[np.bool_]], held_out: HeldOut | None
) -> ClientEvaluation:
    curve = [verdict.accuracy(rho, part, held_out) for rho, part in parts.items()]
    auroc, fpr95 = ranking(verdict.score2[verdict.is_id], verdict.score2[~verdict.is_id])
    return ClientEvaluation(
        client=record.index,
        architecture=str(record.architecture),
        own=record.classes.own,
        curve=tuple(curve),
        auroc=auroc,
        fpr95=fpr95,
    )


def _promising(
    budget: float, verdict: _Verdict, parts: Mapping[float, NDArray[np.bool_]], held_out: HeldOut
) -> BudgetCurve:
    """One client."""
    threshold = held_out.threshold(budget)
    streams = [(part, verdict.sent_adaptively(part, held_out, threshold)) for _, part in sorted(parts.items())]
    part, sent = streams[-1]
    return BudgetCurve(
        budget=budget,
        adaptive=tuple(_share(verdict.right_if(sent), part) for part, sent in streams),
        id_to_server=_share(sent, part & verdict.is_id),
        ood_to_client=_share_or_none(~sent, part & ~verdict.is_id),
    )


class _Verdict:
    """What device and cloud say of n images, and which of it is right. All arrays (n,)."""

    def __init__(
        self,
        checkpoint: Path,
        manifest: CheckpointManifest,
        record: ClientRecord,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
    ) -> None:
        front_end = load_front_end(checkpoint, manifest, record)
        back_end = load_back_end(checkpoint, manifest, record)
        own = np.asarray(record.classes.own)
        said = answers(front_end, back_end, record, Preprocessor(manifest.image), images)
        first, second = record.exits
        score1 = score(first.score, said.logits1, said.gate1, own)
        self.score2 = score(second.score, said.logits2, said.gate2, own)
        right1, self.right2 = (own[logits.argmax(1)] == labels for logits in (said.logits1, said.logits2))
        self.right_server = said.server.argmax(1) == labels
        self.is_id = np.isin(labels, own)
        self.at1 = score1 >= np.float32(first.threshold)
        self.threshold = second.threshold
        self.sent = ~self.at1 & (self.score2 < np.float32(second.threshold))
        self.right_local = np.where(self.at1, right1, self.right2)
        self.right = self.right_if(self.sent)
        self.right_fused = np.where(self.sent, said.fused(own).argmax(1) == labels, self.right_local)
        foreign = own_mass(said.server, own) < 0
        self.right_switched = np.where(self.sent & foreign, self.right_server, self.right_local)

    @property
    def surety(self) -> NDArray[np.float32]:
        """(n,) exit 2's score; SUREST for what left at exit 1."""
        return np.where(self.at1, np.float32(SUREST), self.score2)

    def sent_adaptively(self, part: NDArray[np.bool_], held_out: HeldOut, threshold: float) -> NDArray[np.bool_]:
        """(n,) what a device sends of a stream of the images where `part` holds; nothing elsewhere.

        threshold: that of exit 2 where foreign inputs come.
        """
        sent = np.zeros(len(part), bool)
        sent[part] = sent_in_order(AdaptiveThreshold(held_out, threshold), self.surety[part])
        return sent

    def right_if(self, sent: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(n,) whether the answer is right, had these been sent."""
        right: NDArray[np.bool_] = np.where(sent, self.right_server, self.right_local)
        return right

    def accuracy(self, rho: float, part: NDArray[np.bool_], held_out: HeldOut | None) -> Accuracy:
        """Accuracies over the images where `part` holds."""
        inside, outside = part & self.is_id, part & ~self.is_id
        oracle = np.where(self.is_id, self.right2, self.right_server)
        following: dict[str, float | None] = {}
        if held_out is not None:
            sent = self.sent_adaptively(part, held_out, self.threshold)
            right = self.right_if(sent)
            following = {
                "adaptive": _share(right, part),
                "adaptive_id": _share(right, inside),
                "adaptive_ood": _share_or_none(right, outside),
                "offload_adaptive": _share(sent, part),
            }
        return Accuracy(
            rho=rho,
            overall=_share(self.right, part),
            switched=_share(self.right_switched, part),
            fused=_share(self.right_fused, part),
            **following,
            id=_share(self.right, inside),
            ood=_share_or_none(self.right, outside),
            client_only=_share(self.right_local, part),
            client_id=_share(self.right_local, inside),
            server_only=_share(self.right_server, part),
            server_id=_share(self.right_server, inside),
            server_ood=_share_or_none(self.right_server, outside),
            oracle=_share(oracle, part),
            exit1=_share(self.at1, part),
            offload=_share(self.sent, part),
            id_to_server=_share(self.sent, inside),
            ood_to_client=_share_or_none(~self.sent, outside),
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


def _share(hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
    return float(hits[among].mean())


def _share_or_none(hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> float | None:
    return _share(hits, among) if among.any() else None


def _mean(column: Sequence[Accuracy]) -> Accuracy:
    means = {name: _mean_of([getattr(one, name) for one in column]) for name in Accuracy.model_fields}
    return Accuracy.model_validate(means)


def _mean_promise(column: Sequence[BudgetCurve]) -> BudgetCurve:
    return BudgetCurve(
        budget=column[0].budget,
        adaptive=tuple(np.mean([one.adaptive for one in column], 0).tolist()),
        id_to_server=float(np.mean([one.id_to_server for one in column])),
        ood_to_client=_mean_of([one.ood_to_client for one in column]),
    )


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _worst_known(overall: Sequence[float | None]) -> float | None:
    known = [one for one in overall if one is not None]
    return _worst(known) if known else None


def _worst(overall: Sequence[float]) -> float:
    count = max(1, len(overall) // 10)
    return float(np.mean(sorted(overall)[:count]))
