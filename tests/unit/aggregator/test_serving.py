"""`aggregator serve`: what it says at its start; with --print-config what would be served, without a secret."""

import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from aggregator.cli import build, serving
from aggregator.store import engine, federations
from tests.support.serving import make_store


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


def test_the_first_screen_says_until_when_it_waits_and_to_a_log_it_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = engine.open_store(make_store(tmp_path))
    state = opened.read(federations.state, "demo")
    opened.close()
    running: Any = SimpleNamespace(address="127.0.0.1:1", web=None)
    rounds = "until: 2 rounds are closed; this one waits "
    for deadline_at, said in (
        (None, "for 3600 s from the first join on, "),
        (86400.0, "until 1970-01-02 00:00:00 UTC, "),
    ):
        serving._announce(running, replace(state, round=replace(state.round, deadline_at=deadline_at)), screen=True)
        assert capsys.readouterr().err.splitlines()[-1] == f"{rounds}{said}then for whoever the quorum lacks"
    serving._announce(running, replace(state, phase="finished"), screen=True)
    assert "until" not in capsys.readouterr().err
    serving._announce(running, state, screen=False)
    assert capsys.readouterr().err == ""
