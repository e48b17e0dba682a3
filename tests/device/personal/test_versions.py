"""Versions: old or new and nothing between, back again, never more than are kept, and nobody else meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harmony.core.archive import pack
from harmony.core.bundle import open_device_bundle
from harmony.core.errors import ArtifactCorrupt, ArtifactMissing, ArtifactUntrusted, ConfigError, StorageError
from harmony.core.sealed import digest_of, read_signatures
from harmony.core.signing import Trust
from harmony.core.signing_keys import make_key, read_secret
from harmony.device import verify
from harmony.device.personal import Budget, Plan, Wish, personalize, roll_back
from harmony.device.personal import versions as versions_module
from harmony.device.personal.versions import KEPT, Versions, version_of

MakeBundle = Callable[..., Path]
QUICK = Wish(heads=Plan(epochs=20, rate=2e-2))


def _version(bundle: Path) -> int:
    return version_of(open_device_bundle(bundle))


def _learn(bundle: Path, photos: tuple[Path, Path], version: int) -> None:
    """One more version: the classes change each time, so that what was learnt before is no good."""
    assert personalize(bundle, str(photos[version % 2]), QUICK, Budget()).version == version


@pytest.fixture(scope="module")
def both(write_photos: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two users, whose classes differ."""
    folder = tmp_path_factory.mktemp("both")
    return write_photos(folder / "even", (0, 1, 5)), write_photos(folder / "odd", (2, 3, 4))


def test_back_to_the_exported_bundle_and_forth(bundle: Path, both: tuple[Path, Path]) -> None:
    digests = [digest_of(bundle)]
    for version in (1, 2):
        _learn(bundle, both, version)
        digests.append(digest_of(bundle))
    home = bundle.parent / ".client-000.versions"
    assert sorted(path.name for path in home.iterdir()) == [".lock", "000000", "000001"]
    for version in (1, 0):
        assert version_of(roll_back(bundle)) == version
        assert digest_of(bundle) == digests[version]
        verify(bundle)
    assert [path.name for path in home.iterdir()] == [".lock"]
    with pytest.raises(ConfigError, match="no version before"):
        roll_back(bundle)
    _learn(bundle, both, 1)


def test_only_some_versions_are_kept_and_the_exported_one_always(bundle: Path, both: tuple[Path, Path]) -> None:
    for version in range(1, KEPT + 3):
        _learn(bundle, both, version)
    home = Versions(bundle).home
    kept = sorted(int(path.name) for path in home.iterdir() if path.name != ".lock")
    assert kept == [0, *range(2, KEPT + 2)]
    assert version_of(roll_back(bundle)) == KEPT + 1


def test_a_tar_stays_a_tar(bundle: Path, photos: Path, tmp_path: Path) -> None:
    tar = tmp_path / "tars" / "client-000.tar"
    tar.parent.mkdir()
    pack(bundle, tar)
    digest = digest_of(tar)
    assert personalize(tar, str(photos), QUICK, Budget()).adopted
    assert tar.is_file()
    assert _version(tar) == 1
    verify(tar)
    roll_back(tar)
    assert digest_of(tar) == digest


def test_files_are_exchanged_where_the_system_cannot_and_folders_are_refused(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions_module, "_exchange", lambda one, other: False)
    tar = tmp_path / "client-000.tar"
    pack(bundle, tar)
    assert personalize(tar, str(photos), QUICK, Budget()).adopted
    assert _version(tar) == 1
    assert version_of(roll_back(tar)) == 0
    before = digest_of(bundle)
    with pytest.raises(StorageError, match=r"harmony bundle pack"):
        personalize(bundle, str(photos), QUICK, Budget())
    assert digest_of(bundle) == before


