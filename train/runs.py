"""A run: rounds of a method, states on disk in between, a checkpoint in the end.

RUN/config.toml          the whole config
RUN/state/round-NNNNNN/  the last states, for --resume
RUN/checkpoint/          the trained federation (harmony.core.checkpoint)
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from harmony.core.adaptive import SUREST, HeldOut
from harmony.core.checkpoint import CheckpointManifest, ClientRecord, open_checkpoint, save_checkpoint
from harmony.core.config import TrainConfig, read_toml, recorded_config, save_config
from harmony.core.data import Dataset, load
from harmony.core.errors import ArtifactMissing, Diverged, RunError, RunExists
from harmony.core.models import FrontEnd, Kernels, computed_by
from harmony.core.scores import Floats, score
from harmony.core.sealed import storing
from harmony.train.calibrate import calibrate
from harmony.train.federation import Client, Federation, federation
from harmony.train.fedgh import FedGH
from harmony.train.fedproto import FedProto
from harmony.train.fedtgp import FedTGP
from harmony.train.harmony import Harmony
from harmony.train.heterofl import HeteroFL
from harmony.train.kernels import kernels_for
from harmony.train.lg_fedavg import LGFedAvg
from harmony.train.local import Local
from harmony.train.method import Losses, Method, Trained
from harmony.train.splitgp import SplitGP
from harmony.train.state import StateManifest, latest_state, save_state

METHODS: dict[str, Callable[[Federation], Method]] = {
    "harmony": Harmony,
    "splitgp": SplitGP,
    "local": Local,
    "lg_fedavg": LGFedAvg,
    "heterofl": HeteroFL,
    "fedproto": FedProto,
    "fedtgp": FedTGP,
    "fedgh": FedGH,
}
CONFIG, CHECKPOINT = "config.toml", "checkpoint"


class Progress(NamedTuple):
    """At the start (no losses yet) and after a round: rounds done, rounds in all, loss terms as means over clients."""

    done: int
    rounds: int
    losses: dict[str, float]


Listener = Callable[[Progress], None]


class Look(NamedTuple):
    """Who is shown the models between rounds: before the first, after every `every`-th, and after the last.

    show(rounds done, models, federation) must leave both as they are. A round is shown before its state is saved, so
    that a run that goes on from a state was shown everything up to it; the rounds after it may be shown once more.
    """

    every: int
    show: Callable[[int, Trained, Federation], None]


def train(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    dataset: Dataset | None = None,
    on_progress: Listener = lambda progress: None,
    look: Look | None = None,
) -> Path:
    """Train a federation in the folder `out`; returns its checkpoint folder.

    resume: go on from the last state in `out`, if there is one; the outcome has the same bits as an unbroken run.
    dataset: the images, if they are loaded already. look: changes no bit of the outcome. Raises RunExists, RunError
    (another config or other images than the run began with; no GPU or compiler where the config asks for one),
    Diverged, StorageError, and what loading the data raises.
    """
    _check_folder(config, out, resume)
    if (out / CHECKPOINT).exists():
        open_checkpoint(out / CHECKPOINT)
        return out / CHECKPOINT
    torch.set_num_threads(config.threads)
    if config.device == "cuda" and not torch.cuda.is_available():
        mend = "install a CUDA build of torch on a machine with an NVIDIA GPU, or choose cpu"
        raise RunError("PyTorch finds no GPU here", field="device", mend=mend)
    dataset = dataset or load(config.data.name, data_dir=Path(config.data.folder) if config.data.folder else None)
    members = federation(config, dataset)
    method, kernels = METHODS[config.method](members), kernels_for(config.precision, config.device)
    # Nothing is written before data, partition, architectures and compiler are known to be good.
    with storing(out):
        out.mkdir(parents=True, exist_ok=True)
    if not (out / CONFIG).exists():
        save_config(config, out / CONFIG)
    _rounds(method, kernels, members, out, on_progress=on_progress, look=look)
    with computed_by(kernels):
        trained = method.finish()
    _save_trained(trained, members, method.gate, out)
    return out / CHECKPOINT


def resumed_config(out: Path) -> TrainConfig:
    """The config that the run in `out` began with."""
    if not out.is_dir():
        raise ArtifactMissing("no run here to resume", where=out, mend="check the path, or leave --resume away")
    return _begun_with(out)


def _check_folder(config: TrainConfig, out: Path, resume: bool) -> None:
    if out.exists() and not resume:
        raise RunExists("this run folder is there already", where=out, mend="--resume it, or choose another --out")
    if not out.exists() and resume:
        raise ArtifactMissing("no run here to resume", where=out, mend="check the path, or leave --resume away")
    if (out / CONFIG).exists() and _begun_with(out) != config:
        raise RunError("the run began with another config", where=out / CONFIG, mend="resume it without other settings")


def _begun_with(out: Path) -> TrainConfig:
    return recorded_config(read_toml(out / CONFIG), where=out / CONFIG)


def _rounds(
    method: Method, kernels: Kernels | None, members: Federation, out: Path, *, on_progress: Listener, look: Look | None
) -> None:
    config, data = members.config, _fingerprint(members.dataset)
    history: dict[str, tuple[float, ...]] = {}
    start = 0
    if (found := latest_state(out)) is not None:
        manifest, tensors = found
        if manifest.data != data:
            raise RunError("the run began with other images", where=out, mend=f"give the same --data as in {CONFIG}")
        if manifest.key != members.key:
            raise RunError("the run began with another token key", where=out, mend="bring back the old tokens.key_file")
        method.restore(tensors)
        start, history = manifest.round, manifest.losses
    on_progress(Progress(start, config.rounds, {}))
    if start == 0:
        _show(look, 0, method, members)
    for index in range(start, config.rounds):
        with computed_by(kernels):
            losses = method.round(index)
        _check_finite(losses, index, out)
        means = {name: float(value.mean()) for name, value in losses.terms.items()}
        history = {name: (*history.get(name, ()), value) for name, value in means.items()}
        _show(look, index + 1, method, members)
        if (index + 1) % config.checkpoint_every == 0 or index + 1 == config.rounds:
            settings = config.model_dump(mode="json")
            state = StateManifest(round=index + 1, config=settings, data=data, key=members.key, losses=history)
            save_state(out, state, method.state())
        on_progress(Progress(index + 1, config.rounds, means))


def _show(look: Look | None, done: int, method: Method, members: Federation) -> None:
    if look is not None and (done % look.every == 0 or done == members.config.rounds):
        with torch.random.fork_rng():  # building modules draws from torch's global stream
            look.show(done, method.peek(), members)


def _check_finite(losses: Losses, index: int, out: Path) -> None:
    if losses.culprit is not None:
        term, client = losses.culprit
        raise Diverged(
            f"the {term} loss of client {client} is no longer finite in round {index + 1}",
            where=out,
            mend="the last good state is kept; lower learning_rate and start anew",
        )


def _save_trained(trained: Trained, members: Federation, gate: bool, out: Path) -> None:
    by_label = {index: _rows_by_label(tensors, members.tokens) for index, tensors in trained.clients.items()}
    records = [
        client_record(client, members, by_label[client.index], gate, own_back_end=client.index in trained.back_ends)
        for client in members.clients
    ]
    manifest = CheckpointManifest(
        harmony_version=importlib.metadata.version("harmony-sfl"),
        run=out.resolve().name,
        method=members.config.method,
        round=members.config.rounds,
        config=members.config.model_dump(mode="json"),
        dataset=members.dataset.name,
        image=members.image,
        feature=members.feature,
        back_end_width=members.config.back_end_width,
        gate=gate,
        clients=tuple(records),
    )
    save_checkpoint(out / CHECKPOINT, manifest, trained.back_end, by_label, trained.back_ends)


def _rows_by_label(tensors: dict[str, NDArray[Any]], tokens: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Training knows classes by token; a device wants its heads by label."""
    heads = (".head.", ".gate.")
    return {name: value[tokens] if any(part in name for part in heads) else value for name, value in tensors.items()}


