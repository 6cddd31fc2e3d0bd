"""What a round begins with: a version's own place in the tree, however often the coordinator rolled back."""

import pytest

from site_agent import lineage
from site_agent.lineage import Finished, Start


class Site:
    """A site's finished rounds, written as a story: which round was given which version, made from which."""

    def __init__(self) -> None:
        self.finished: list[Finished] = []
        self.parents = {0: ""}

    def start(self, version: int) -> Start:
        return lineage.start(self.finished, version, self.parents[version], f"digest {version}")

    def train(self, number: int, version: int, made: int | None = None, *, accepted: bool = True) -> Start:
        """Finish a round that began from `version`; the aggregator makes version `made` of it."""
        start = self.start(version)
        self.finished.append(Finished(number=number, base_version=version, accepted=accepted, start=start))
        self.closes(version, made)
        return start

    def closes(self, version: int, made: int | None) -> None:
        if made is not None:
            self.parents[made] = f"digest {version}"


def places(start: Start) -> tuple[int, int]:
    return start.local, start.residual


@pytest.fixture
def three_rounds() -> Site:
    site = Site()
    for number in (1, 2, 3):
        site.train(number, number - 1, made=number)
    return site


def test_the_first_round_begins_with_nothing():
    assert Site().start(0) == Start(local=0, residual=0, received="digest 0")


def test_undisturbed_every_round_begins_with_the_one_before(three_rounds):
    assert [places(one.start) for one in three_rounds.finished] == [(0, 0), (1, 1), (2, 2)]
    assert three_rounds.start(3) == Start(local=3, residual=3, received="digest 3")


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_after_a_rollback_a_round_begins_with_the_version_s_snapshot(three_rounds, version):
    three_rounds.train(4, 3, made=None)  # begun from version 3 and abandoned by the rollback
    assert places(three_rounds.train(5, version, made=4)) == (version, version)
    assert places(three_rounds.start(4)) == (5, 5)


def test_a_version_is_never_confused_with_its_sibling(three_rounds):
    """Versions 2 and 4 were both made from version 1, by rounds 2 and 4."""
    three_rounds.train(4, 1, made=4)
    assert places(three_rounds.start(2)) == (2, 2)
    assert places(three_rounds.start(4)) == (4, 4)
    assert places(three_rounds.train(5, 4, made=5)) == (4, 4)
    assert places(three_rounds.start(3)) == (3, 3)
    assert places(three_rounds.start(5)) == (5, 5)


def test_a_version_made_without_the_site_goes_with_its_parent_s_snapshot(three_rounds):
    three_rounds.closes(1, made=4)  # rolled back to version 1; the site was not invited to round 4
    assert places(three_rounds.start(4)) == (1, 1)


def test_a_site_that_missed_rounds_goes_on_with_its_last_one():
    site = Site()
    site.train(1, 0, made=1)
    site.closes(1, made=2)
    site.closes(2, made=3)
    assert places(site.start(3)) == (1, 1)
    site.train(4, 3, made=4)
    site.closes(4, made=5)
    assert places(site.start(5)) == (4, 4)


def test_an_update_that_never_counted_leaves_its_local_adapter_and_not_its_residual():
    site = Site()
    site.train(1, 0, made=1)
    site.train(2, 1, made=2, accepted=False)
    assert places(site.start(2)) == (2, 1)
    site.train(3, 2, made=3, accepted=False)
    assert places(site.start(3)) == (3, 1)
    site.train(4, 3, made=4)
    assert places(site.start(4)) == (4, 4)


def test_the_order_in_which_rounds_are_told_does_not_matter(three_rounds):
    expected = [three_rounds.start(version) for version in range(4)]
    three_rounds.finished.reverse()
    assert [three_rounds.start(version) for version in range(4)] == expected


def test_a_number_given_again_by_a_restored_store_is_not_the_version_it_was(three_rounds):
    """Another version 2 was made from version 1. What round 3 began with belongs to the version 2 that is gone."""

    def start_from_other(version_2: str) -> Start:
        return lineage.start(three_rounds.finished, 2, "digest 1", version_2)

    begun = start_from_other("digest 2 of another store")
    assert begun == Start(local=1, residual=1, received="digest 2 of another store")
    three_rounds.finished.append(Finished(number=4, base_version=2, accepted=True, start=begun))
    assert start_from_other("digest 2 of another store") == begun
    assert places(three_rounds.start(2)) == (2, 2)
