"""Settings: what the file says, what the command line says over it, and every mistake by its name."""

import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shared.errors import InputError
from shared.tls import TlsFiles
from site_agent import config
from site_agent.cli import app
from site_agent.config import SiteConfig

NEEDED = {"aggregator": "127.0.0.1:1", "cohort": Path("c"), "weights": Path("w")}
PLAIN = {**NEEDED, "plain_site": "ge"}
WHOLE = """
aggregator = "fed.example.org:443"
cohort = "cohorts/ge"
weights = "/opt/cinema.safetensors"
weights_size = "base"
federation = "hearts"
validation_fold = 2
give_up_after_s = 60
threads = 4
[tls]
ca = "ca.pem"
certificate = "ge.pem"
key = "keys/ge.key"
"""


@pytest.fixture
def site_toml(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "site.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_file_is_read_and_its_paths_are_relative_to_it(site_toml, tmp_path):
    read = config.load(site_toml(WHOLE), {})
    assert read == SiteConfig(
        aggregator="fed.example.org:443",
        cohort=tmp_path / "cohorts/ge",
        weights=Path("/opt/cinema.safetensors"),
        weights_size="base",
        federation="hearts",
        tls=TlsFiles(tmp_path / "ca.pem", tmp_path / "ge.pem", tmp_path / "keys/ge.key"),
        validation_fold=2,
        give_up_after_s=60.0,
        threads=4,
        state=tmp_path / "state",  # not said: beside the file all the same
    )
    assert type(read.give_up_after_s) is float


def test_options_override_the_file_and_those_not_given_do_not(site_toml):
    read = config.load(site_toml(WHOLE), {"federation": "lungs", "threads": None, "seed": 0})
    assert (read.federation, read.threads, read.seed) == ("lungs", 4, 0)


def test_no_file_is_needed():
    assert config.load(None, PLAIN) == SiteConfig(**PLAIN)


@pytest.mark.parametrize("missing", list(NEEDED))
def test_what_is_missing_is_named_with_its_option(missing):
    with pytest.raises(InputError, match=f"'{missing}' is not set: give it in site.toml or as --{missing}"):
        config.load(None, {name: value for name, value in PLAIN.items() if name != missing})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cohrot = 'c'", "unknown key 'cohrot' .*cohort"),
        ("threads = '2'", "'threads' must be a int, got '2'"),
        ("threads = true", "'threads' must be a int, got True"),
        ("give_up_after_s = 'long'", "'give_up_after_s' must be a float, got 'long'"),
        ("cohort = 3", "'cohort' must be a str, got 3"),
        ("aggregator = 3", "'aggregator' must be a str, got 3"),
        ("[tls]\nca = 'ca.pem'", r"\[tls\] needs exactly ca, certificate, key"),
        ("tls = 'ca.pem'", r"\[tls\] needs exactly ca, certificate, key"),
        ("cohort = ", "is not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_the_file(site_toml, text, message):
    with pytest.raises(InputError, match=f"site.toml.*{message}"):
        config.load(site_toml(text), PLAIN)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*absent\.toml: No such file"):
        config.load(tmp_path / "absent.toml", PLAIN)


def test_a_plain_site_beside_the_files_tls_is_refused_and_one_that_nobody_named_is_not(site_toml):
    path = site_toml(WHOLE)
    with pytest.raises(InputError, match=r"plain_site \(--plain-site\) 'ge' and TLS files \(\[tls\], --tls-ca\)"):
        config.load(path, {"plain_site": "ge"})
    assert config.load(path, {}, {"plain_site": "this-site"}).tls is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"aggregator": "fed.example.org"},
            "aggregator must be host:port with a port from 1 to 65535, got 'fed.example.org'",
        ),
        ({"aggregator": "127.0.0.1:http"}, "must be host:port"),
        ({"aggregator": ":443"}, "must be host:port"),
        ({"plain_site": ""}, "no TLS files given"),
        ({"aggregator": "10.0.0.1:443"}, "plain text is allowed on loopback only, got '10.0.0.1:443'"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'"),
        ({"validation_fold": 5}, "validation_fold must be 0 to 4, got 5"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"cache_mb": -1}, "cache_mb"),
        ({"give_up_after_s": 0.0}, "give_up_after_s"),
        ({"call_timeout_s": 0.0}, "call_timeout_s must be positive and checkpoint_s not negative, got 0.0 and 5.0"),
        ({"call_timeout_s": float("inf")}, "call_timeout_s"),
        ({"checkpoint_s": -1.0}, "checkpoint_s not negative, got 30.0 and -1.0"),
        ({"checkpoint_s": float("nan")}, "checkpoint_s"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_they_are_made(changes, message):
    with pytest.raises(InputError, match=message):
        SiteConfig(**{**PLAIN, **changes})


def test_plain_text_off_this_machine_needs_tls_and_takes_it():
    tls = TlsFiles(Path("ca"), Path("c"), Path("k"))
    made = SiteConfig(**{**NEEDED, "aggregator": "10.0.0.1:443", "tls": tls})
    assert replace(made, seed=1).tls == tls


@pytest.mark.parametrize("given", [("ca",), ("ca", "cert"), ("key",)])
def test_a_part_of_the_tls_options_is_not_taken_for_none(given):
    options = [word for name in given for word in (f"--tls-{name}", "x.pem")]
    result = CliRunner().invoke(app, ["--aggregator", "127.0.0.1:1", "--plain-site", "ge", *options])
    assert isinstance(result.exception, InputError)
    assert "--tls-ca, --tls-cert and --tls-key go together" in str(result.exception)


def test_the_example_in_deploy_has_every_setting_and_loads():
    example = Path(__file__).resolve().parents[3] / "deploy" / "site.toml"
    loaded = config.load(example, {})
    assert loaded.cohort == example.parent / "cohort" / "siemens"
    named = set(tomllib.loads(example.read_text()))
    assert named == {field.name for field in fields(SiteConfig)} - {"plain_site"}


PINNED = """
[agreed]
base_model = "3f0c9a8e41d2"
rounds = 50
metrics = ["auc"]
epsilon = 8.0
windows = ["20:00-06:30"]
[agreed.at_most]
local_epochs = 4
"""


@pytest.mark.parametrize("more", ["", PINNED, "[agreed]\nmetrics = []\n"], ids=["", "pins", "no figure may leave"])
def test_what_print_config_prints_is_a_file_that_says_the_same(site_toml, monkeypatch, more):
    path = site_toml(WHOLE + more)
    monkeypatch.chdir(path.parent)
    printed = CliRunner().invoke(app, ["--config", "site.toml", "--threads", "2", "--print-config"])
    assert printed.exit_code == 0, printed.output
    here = {"threads": 2}
    assert replace(config.load(path, {}), **here) == config.load(site_toml(printed.stdout), {})
