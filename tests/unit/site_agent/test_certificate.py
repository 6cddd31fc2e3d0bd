"""What an agent says of its own certificate files, at its start and while nobody answers."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from aggregator import certificates
from shared.errors import InputError
from site_agent import certificate
from site_agent.certificate import OwnCertificate
from site_agent.view import Silent
from tests.support.doctored import certified


class Heard(Silent):
    def __init__(self) -> None:
        self.words: list[str] = []

    def warned(self, text: str) -> None:
        self.words.append(text)


def test_files_that_are_in_order_are_not_spoken_of(tmp_path: Path) -> None:
    heard = Heard()
    own = OwnCertificate(certified(tmp_path), heard)
    own.check()
    own.tell_expiry()
    assert heard.words == []
    assert own.advice() == certificate.DOCTOR


def test_a_key_that_is_not_the_certificates_is_refused_with_both_files(tmp_path: Path) -> None:
    files = certified(tmp_path, sites=("ge", "philips"))
    with pytest.raises(
        InputError, match=r"philips\.key is not that of certificate .*ge\.pem.*site-agent join --finish"
    ):
        OwnCertificate(replace(files, key=tmp_path / "philips.key"), Heard()).check()


@pytest.mark.parametrize("broken", ["certificate", "key"])
def test_a_file_that_is_no_pem_is_refused_with_both_files(tmp_path: Path, broken: str) -> None:
    files = certified(tmp_path)
    getattr(files, broken).write_text("from: coordinator")
    with pytest.raises(InputError, match=r"cannot be used: .*ge\.pem, key .*ge\.key"):
        OwnCertificate(files, Heard()).check()


def test_a_key_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    files, heard = certified(tmp_path), Heard()
    files.key.chmod(0o644)
    with capture_logs() as events:
        OwnCertificate(files, heard).check()
    assert heard.words == [f"this site's key can be read by others on this machine (mode 0644): chmod 600 {files.key}"]
    assert [(one["event"], one["mode"]) for one in events] == [("key_open_to_others", "0644")]


def test_an_expired_certificate_is_said_at_once_and_is_the_advice(tmp_path: Path) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=certificates.DAYS + 3)
    heard = Heard()
    own = OwnCertificate(certified(tmp_path, now=long_ago), heard)
    own.tell_expiry()
    (words,) = heard.words
    assert words.startswith("this site's certificate EXPIRED on ")
    assert own.advice().startswith("this site's certificate EXPIRED on ")
    assert own.advice().endswith("3 days ago; renew it: site-agent join --site ge")


def test_an_expired_ca_is_the_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = certified(tmp_path)
    monkeypatch.setattr(certificates, "CA_DAYS", 20)
    old = certified(tmp_path / "old", now=datetime.now(UTC) - timedelta(days=23))
    own = OwnCertificate(replace(files, ca=old.ca), Heard())
    assert own.advice().startswith("the federation's CA EXPIRED on ")


def test_on_a_plain_connection_there_is_nothing_to_say() -> None:
    heard = Heard()
    own = OwnCertificate(None, heard)
    own.check()
    own.tell_expiry()
    assert (own.advice(), heard.words) == ("", [])
