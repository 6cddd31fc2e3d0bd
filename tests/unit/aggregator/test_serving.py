"""`aggregator serve --print-config`: what would be served, without a secret and without touching the store."""

import tomllib
from pathlib import Path

from typer.testing import CliRunner

from aggregator.cli import build


def printed(*more: str) -> str:
    done = CliRunner().invoke(build(), ["serve", *more, "--print-config"])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_passwords_are_hidden() -> None:
    store, traces = "postgresql://anna:tulip@db.example.org/fed", "http://olga:daisy@collector.example.org:4317"
    text = printed("--store", store, "--traces", traces, "--plain")
    assert "tulip" not in text
    assert "daisy" not in text
    found = tomllib.loads(text)
    assert found["store"] == "postgresql://anna:***@db.example.org/fed"
    assert found["traces"] == "http://***@collector.example.org:4317"


def test_all_that_would_be_served_is_there_and_no_store_is_made(tmp_path: Path) -> None:
    store = tmp_path / "fed.db"
    tls = [str(word) for name in ("ca", "cert", "key") for word in (f"--tls-{name}", tmp_path / f"{name}.pem")]
    found = tomllib.loads(printed("--store", str(store), *tls, "--listen", "0.0.0.0:443", "--keep-rounds", "3"))
    assert found["store"] == str(store)
    assert found["listen"] == "0.0.0.0:443"
    assert found["tls"]["key"] == str(tmp_path / "key.pem")
    assert found["limits"]["keep_rounds"] == 3
    assert not store.exists()
