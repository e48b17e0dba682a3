"""Versions, aliases and the audit log, on a real database: SQLite always, PostgreSQL where it is installed."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, text, update

from harmony.cloud.registry.audit import read_audit
from harmony.cloud.registry.catalogue import Registry
from harmony.cloud.registry.location import locate
from harmony.cloud.registry.schema import HEAD, AuditRow, Base
from harmony.core.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    ArtifactTooNew,
    ConfigError,
    HarmonyError,
    ParityFailed,
    ServiceError,
)
from harmony.core.spec import FeatureSpec

if TYPE_CHECKING:
    from tests.cloud.conftest import Build, Bundle, Graph

GraphType = Callable[..., "Graph"]
Make = Callable[..., Path]
ME = "cli:me"


def names(registry: Registry) -> dict[tuple[str, str, str], str]:
    return {(one.model, one.name, one.cut): one.version for one in registry.aliases()}


OTHER_CUT = FeatureSpec(channels=4, height=8, width=4)
CUT, OTHER = "8x4x4-float32", str(OTHER_CUT)


def test_versions_are_counted_and_latest_moves(registry: Registry, bundle_of: Make) -> None:
    first = registry.register(bundle_of("a"), who=ME)
    second = registry.register(bundle_of("b"), who=ME)
    again = registry.register(bundle_of("b2", run="b"), who="cli:you")
    assert (first.version, second.version) == (1, 2)
    assert again == second, "the same bytes are the same version"
    assert names(registry) == {("backend", "latest", CUT): "2"}
    assert [(one.version, one.run, one.created_by) for one in registry.versions()] == [(1, "a", ME), (2, "b", ME)]
    assert registry.check() == 2
    registry.alias("backend", "latest", 1, who=ME)
    assert names(registry) == {("backend", "latest", CUT): "1"}, "a step back is one alias"


def test_aliases_are_kept_for_each_cut_contract(registry: Registry, bundle_of: Make) -> None:
    registry.register(bundle_of("a"), who=ME)
    registry.register(bundle_of("b", OTHER_CUT), who=ME)
    assert names(registry) == {("backend", "latest", CUT): "1", ("backend", "latest", OTHER): "2"}
    registry.unalias("backend", "latest", who=ME)
    assert names(registry) == {}
    with pytest.raises(ConfigError, match="no alias 'latest'"):
        registry.unalias("backend", "latest", who=ME)


def test_what_services_shall_serve(registry: Registry, bundle_of: Make) -> None:
    before = registry.revision()
    for run in ("a", "b", "c"):
        registry.register(bundle_of(run), who=ME)
    registry.alias("backend", "canary", 2, share=0.25, who=ME)
    wanted = registry.wanted()
    assert [(one.version, one.loaded) for one in wanted.versions] == [("2", True), ("3", True)], "nothing names 1"
    assert [one.folder.name for one in wanted.versions] == [one.digest for one in wanted.versions]
    assert {(one.name, one.version, one.share) for one in wanted.aliases} == {
        ("canary", "2", 0.25),
        ("latest", "3", 0.0),
    }
    assert before < wanted.revision == registry.revision()
    registry.set_loaded("backend", loaded=False, who=ME)
    assert not any(one.loaded for one in registry.wanted().versions)
    assert registry.revision() > wanted.revision
    with pytest.raises(ConfigError, match="no model 'other'"):
        registry.set_loaded("other", loaded=True, who=ME)
    with pytest.raises(ConfigError):  # PostgreSQL takes no zero byte
        registry.set_loaded("zero\0", loaded=True, who=ME)


def test_removing_deletes_the_bundle_and_never_reuses_its_number(registry: Registry, bundle_of: Make) -> None:
    one, two = (registry.register(bundle_of(run), who=ME) for run in "ab")
    with pytest.raises(ConfigError, match="served as latest"):
        registry.remove("backend", 2, who=ME)
    registry.alias("backend", "latest", 1, who=ME)
    registry.remove("backend", 2, who=ME)
    assert registry.store.folder(one.digest).is_dir()
    assert not registry.store.folder(two.digest).exists()
    assert registry.register(bundle_of("c"), who=ME).version == 3
    for version in (2, 9):
        with pytest.raises(ConfigError, match=f"no version {version} of 'backend'"):
            registry.remove("backend", version, who=ME)


def test_shares_leave_something_for_latest(registry: Registry, bundle_of: Make) -> None:
    registry.register(bundle_of("a"), who=ME)
    registry.register(bundle_of("b"), names=["canary"], share=0.6, who=ME)
    registry.alias("backend", "canary", 1, share=0.7, who=ME)
    with pytest.raises(ConfigError, match=r"add up to 1\.1"):
        registry.alias("backend", "beta", 1, share=0.4, who=ME)
    assert ("backend", "beta", CUT) not in names(registry)
    for name, share, words in (
        ("latest", 0.1, "takes what the shares leave"),
        ("beta", 1.5, "no share"),
        ("beta", float("nan"), "no share"),
        ("7", 0.0, "is no alias"),
        ("a/b", 0.0, "is no alias"),
        ("x" * 65, 0.0, "is no alias"),
    ):
        with pytest.raises(ConfigError, match=words):
            registry.alias("backend", name, 1, share=share, who=ME)


def other_weights(bundle: Any) -> None:
    bundle["probabilities"] += 0.5


def test_what_cannot_be_served_is_not_registered(
    registry: Registry, build_bundle: Build, graph: GraphType, bundle: Bundle, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(bundle.folder, tmp_path / "broken"))
    (broken / "back_end.onnx").write_bytes((broken / "back_end.onnx").read_bytes()[:-1])
    wrong = build_bundle(tmp_path / "wrong", graph(vectors=other_weights)).folder
    cases: list[tuple[Path, type[HarmonyError]]] = [
        (broken, ArtifactCorrupt),
        (wrong, ParityFailed),
        (tmp_path / "absent", ArtifactMissing),
    ]
    for folder, error in cases:
        with pytest.raises(error):
            registry.register(folder, who=ME)
    assert registry.versions() == []
    assert not list((tmp_path / "bundles").iterdir()), "nothing half-registered stays in the store"


def test_a_changed_byte_in_the_store_is_found(registry: Registry, bundle_of: Make) -> None:
    folder = registry.store.folder(registry.register(bundle_of("a"), who=ME).digest)
    program = folder / "back_end.onnx"
    program.write_bytes(program.read_bytes()[:-1] + b"\0")
    with pytest.raises(ArtifactCorrupt, match=r"back_end\.onnx"):
        registry.check()
    shutil.rmtree(folder)
    with pytest.raises(ArtifactMissing, match="the registry names this bundle"):
        registry.check()


def test_every_act_is_in_the_audit_log_which_cannot_be_changed(registry: Registry, bundle_of: Make) -> None:
    registry.register(bundle_of("a"), who="cli:a")
    registry.register(bundle_of("b"), who="cli:b", names=["canary"], share=0.5)
    registry.unalias("backend", "canary", who="cli:c")
    registry.remove("backend", 2, who="cli:d")
    registry.set_loaded("backend", loaded=False, who="key:e")
    with pytest.raises(ConfigError):
        registry.alias("backend", "beta", 77, who="cli:f")
    entries = read_audit(registry.database)
    assert [(one.who, one.act, one.subject) for one in reversed(entries)] == [
        ("cli:a", "version.register", "backend/1"),
        ("cli:a", "alias.set", "backend@latest"),
        ("cli:b", "version.register", "backend/2"),
        ("cli:b", "alias.set", "backend@canary"),
        ("cli:c", "alias.remove", "backend@canary"),
        ("cli:d", "version.remove", "backend/2"),
        ("key:e", "model.unload", "backend"),
    ]
    assert entries[3].detail["share"] == 0.5
    assert [one.id for one in read_audit(registry.database, limit=2, before=entries[1].id)] == [
        one.id for one in entries[2:4]
    ]
    for attempt in (delete(AuditRow), update(AuditRow).values(who="nobody")):
        with pytest.raises(ServiceError, match="append-only"), registry.database.writing() as connection:
            connection.execute(attempt)
    assert len(read_audit(registry.database)) == 7


def test_a_database_of_a_later_version(registry: Registry, url: str, tmp_path: Path) -> None:
    with registry.database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ArtifactTooNew, match="version 9999"):
        Registry(locate(url, tmp_path / "bundles"))


def test_the_migrations_make_the_tables_that_the_program_uses(registry: Registry) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with registry.database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        differences = [one for one in compare_metadata(context, Base.metadata) if "index" not in str(one[0])]
        assert differences == []
        assert context.get_current_revision() == HEAD


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("mysql://x/y", "'mysql' is not supported"),
        ("sqlite://", "is not the URL of a file"),
        ("sqlite:///:memory:", "is not the URL of a file"),
        ("sqlite:////tmp/x?mode=ro", "is not the URL of a file"),
        ("postgresql://u:secret@h/d", "keeps no bundles"),
        ("://", "is not a database URL"),
    ],
)
def test_places_that_cannot_be_meant(where: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        locate(where)
    assert "secret" not in str(refused.value)


def test_no_registry_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="no registry here"):
        Registry(locate(str(tmp_path / "absent")))
    (tmp_path / "registry.db").write_bytes(b"something else entirely, " * 100)
    with pytest.raises(ArtifactCorrupt, match="not a registry"):
        Registry(locate(str(tmp_path)))


def test_a_server_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    where = locate("postgresql://me:secret@127.0.0.1:1/none", tmp_path)
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1") as refused:
        Registry(where)
    assert "secret" not in str(refused.value)


def test_the_database_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    Registry(locate(str(tmp_path / "new")), create=True).database.close()
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0
    assert (tmp_path / "new" / "registry.db").stat().st_mode & 0o077 == 0


def test_who_reads_does_not_wait_for_who_writes(tmp_path: Path) -> None:
    registry = Registry(locate(str(tmp_path)), create=True)
    with registry.database.writing():
        assert registry.versions() == []
    with sqlite3.connect(tmp_path / "registry.db") as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    raw.close()
    registry.database.close()
