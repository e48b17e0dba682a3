"""What exit 2 and the back end would have said to every image, whatever way its own answer took."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harmony.bench.bare import BareFrontEnd, one_thread_session
from harmony.bench.mixes import Replay
from harmony.bench.plan import Target
from harmony.core.bundle import CloudManifest
from harmony.core.preprocess import Preprocessor
from harmony.core.sealed import read_sealed
from harmony.core.wire import decode, encode

_BATCH = 64


def replay(target: Target, cloud: Path, manifest: CloudManifest) -> Replay:
    """Labels (n,) by exit 2 and by the back end for the target's stream; features take the wire's codec on the way."""
    front, bare = target.manifest, BareFrontEnd(target.folder, target.manifest)
    session, own = one_thread_session(read_sealed(cloud, manifest, manifest.program)), np.asarray(front.classes.own)
    exit2, server = [], []
    prepared = Preprocessor(front.image)(target.images)
    for start in range(0, len(prepared), _BATCH):
        outputs = [bare.exit2(image[None]) for image in prepared[start : start + _BATCH]]
        exit2.append(own[[int(logits.argmax()) for _, logits in outputs]])
        frames = [encode(feature[0], front.fallback.codec) for feature, _ in outputs]
        features = np.stack([decode(frame, front.feature) for frame in frames])
        (probabilities,) = session.run(None, {"feature": features})
        server.append(front.classes.label_of_token[probabilities.argmax(1)])
    return Replay(np.concatenate(exit2), np.concatenate(server))
