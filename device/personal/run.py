"""The whole of it: the user's images in, and the bundle's next version in use, if it is better on held-out images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from harmony.core.bundle import DeviceManifest, open_device_bundle
from harmony.core.sealed import read_signatures
from harmony.device.memory import peak_bytes
from harmony.device.personal.adopt import adopt
from harmony.device.personal.budget import Budget
from harmony.device.personal.data import read_data
from harmony.device.personal.front_end import training_of
from harmony.device.personal.learning import OnStep
from harmony.device.personal.lesson import Wish, teach
from harmony.device.personal.outcome import Outcome
from harmony.device.personal.teach import Pupil
from harmony.device.personal.versions import Versions, require_bundle, version_of

if TYPE_CHECKING:
    from harmony.core.signing import Trust


def personalize(
    bundle: Path, data: str, wish: Wish, budget: Budget, on_step: OnStep = lambda what, done, total: None
) -> Outcome:
    """Train on the images in `data` (see `read_data`), and put the result into use if it is better on held-out ones.

    Nothing is changed unless a whole, verified new version is. ConfigError, DataError, InvalidInput, ArtifactError,
    EngineUnavailable, ContractMismatch, Diverged, StorageError.
    """
    started = time.perf_counter()
    require_bundle(bundle)
    versions = Versions(bundle)
    with versions.locked():
        manifest = open_device_bundle(versions.bundle, wish.trust)
        was_signed = read_signatures(versions.bundle) is not None
        training = training_of(manifest, bundle)
        images = read_data(data, manifest.image, manifest.classes, wish.heads.seed)
        pupil = Pupil(versions.bundle, manifest, training, images, budget)
        taught = teach(pupil, wish, on_step)
        adopted = taught.after.better_than(taught.before)
        now = adopt(pupil, wish, taught, versions) if adopted else manifest
    names = manifest.classes.names
    return Outcome(
        bundle=bundle, adopted=adopted, version=version_of(now), what=wish.what, engine=wish.engine,
        own_before=tuple(names[label] for label in manifest.classes.own),
        own_after=tuple(names[label] for label in images.own),
        train_images=len(images.train), holdout_images=len(images.holdout),
        before=taught.before.accuracy, after=taught.after.accuracy, exits=now.exits,
        steps=taught.steps, learning_s=taught.seconds, seconds=time.perf_counter() - started, peak_bytes=peak_bytes(),
        moved=taught.moved, moved_others=taught.moved_others, cloud=taught.cloud,
        dropped=tuple(one for one in manifest.engines if one not in now.engines),
        was_signed=was_signed, signed=bool(wish.keys) if adopted else was_signed,
    )  # fmt: skip


def roll_back(bundle: Path, trust: Trust | None = None) -> DeviceManifest:
    """Put the version before the one in use back into use, and remove that one. The manifest of what is in use now.

    ConfigError if there is none before it; ArtifactError if that is not whole, or signed by nobody in `trust`: nothing
    is changed then.
    """
    require_bundle(bundle)
    versions = Versions(bundle)
    with versions.locked():
        return versions.roll_back(trust)
