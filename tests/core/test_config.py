"""Training configs: what is written is read back, and every mistake names the file and the field."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.core.config import METHOD_DEFAULTS, TrainConfig, load_config, make_config, merged, save_config
from harmony.core.errors import ConfigError, StorageError
from harmony.core.partition import ClassesPerClient, Dirichlet, Shards


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"method": "splitgp"},
        {"partition": {"kind": "dirichlet", "clients": 5, "alpha": 0.1}},
        {"partition": {"kind": "shards", "clients": 5}, "seed": 7, "learning_rate": 1e-07},
        {"partition": {"samples_per_class": 30}, "architectures": [" mobilenet-w8-d1"]},
        {"data": {"name": 'a "quoted" \\ näme\n', "folder": "/x", "holdout": 0.2}},
        {"harmony": {"simulate": False, "contrast": 1, "personalize_epochs": 0}, "gamma": 1},
    ],
)
def test_a_config_is_read_as_it_was_saved(path: Path, value: dict[str, Any]) -> None:
    config = make_config(value)
    save_config(config, path)
    assert load_config(path) == config
    assert make_config(config.model_dump(mode="json")) == config, "as a checkpoint keeps it"
    save_config(load_config(path), path)
    assert load_config(path) == config


@given(learning_rate=st.floats(1e-12, 10), holdout=st.floats(0, 0.5, exclude_min=True, exclude_max=True))
def test_numbers_keep_every_digit(
    tmp_path_factory: pytest.TempPathFactory, learning_rate: float, holdout: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "digits.toml"
    config = make_config({"learning_rate": learning_rate, "data": {"holdout": holdout}})
    save_config(config, path)
    assert load_config(path) == config


def test_a_saved_config_names_every_setting(path: Path) -> None:
    save_config(TrainConfig(), path)
    written = tomllib.loads(path.read_text())
    assert set(written) == set(TrainConfig.model_fields)
    assert set(written["harmony"]) == set(TrainConfig().harmony.model_dump())


def test_a_method_has_defaults_of_its_own_that_a_file_may_change() -> None:
    assert make_config({"method": "splitgp"}).exits.score == "entropy"
    assert make_config({"method": "local"}).learning_rate == make_config({}).learning_rate / 2
    assert make_config({}).exits.score == "own_mass"
    mine = make_config({"method": "splitgp", "exits": {"score": "msp", "offload": 0.3}, "learning_rate": 0.5})
    assert (mine.exits.score, mine.exits.offload, mine.exits.pass1, mine.learning_rate) == ("msp", 0.3, 1.0, 0.5)
    before = str(METHOD_DEFAULTS)
    merged(METHOD_DEFAULTS["splitgp"], {"exits": {"score": "gen"}})
    assert str(METHOD_DEFAULTS) == before


def test_overrides_go_over_the_file_field_by_field(path: Path) -> None:
    path.write_text('rounds = 3\nsteps = 4\n[partition]\nkind = "shards"\nclients = 9\n[data]\nholdout = 0.2\n')
    config = load_config(path, {"rounds": 5, "data": {"name": "x"}, "partition": {"shards_per_client": 4}})
    assert (config.rounds, config.steps, config.data.name, config.data.holdout) == (5, 4, "x", 0.2)
    assert config.partition == Shards(clients=9, shards_per_client=4)


def test_a_partition_of_another_kind_replaces_the_whole_table(path: Path) -> None:
    path.write_text('[partition]\nkind = "shards"\nclients = 9\nshards_per_client = 3\n')
    over = {"partition": {"kind": "dirichlet", "clients": 4, "alpha": 0.5}}
    assert load_config(path, over).partition == Dirichlet(clients=4, alpha=0.5)
    same = load_config(path, {"partition": {"kind": "shards", "clients": 2}}).partition
    assert same == Shards(clients=2, shards_per_client=3)
    assert make_config({"partition": {"clients": 4}}).partition == ClassesPerClient(clients=4, classes=3)


WRONG: list[tuple[str, str]] = [
    ("rounds = 0", "rounds: .*greater than or equal to 1"),
    ("rounds = true", "rounds: .*integer"),
    ("rounds = 2.0", "rounds: .*integer"),
    ('rounds = "3"', "rounds: .*integer"),
    ("rounds = [3]", "rounds: .*integer"),
    ("rounds = 1979-05-27", "rounds: .*integer"),
    ("seed = -1", "seed: "),
    ("seed = 2147483648", "seed: .*less than"),
    ("gamma = true", "gamma: .*number"),
    ("gamma = nan", "gamma: "),
    ("gamma = 1.01", "gamma: "),
    ("learning_rate = inf", "learning_rate: "),
    ("learning_rate = nan", "learning_rate: "),
    ("learning_rate = 0", "learning_rate: .*greater than 0"),
    ("back_end_width = 12", "back_end_width: .*multiple of 8"),
    ("threads = 0", "threads: "),
    ('method = "fedavg"', "method: .*'harmony', 'splitgp'"),
    ("method = 3", "method: "),
    ('method = ["splitgp"]', "method: "),
    ("nonsense = 3", "nonsense: Extra"),
    ("data = 3", "data: "),
    ("[data]\nnam = 1", r"data\.nam: Extra"),
    ("[data]\nname = 1", r"data\.name: .*string"),
    ("[data]\nholdout = 0.5", r"data\.holdout: .*less than 0\.5"),
    ("[harmony]\nsimulate = 1", r"harmony\.simulate: .*boolean"),
    ("[harmony]\ncontrast = inf", r"harmony\.contrast: .*finite"),
    ("[harmony]\ncontrast = -1", r"harmony\.contrast: "),
    ("[harmony]\ntemperature = inf", r"harmony\.temperature: .*finite"),
    ("[harmony]\ntemperature = 0", r"harmony\.temperature: "),
    ("[splitgp]\nmixing = 2", r"splitgp\.mixing: "),
    ("[exits]\nscore = 'odin'", r"exits\.score: .*'own_mass'"),
    ("[exits]\npass1 = nan", r"exits\.pass1: "),
    ("method = 'splitgp'\n[exits]\nscore = 'own_mass'", r"exits\.score 'own_mass' needs a gate head"),
    ("architectures = []", "architectures: .*at least 1"),
    ("architectures = 'resnet-w16-d1'", "architectures: "),
    ("architectures = [16]", r"architectures\.0: .*string"),
    ("architectures = ['resnet']", "architectures: 'resnet' is not an architecture .*resnet-w16-d2"),
    ("architectures = ['resnet-w12-d1']", "architectures: .*multiple of 8"),
    ("architectures = ['resnet-w16-d1', 'vgg-w16-d1']", "architectures: unknown family 'vgg'.*resnet, mobilenet"),
    ("partition = 3", "partition: "),
    ("[partition]\nkind = 'x'", "partition: .*'shards', 'dirichlet', 'classes'"),
    ("[partition]\nclients = 0", r"partition\.clients: .*greater than or equal to 1"),
    ("[partition]\nclients = true", r"partition\.clients: .*integer"),
    ("[partition]\nalpha = 1", r"partition\.alpha: Extra"),
    ("[partition]\nkind = 'dirichlet'\nclients = 3", r"partition\.alpha: .*required"),
    ("[partition]\nkind = 'dirichlet'\nclients = 3\nalpha = nan", r"partition\.alpha: "),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[text for text, _ in WRONG])
def test_a_wrong_field_is_named_with_its_file(path: Path, text: str, said: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"config\.toml: {said}") as caught:
        load_config(path)
    assert "Value error" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"rounds = ",
        b"rounds = 1\nrounds = 2",
        b"[data]\n[data]",
        b"\xff\xfe",
        b"name = '\xe9'",
        b'name = "\\ud800"',
        b"rounds = " + b"9" * 5000,
        b"x = " + b"[" * 100_000,
        b"x = " + b"{a=" * 100_000,
    ],
    ids=lambda content: f"{content[:12]!r}",
)
def test_what_is_no_toml_says_so(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.toml: is not TOML: "):
        load_config(path)


def test_files_that_cannot_be_read(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.toml: no such file"):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)
    path.touch()
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        load_config(path / "below")
    with pytest.raises(ConfigError, match="is larger than 1048576 bytes"):
        load_config(Path("/dev/zero"))
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ConfigError, match="is larger than"):
        load_config(path)


def test_an_empty_file_is_the_defaults(path: Path) -> None:
    path.touch()
    assert load_config(path) == make_config({})


@pytest.mark.parametrize("field", ["name", "folder"])
def test_a_name_that_no_file_can_hold_is_a_config_error(field: str) -> None:
    """A command line gives bytes that are no UTF-8 as halves of characters."""
    with pytest.raises(ConfigError, match=rf"config: data\.{field}: .*surrogates not allowed"):
        make_config({"data": {field: os.fsdecode(b"caf\xe9")}})


def test_a_config_that_cannot_be_saved(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        save_config(TrainConfig(), tmp_path / "file" / "config.toml")


def test_epsilon_is_for_a_method_that_tells_tokens() -> None:
    assert make_config({"tokens": {"epsilon": 2.0}}).tokens.epsilon == 2.0
    with pytest.raises(ConfigError, match=r"tokens\.epsilon is for harmony: clients of splitgp tell no token"):
        make_config({"method": "splitgp", "tokens": {"epsilon": 2.0}})
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"tokens\.epsilon"):
            make_config({"tokens": {"epsilon": wrong}})
