"""Memory that runs out: the step is done again with less, to the same gradient, and said once."""

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from shared.errors import InputError
from shared.recipe import Recipe
from site_agent.models import adapter_tensors
from site_agent.models.adapter_tensors import Ownership
from site_agent.training import evaluate, local, memory, micro_batch
from site_agent.training.local import Position
from site_agent.training.micro_batch import MicroBatch
from tests.support import tiny_site

OWNED = Ownership("global+local-bias")
RECIPE = Recipe(rank_local=2, augmentation="none", local_epochs=1, batch_size=8)
CPU = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return tiny_site.write_cases(tmp_path_factory.mktemp("cases"), 12)


class Narrow:
    """A suffix that has room for `most` samples whose intermediate values are kept, and for `more` if they are not."""

    def __init__(self, model, most, error, more=0):
        self._suffix, self._blocks = model.suffix, model.backbone.blocks
        self._most, self._error, self._more = most, error, more or most
        self.sizes = []
        model.suffix = self

    def __call__(self, prefix):
        samples = len(prefix.tokens)
        self.sizes.append(samples)
        kept = all("forward" not in vars(block) for block in self._blocks)
        if samples > (self._most if kept else self._more):
            raise self._error
        return self._suffix(prefix)


def train(cases, fitting, most=99, error=None, more=0, number=1):
    model = tiny_site.classifier()
    narrow = Narrow(model, most, error, more)
    with capture_logs() as logs:
        local.train_round(
            model, tiny_site.activations(model), cases, RECIPE, OWNED, Position(number, 4, 7), micro_batch=fitting
        )
    said = [event for event in logs if event["event"] == "memory_ran_out"]
    return adapter_tensors.global_tensors(model, OWNED), narrow.sizes, said


def assert_same(found, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-4, err_msg=name)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(CPU),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_step_that_runs_out_of_memory_is_done_again_with_half_as_many_samples(cases, error):
    expected, _, _ = train(cases, MicroBatch(8))
    fitting = MicroBatch(8)
    found, sizes, said = train(cases, fitting, most=4, error=error)
    assert sizes == [8, 4, 4, 4]  # 12 cases: a step of 8, one of 4
    assert [(event["log_level"], event["samples"], event["next"]) for event in said] == [("warning", 8, "4 at a time")]
    assert fitting == MicroBatch(4)
    assert_same(found, expected)


def test_what_was_found_is_kept_for_the_rounds_after(cases):
    fitting = MicroBatch(8)
    train(cases, fitting, most=2, error=MemoryError())
    _, sizes, said = train(cases, fitting, most=2, error=MemoryError(), number=2)
    assert set(sizes) == {2}
    assert said == []


def test_a_step_that_fails_in_its_second_half_counts_no_sample_twice(cases):
    """Memory runs out when half of the gradient is there already."""
    expected, _, _ = train(cases, MicroBatch(8))
    model, failed = tiny_site.classifier(), []
    suffix = model.suffix

    def once_short(prefix):
        if len(prefix.tokens) == 4 and failed.append(True) is None and len(failed) == 2:
            raise MemoryError
        return suffix(prefix)

    model.suffix = once_short
    fitting = MicroBatch(4)
    local.train_round(model, tiny_site.activations(model), cases, RECIPE, OWNED, Position(1, 4, 7), micro_batch=fitting)
    assert fitting.size == 2
    assert_same(adapter_tensors.global_tensors(model, OWNED), expected)


def test_where_one_sample_is_too_much_the_trained_blocks_are_checkpointed(cases):
    expected, _, _ = train(cases, MicroBatch(1))
    fitting = MicroBatch(2)
    found, sizes, said = train(cases, fitting, most=0, error=RuntimeError(CPU), more=1)
    assert [event["next"] for event in said] == ["1 at a time", "gradient checkpointing"]
    assert sizes == [2, *[1] * 13]
    assert fitting == MicroBatch(1, recompute=True)
    for name, value in expected.items():
        assert value.tobytes() == found[name].tobytes(), name


def test_when_there_is_no_less_it_is_said_what_to_do(cases):
    with pytest.raises(
        InputError, match=r"one sample at a time, in training also with gradient checkpointing.*device ="
    ):
        train(cases, MicroBatch(1), most=0, error=MemoryError())


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("x")])
def test_any_other_error_is_none_of_memory(cases, error):
    with pytest.raises(type(error)):
        train(cases, MicroBatch(8), most=0, error=error)


def test_scores_come_in_pieces_that_fit(cases):
    model = tiny_site.classifier()
    activations = tiny_site.activations(model)
    (expected,) = evaluate.scores(model, activations, cases)
    narrow = Narrow(model, 5, MemoryError())
    (found,) = evaluate.scores(model, activations, cases)
    assert narrow.sizes == [12, 6, 3, 3, 3, 3]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_nothing_is_made_of_no_views():
    assert micro_batch.over(tiny_site.activations(tiny_site.classifier()), [], list) == []


# --- on a CPU the size is worked out, not tried ----------------------------------------------------------------------


def sample_bytes(cases):
    model = tiny_site.classifier()
    prefix = tiny_site.activations(model).prefixes([view_of(cases[0])])
    return memory.saved_bytes(model, lambda: model.suffix(prefix))


def view_of(case):
    return local.schedule.views.View(case, "plain")


@pytest.mark.parametrize(
    ("samples", "expected"),
    [(100.0, MicroBatch(100)), (3.9, MicroBatch(3)), (1.0, MicroBatch(1)), (0.9, MicroBatch(1, recompute=True))],
)
def test_as_many_samples_are_taken_as_the_memory_holds(cases, samples, expected):
    model, fitting = tiny_site.classifier(), MicroBatch()
    views = [view_of(case) for case in cases]
    with capture_logs() as logs:
        fitting.find(model, tiny_site.activations(model), views, int(samples * sample_bytes(cases)))
    assert fitting == expected
    assert [event["samples"] for event in logs] == ([] if samples > len(cases) else [expected.size])


@pytest.mark.parametrize("name", ["rolora", "ffa-lora"])
def test_the_size_does_not_depend_on_the_round_that_a_process_begins_with(cases, name):
    """RoLoRA trains B in odd rounds and A in even ones; one factor needs less kept than the other."""
    found = []
    for number in (1, 2):
        model, fitting = tiny_site.classifier(), MicroBatch()
        recipe = Recipe(name=name, rank_local=2, augmentation="none", local_epochs=1, batch_size=8)
        local.train_round(
            model,
            tiny_site.activations(model),
            cases,
            recipe,
            Ownership("global+local-bias"),
            Position(number, 4, 7),
            micro_batch=fitting,
        )
        found.append(fitting.size)
    assert found[0] == found[1] > len(cases)


def test_a_size_that_is_given_is_taken(cases):
    model, fitting = tiny_site.classifier(), MicroBatch(5)
    fitting.find(model, tiny_site.activations(model), [view_of(cases[0])], 1)
    assert fitting == MicroBatch(5)
