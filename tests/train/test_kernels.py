"""Training in bfloat16: the kernel computes what PyTorch does, and a run learns as much with it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import Tensor

from harmony.core.checkpoint import load_tensors
from harmony.core.config import TrainConfig
from harmony.core.data import Dataset
from harmony.core.errors import RunError
from harmony.core.models import FrontEnd, computed_by, feature_spec
from harmony.core.spec import Architecture, ImageSpec
from harmony.train import Progress, train
from harmony.train.kernels import compiled as building
from harmony.train.kernels import kernels_for
from harmony.train.kernels.bfloat16 import FusedNorm

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler here (Debian: apt install gcc)")
# Half a unit in the last of bfloat16's 8 places, twice: the input's and the output's.
NEAR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def pytorch(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, *, relu: bool) -> Tensor:
    out = F.group_norm(x, x.shape[1] // 8, weight, bias)
    out = out if add is None else out + add
    return torch.relu(out) if relu else out


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("shape", [(3, 8, 1, 1), (2, 24, 5, 7), (2, 16, 4, 4)])
def test_the_kernel_computes_what_pytorch_does(
    kind: torch.dtype, relu: bool, added: bool, shape: tuple[int, ...]
) -> None:
    random = torch.Generator().manual_seed(0)
    whole = [torch.randn(shape, generator=random).to(kind) for _ in range(3)]
    slope = whole[2]
    scale, shift = (torch.randn(shape[1], generator=random) for _ in range(2))
    answers = []
    for exact in (True, False):
        x, add = (one.float() if exact else one.contiguous(memory_format=torch.channels_last) for one in whole[:2])
        given = [one.clone().requires_grad_() for one in (x, scale, shift, *([add] if added else []))]
        if exact:
            out = pytorch(given[0], given[1], given[2], given[3] if added else None, relu=relu)
        else:
            out = FusedNorm.apply(*given[:3], given[3] if added else None, 1e-5, relu)  # type: ignore[no-untyped-call]
        answers.append((out.detach(), *torch.autograd.grad(out, given, slope.to(out.dtype))))
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(other.float(), one, rtol=NEAR[kind], atol=NEAR[kind] * float(one.abs().max() + 1))


def test_the_same_input_gives_the_same_bits() -> None:
    x = torch.randn(4, 16, 9, 9).contiguous(memory_format=torch.channels_last)
    one, other = (FusedNorm.apply(x, torch.ones(16), torch.zeros(16), None, 1e-5, True) for _ in range(2))  # type: ignore[no-untyped-call]
    assert (one == other).all()


@pytest.mark.parametrize("device", ["cpu", "cuda"])  # a GPU's kernels compute on any processor, too
@pytest.mark.parametrize("name", ["resnet-w8-d1", "mobilenet-w8-d1", "patch-w8-d1"])
def test_front_ends_see_the_same_in_bfloat16_to_its_digits(name: str, device: str) -> None:
    image = ImageSpec(height=28, width=28, channels=1, mean=(0.0,), std=(1.0,))
    torch.manual_seed(0)
    front_end = FrontEnd(Architecture.parse(name), image, feature_spec(image), outputs=10, gate=10)
    inputs = torch.randn(8, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    exact = front_end(inputs)
    with computed_by(kernels_for("bfloat16", device)):
        rough = front_end(inputs)
        rough.feature.sum().backward()
    for one, other in zip(exact, rough, strict=True):
        assert other.dtype is torch.float32
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999
    assert all(value.grad is None or value.grad.dtype is torch.float32 for value in front_end.parameters())
    assert (front_end(inputs).feature == exact.feature).all(), "outside the block PyTorch computes again"


@pytest.mark.parametrize("method", ["harmony", "heterofl"])
def test_a_run_learns_and_goes_on_with_the_same_bits(
    method: str, config: TrainConfig, rival_config: object, images: Dataset, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    heard: list[Progress] = []

    def dying(progress: Progress) -> None:
        if progress.done == 2:
            raise Killed

    base = config if method == "harmony" else rival_config(method)  # type: ignore[operator]
    chosen = base.model_copy(update={"precision": "bfloat16"})
    whole = train(chosen, tmp_path / "whole", dataset=images, on_progress=heard.append)
    with pytest.raises(Killed):
        train(chosen, tmp_path / "broken", dataset=images, on_progress=dying)
    broken = train(chosen, tmp_path / "broken", dataset=images, resume=True)
    exact: list[Progress] = []
    train(base, tmp_path / "exact", dataset=images, on_progress=exact.append)
    one, two = (load_tensors(folder / "back_end.safetensors") for folder in (whole, broken))
    assert all((value == two[name]).all() for name, value in one.items())
    assert all(value.dtype == "float32" for value in one.values())
    assert heard[1].losses != exact[1].losses
    assert heard[1].losses == pytest.approx(exact[1].losses, rel=0.05, abs=0.05)


def test_without_a_compiler_the_mend_is_named_before_anything_is_written(
    config: TrainConfig, images: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    building.compiled.cache_clear()
    with pytest.raises(RunError, match=r"no C compiler.*apt install gcc"):
        train(config.model_copy(update={"precision": "bfloat16"}), tmp_path / "run", dataset=images)
    assert not (tmp_path / "run").exists()


def test_the_library_is_compiled_once_and_kept(tmp_path: Path) -> None:
    ask = "from harmony.train.kernels.compiled import compiled; compiled()"
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-c", ask], check=True, env={"HARMONY_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin"}
        )
        kept = list((tmp_path / "kernels").iterdir())
        assert len(kept) == 1
        stamp = kept[0].stat().st_mtime_ns
    assert kept[0].stat().st_mtime_ns == stamp
