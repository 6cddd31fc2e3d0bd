"""What certificates say, and when their end is spoken of."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from aggregator import certificates as authority
from shared import certificates
from shared.certificates import DAY_S, Expiry
from shared.errors import InputError

NOW = datetime(2026, 11, 28, tzinfo=UTC)


def test_a_holder_is_read_by_role(tmp_path: Path) -> None:
    authority.make(tmp_path, ["127.0.0.1"], ["ge"], ["anna"], ["olga"], now=NOW)
    read = {name: certificates.holder_in(tmp_path / f"{name}.pem") for name in ("ge", "anna", "olga", "aggregator")}
    assert (read["ge"].site, read["anna"].site, read["aggregator"].site) == ("ge", "", "")
    assert read["anna"].names == {"site": (), "coordinator": ("anna",), "observer": ()}
    assert read["olga"].names["observer"] == ("olga",)
    assert read["ge"].expires_at == (NOW + timedelta(days=authority.DAYS)).timestamp()
    assert len({one.serial for one in read.values()}) == 4


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("hello")
    with pytest.raises(InputError, match=r"a\.pem: this is no certificate in PEM form"):
        certificates.holder_in(tmp_path / "a.pem")
    with pytest.raises(InputError, match=r"cannot read the certificate .*b\.pem: No such file"):
        certificates.holder_in(tmp_path / "b.pem")


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (400, ""),
        (60.5, ""),
        (60, "expires on 2026-11-28, in 60 days"),
        (6.9, "expires on 2026-11-28, in 7 days"),
        (-3, "EXPIRED on 2026-11-28, 3 days ago"),
    ],
)
def test_the_end_is_spoken_of_from_sixty_days_on(days: float, words: str) -> None:
    ends = NOW.timestamp()
    assert certificates.expiry_words(ends, ends - days * DAY_S) == words


def test_it_is_said_once_at_sixty_thirty_and_seven_days_and_at_the_end() -> None:
    expiry, ends = Expiry(), NOW.timestamp()
    said = [days for days in range(100, -5, -1) if expiry.news("ge", ends, ends - days * DAY_S)]
    assert said == [60, 30, 7, 0]


def test_a_renewed_certificate_is_spoken_of_anew() -> None:
    expiry, ends = Expiry(), NOW.timestamp()
    assert expiry.news("ge", ends, ends - 5 * DAY_S)
    assert not expiry.news("ge", ends + 300 * DAY_S, ends)
    assert expiry.news("ge", ends + 300 * DAY_S, ends + 290 * DAY_S)
    assert expiry.news("siemens", ends, ends - 5 * DAY_S)
