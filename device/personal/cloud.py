"""What a change of features costs the cloud: its back end, where it is at hand, asked before and after. No torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harmony.core.bundle import DeviceManifest, open_cloud_bundle
from harmony.core.errors import ContractMismatch, EngineError
from harmony.core.sealed import read_sealed
from harmony.device.onnx_engine import open_session
from harmony.device.personal.steps import Floats


class CloudJudge:
    """The back end of a cloud bundle, a folder or a .tar. ContractMismatch if it reads other features."""

    def __init__(self, bundle: Path, device: DeviceManifest) -> None:
        manifest = open_cloud_bundle(bundle)
        manifest.feature.require_same(device.feature, mine="the back end", theirs="the device")
        if manifest.tokens != len(device.classes.names):
            problem = f"knows {manifest.tokens} classes, the device {len(device.classes.names)}"
            raise ContractMismatch(problem, where=bundle, mend="use a front end and a back end of the same run")
        self._where = bundle
        self._session = open_session(read_sealed(bundle, manifest, manifest.program), bundle / manifest.program)
        self._label_of_token = device.classes.label_of_token

    def accuracy(self, features: Floats, labels: NDArray[np.int64]) -> float:
        """Share of features (n, *FeatureSpec.shape) whose label the back end finds among all classes."""
        answers = []
        for feature in np.split(features, len(features)):
            try:
                (probabilities,) = self._session.run(["probabilities"], {"feature": feature})
            except Exception as error:  # the runtime's own exceptions share no base class
                raise EngineError(f"ONNX Runtime failed: {str(error)[:300]}", where=self._where) from None
            answers.append(self._label_of_token[int(probabilities[0].argmax())])
        return float((np.asarray(answers) == labels).mean())