def client_record(
    client: Client, members: Federation, tensors: dict[str, NDArray[Any]], gate: bool, *, own_back_end: bool = False
) -> ClientRecord:
    """What a checkpoint says of a client, its exits calibrated. tensors: rows of heads and gates by label."""
    score1, score2 = _held_out_scores(client, members, tensors, gate)
    exits = calibrate(score1, score2, members.config.exits)
    return ClientRecord(
        index=client.index,
        architecture=client.architecture,
        classes=client.classes,
        exits=exits,
        held_out=HeldOut.of(np.where(score1 >= np.float32(exits[0].threshold), np.float32(SUREST), score2)),
        train_images=len(client.train),
        holdout_images=len(client.holdout),
        own_back_end=own_back_end,
    )


def _held_out_scores(
    client: Client, members: Federation, tensors: dict[str, NDArray[Any]], gate: bool
) -> tuple[Floats, Floats]:
    """Both exits' scores of the client's held-out images, (m,) each, by the very front end that is saved."""
    classes, own = members.dataset.classes, np.asarray(client.classes.own)
    front_end = FrontEnd(
        client.architecture, members.image, members.feature, outputs=classes, gate=classes if gate else None
    )
    front_end.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    with torch.no_grad():
        # On the CPU, wherever the run was trained: devices have no other.
        out = front_end(members.inputs(members.dataset.x_train[client.holdout]).cpu())
    first, second = (
        score(members.config.exits.score, logits[:, own].numpy(), None if gates is None else gates.numpy(), own)
        for logits, gates in ((out.logits1, out.gate1), (out.logits2, out.gate2))
    )
    return first, second


def _fingerprint(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for array in (dataset.x_train, dataset.y_train):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
