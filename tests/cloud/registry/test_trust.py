"""Signed back ends: a service and a registry that trust keys take nothing that none of them signed."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harmony.cloud.deploy import Opened
from harmony.cloud.process import running_service
from harmony.cloud.registry.catalogue import Registry
from harmony.cloud.registry.location import locate
from harmony.cloud.source import Place
from harmony.core.archive import pack
from harmony.core.bundle import CloudManifest
from harmony.core.errors import ArtifactUntrusted, HarmonyError, ServiceError
from harmony.core.sealed import MANIFEST, SEAL, SIGNATURES, hash_file, read_signatures, sign_sealed
from harmony.core.signing import Trust
from harmony.core.signing_keys import make_key, read_secret

if TYPE_CHECKING:
    from tests.cloud.conftest import Build, Bundle, Graph


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """release.key, release.pub, other.key, other.pub."""
    for name in ("release", "other"):
        make_key(tmp_path / "keys" / name)
    return tmp_path / "keys"


def signed(folder: Path, key: Path) -> Path:
    sign_sealed(folder, CloudManifest, [read_secret(key)])
    return folder


def trust(*paths: Path) -> Trust:
    return Trust.read(paths)


def test_a_folder_is_served_only_if_it_is_signed(bundle: Bundle, keys: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "cloud"))
    lines = tuple(key.line for key in trust(keys / "release.pub").keys)
    with pytest.raises(ArtifactUntrusted, match="cloud: is not signed"):
        Place(folder, trust=lines).open()
    signed(folder, keys / "other.key")
    with pytest.raises(ArtifactUntrusted, match="alone"):
        Place(folder, trust=lines).open()
    signed(folder, keys / "release.key")
    place = Place.of(json.loads(json.dumps(Place(folder, trust=lines).document())))
    assert Opened.of(place.open()).names == ("backend",)


def test_what_is_loaded_later_has_to_be_signed_too(bundle: Bundle, keys: Path, tmp_path: Path) -> None:
    """Between the look into the folder and the opening somebody may put another bundle there."""
    folder = signed(Path(shutil.copytree(bundle.folder, tmp_path / "cloud")), keys / "release.key")
    source = Place(folder, trust=tuple(key.line for key in trust(keys / "release.pub").keys)).open()
    (folder / SIGNATURES).unlink()
    with pytest.raises(ArtifactUntrusted):
        Opened.of(source)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_process_refuses_or_serves(workers: str, bundle: Bundle, keys: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "cloud"))
    options = ("--trust", str(keys / "release.pub"), "--workers", workers)
    with pytest.raises(ServiceError, match=r"ArtifactUntrusted: .*is not signed"), running_service(folder, *options):
        pass
    signed(folder, keys / "release.key")
    with running_service(folder, *options) as service:
        request = urllib.request.Request(  # noqa: S310
            f"{service.url}/v2/models/backend", headers={"Authorization": f"Bearer {service.key}"}
        )
        with urllib.request.urlopen(request, timeout=20) as reply:  # noqa: S310
            assert json.load(reply)["name"] == "backend"


def test_a_registry_takes_what_is_signed(bundle_of: Callable[..., Path], keys: Path, tmp_path: Path) -> None:
    folder = bundle_of("first")
    with Registry(locate(str(tmp_path / "r")), create=True, trust=trust(keys / "release.pub")) as registry:
        with pytest.raises(ArtifactUntrusted, match="is not signed"):
            registry.register(folder, who="cli:me")
        assert not (tmp_path / "r" / "bundles").exists() or list((tmp_path / "r" / "bundles").iterdir()) == []
        made = registry.register(signed(folder, keys / "release.key"), who="cli:me")
        assert registry.check() == 1
        assert Opened.of(registry).names == ("backend",)
        (registry.store.folder(made.digest) / SIGNATURES).unlink()
        for act in (registry.check, lambda: Opened.of(registry)):
            with pytest.raises(ArtifactUntrusted):
                act()


def test_archives_are_served_and_registered_as_folders_are(bundle: Bundle, keys: Path, tmp_path: Path) -> None:
    folder = signed(Path(shutil.copytree(bundle.folder, tmp_path / "f")), keys / "release.key")
    tar, known = tmp_path / "out" / "cloud.tar", trust(keys / "release.pub")
    pack(folder, tar)
    lines = tuple(key.line for key in known.keys)
    for place in (tar, tmp_path / "out"):
        assert Opened.of(Place(place, trust=lines).open()).names == ("backend",)
    tar.rename(tar.with_name("other.tar"))
    assert Opened.of(Place(tmp_path / "out", trust=lines).open()).names == ("backend",)
    with Registry(locate(str(tmp_path / "r")), create=True, trust=known) as registry:
        made = registry.register(tar.with_name("other.tar"), who="cli:me")
        assert registry.register(folder, who="cli:me").version == made.version
        stored = registry.store.folder(made.digest)
    assert sorted(path.name for path in stored.iterdir()) == sorted(path.name for path in folder.iterdir())


def test_a_manifest_without_a_signature_is_not_even_parsed(keys: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cloud"
    folder.mkdir()
    (folder / MANIFEST).write_text('{"format": "harmony-cloud-bundle", "unheard_of": 1}')
    (folder / SEAL).write_text(f"{hash_file(folder / MANIFEST)}  {MANIFEST}\n")
    errors: list[type[HarmonyError]] = []
    for known in (None, trust(keys / "release.pub")):
        with Registry(locate(str(tmp_path / "r")), create=True, trust=known) as registry:
            with pytest.raises(HarmonyError) as refused:
                registry.register(folder, who="cli:me")
            errors.append(refused.type)
    assert [error.__name__ for error in errors] == ["ArtifactCorrupt", "ArtifactUntrusted"]


def test_a_bundle_that_is_registered_again_brings_its_signatures(
    build_bundle: Build, graph: Callable[..., Graph], keys: Path, tmp_path: Path
) -> None:
    folder = build_bundle(tmp_path / "made", graph()).folder
    with Registry(locate(str(tmp_path / "r")), create=True) as registry:
        first = registry.register(folder, who="cli:me")
        stored = registry.store.folder(first.digest)
        assert read_signatures(stored) is None
        assert registry.register(signed(folder, keys / "release.key"), who="cli:me").version == first.version
        (folder / SIGNATURES).unlink()
        registry.register(signed(folder, keys / "other.key"), who="cli:me")
        found = read_signatures(stored)
        assert found is not None
        assert set(found.by) == {key.id for key in trust(keys).keys}
        (folder / SIGNATURES).unlink()
        registry.register(folder, who="cli:me")
        assert read_signatures(stored) == found
    with Registry(locate(str(tmp_path / "r")), trust=trust(keys / "release.pub")) as registry:
        assert registry.check() == 1