def test_a_link_to_a_bundle_stays_one(bundle: Path, photos: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(bundle, target_is_directory=True)
    assert personalize(link, str(photos), QUICK, Budget()).adopted
    assert link.is_symlink()
    assert _version(link) == _version(bundle) == 1


def test_a_signed_bundle_is_signed_anew_or_says_that_it_is_not(
    make_bundle: MakeBundle, photos: Path, tmp_path: Path
) -> None:
    release, phone = (read_secret(tmp_path / f"{make_key(tmp_path / name).name}.key") for name in ("release", "phone"))
    bundle, trust = make_bundle(tmp_path / "b", keys=[release]), Trust((release.public,))
    outcome = personalize(bundle, str(photos), QUICK._replace(keys=[phone], trust=trust), Budget())
    assert (outcome.was_signed, outcome.signed) == (True, True)
    assert open_device_bundle(bundle, Trust((phone.public,))).personal is not None
    with pytest.raises(ArtifactUntrusted):
        open_device_bundle(bundle, trust)
    with pytest.raises(ArtifactUntrusted):
        personalize(bundle, str(photos), QUICK._replace(trust=trust), Budget())
    with pytest.raises(ArtifactUntrusted):
        roll_back(bundle, Trust((phone.public,)))  # what lies behind it was signed by another
    roll_back(bundle, trust)
    outcome = personalize(bundle, str(photos), QUICK, Budget())
    assert (outcome.was_signed, outcome.signed) == (True, False)
    assert read_signatures(bundle) is None


def test_leftovers_of_a_killed_process_are_removed(
    bundle: Path, both: tuple[Path, Path], make_bundle: MakeBundle
) -> None:
    _learn(bundle, both, 1)
    home = Versions(bundle).home
    make_bundle(home / "000001")  # in the place of a version, but another
    make_bundle(home / "000007")
    (home / ".000001.99999-00000000-1.part").mkdir()
    (home / "000000" / "manifest.json").write_bytes(b"half")
    with Versions(bundle).locked():
        assert [path.name for path in home.iterdir()] == [".lock"]


def test_two_at_once(bundle: Path, photos: Path) -> None:
    with Versions(bundle).locked(), pytest.raises(ConfigError, match="another process"):
        personalize(bundle, str(photos), QUICK, Budget())


def test_nothing_is_made_where_there_is_no_bundle(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing):
        personalize(tmp_path / "gone", str(photos), QUICK, Budget())
    with pytest.raises(ArtifactMissing):
        roll_back(tmp_path / "gone")
    assert not list(tmp_path.iterdir())


def test_nothing_is_made_beside_a_bundle_of_another_kind(cloud_bundle: Path, photos: Path) -> None:
    with pytest.raises(ArtifactCorrupt, match="not a 'harmony-device-bundle'"):
        personalize(cloud_bundle, str(photos), QUICK, Budget())
    assert list(cloud_bundle.parent.iterdir()) == [cloud_bundle]


_KILLER = '''
import os, random, signal, sys, time, traceback
from pathlib import Path
import harmony.device.check, harmony.device.personal.run as run
from harmony.core.bundle import open_device_bundle
from harmony.core.errors import ConfigError
from harmony.device.personal import Budget, Plan, Wish, personalize, roll_back
from harmony.device.personal.versions import version_of

bundle, users, kills = Path(sys.argv[1]), sys.argv[2:4], int(sys.argv[4])
random.seed(0)

def work():
    try:
        version = version_of(open_device_bundle(bundle))
        if version == 3:
            while True:
                roll_back(bundle)
        personalize(bundle, users[(version + 1) % 2], Wish(heads=Plan(5, 2e-2)), Budget())
    except ConfigError:  # no version is before this one
        pass

def forked(task):
    process = os.fork()
    if process:
        return process
    try:
        task()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)  # at once: the runtime's own farewell may wait for threads that a forked process has not

def doomed():
    """Die at a file operation, of a random number."""
    seen, last = [0], random.Random(turn).randrange(20, 140)
    def count(event, _):
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "ctypes.dlsym"):
            seen[0] += 1
            if seen[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    work()

start, killed, versions, turn = time.monotonic(), 0, set(), 0
assert os.waitpid(forked(work), 0)[1] == 0
usual = time.monotonic() - start
while killed < kills:
    turn += 1
    process = forked(doomed if turn % 2 else work)
    if turn % 2 == 0:
        time.sleep(random.uniform(0, usual))
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    assert status in (0, signal.SIGKILL), status
    killed += status == signal.SIGKILL
    assert os.waitpid(forked(lambda: harmony.device.check.verify(bundle)), 0)[1] == 0, killed
    versions.add(version_of(open_device_bundle(bundle)))
assert os.waitpid(forked(work), 0)[1] == 0
print(sorted(versions), killed)
'''


def test_kill_9_at_any_moment_leaves_a_whole_bundle(bundle: Path, both: tuple[Path, Path]) -> None:
    """Half of the children die at a random time, half at a random operation on files; in between they work on."""
    command = [sys.executable, "-c", _KILLER, str(bundle), *map(str, both), "50"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    versions, killed = done.stdout.rsplit(" ", 1)
    assert int(killed) == 50
    assert len(json.loads(versions)) > 1  # it did go on between the kills
