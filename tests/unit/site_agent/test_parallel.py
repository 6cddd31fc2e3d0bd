"""Who does what of a batch, and how a process learns that it is one of several."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InputError
from site_agent.training import parallel
from site_agent.training.launch import Launch
from site_agent.training.parallel import ALONE, Alone

OF_TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
}


@given(st.integers(0, 200), st.integers(1, 16))
def test_every_thing_is_one_process_s_and_no_process_has_two_more_than_another(count, size):
    shares = [range(count)[parallel.share(count, Alone(rank, size))] for rank in range(size)]
    assert [thing for share in shares for thing in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_everything_is_ones_own():
    told = object()
    assert ALONE.told(told) is told
    assert ALONE.gathered(lambda: told) == [told]
    assert ALONE.summed([], lambda: 0.5) == 0.5
    with pytest.raises(InputError, match="as it is"):
        ALONE.gathered(lambda: _raise(InputError("as it is")))


def _raise(error):
    raise error


def test_torchrun_says_who_a_process_is():
    assert Launch.of(OF_TORCHRUN) == Launch(rank=3, size=4, local_rank=1, local_size=2)


@pytest.mark.parametrize(
    "changes", [{"TORCHELASTIC_RUN_ID": None}, {"WORLD_SIZE": "1"}, dict.fromkeys(OF_TORCHRUN)], ids=str
)
def test_a_process_that_torchrun_did_not_start_or_started_alone_is_the_agent_as_ever(changes):
    environment = {name: value for name, value in {**OF_TORCHRUN, **changes}.items() if value is not None}
    assert Launch.of(environment) is None


@pytest.mark.parametrize("changes", [{"RANK": "first"}, {"LOCAL_RANK": None}], ids=str)
def test_what_torchrun_would_not_say_is_refused(changes):
    environment = {name: value for name, value in {**OF_TORCHRUN, **changes}.items() if value is not None}
    with pytest.raises(InputError, match="RANK, WORLD_SIZE"):
        Launch.of(environment)


def test_an_agent_alone_loads_nothing_of_several_processes():
    code = "import sys, site_agent.agent; print('site_agent.training.processes' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert finished.stdout == "False\n"
