"""The batches of an epoch as a pure function of (seed, epoch)."""

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tools.share import some
from tools.sources import Drawing
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from savepoint.config import DataSettings
from savepoint.data import batches as module
from savepoint.data.batches import Batches
from savepoint.system import rng

SAMPLES = 11
# What torch says of more workers than cores: no machine is too small for these tests.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    with rng.isolated():
        yield
    # Loaders that a test leaves behind would wait five seconds for each of their workers, whenever they are collected.
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


class Augmented:
    """Each sample is its index and a number drawn from each of the three libraries."""

    def __init__(self, samples: int = SAMPLES) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> tuple[int, Tensor, float, float]:
        return index, torch.randn(2), random.gauss(0, 1), np.random.randn()


def of(dataset: Any = None, *, split: str = "train", seed: int = 3, **changes: Any) -> Batches:
    settings = DataSettings(**({"batch_size": 4} | changes))
    return Batches(Augmented() if dataset is None else dataset, split=split, settings=settings, seed=seed)


def listed(batches: Iterator[Any]) -> list[Any]:
    return [[part.tolist() for part in batch] for batch in batches]


def indices(batches: Iterator[Any]) -> list[list[int]]:
    return [batch[0].tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_same_whenever_it_is_asked_for(workers: int) -> None:
    expected = [listed(of().epoch(epoch)) for epoch in range(3)]
    batches = of(num_workers=workers)
    for epoch in (2, 0, 1, 1):
        torch.rand(3), random.random(), np.random.rand()
        assert listed(batches.epoch(epoch)) == expected[epoch]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_starting_at_batch_k_equals_skipping_k(workers: int, split: str) -> None:
    batches = of(split=split, num_workers=workers)
    whole = listed(of(split=split).epoch(5))
    for start in range(len(batches) + 1):
        assert listed(batches.epoch(5, start=start)) == whole[start:]


def test_every_epoch_has_its_own_order_and_its_own_augmentation() -> None:
    one, two = listed(of().epoch(0)), listed(of().epoch(1))
    assert [batch[0] for batch in one] != [batch[0] for batch in two]
    for part in (1, 2, 3):
        assert not {str(x) for batch in one for x in batch[part]} & {str(x) for batch in two for x in batch[part]}


def test_every_batch_has_its_own_augmentation() -> None:
    for part in (1, 2, 3):
        values = [str(value) for batch in listed(of().epoch(0)) for value in batch[part]]
        assert len(set(values)) == SAMPLES


def test_another_seed_is_another_order_and_another_augmentation() -> None:
    one, two = listed(of(seed=1).epoch(0)), listed(of(seed=2).epoch(0))
    assert [batch[0] for batch in one] != [batch[0] for batch in two] and one[0][1] != two[0][1]


def test_train_and_val_draw_different_numbers() -> None:
    one, two = listed(of(shuffle=False).epoch(0)), listed(of(split="val").epoch(0))
    assert [batch[0] for batch in one] == [batch[0] for batch in two] and one[0][1:] != two[0][1:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_each_sample_comes_once_an_epoch(workers: int, split: str) -> None:
    batches = of(split=split, num_workers=workers)
    for epoch in range(2):
        drawn = [index for batch in indices(batches.epoch(epoch)) for index in batch]
        assert sorted(drawn) == list(range(SAMPLES))


def test_the_training_set_is_shuffled_unless_the_settings_say_otherwise() -> None:
    in_order = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert indices(of().epoch(0)) != in_order
    assert indices(of(shuffle=False).epoch(7)) == in_order


def test_validation_is_in_order_and_the_same_in_every_epoch() -> None:
    val = of(split="val")
    assert indices(val.epoch(0)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert listed(val.epoch(0)) == listed(val.epoch(9))


@pytest.mark.parametrize(
    "changes, train, val",
    [
        ({}, [4, 4, 3], [4, 4, 3]),
        ({"drop_last": True}, [4, 4], [4, 4, 3]),
        ({"limit_batches": 2}, [4, 4], [4, 4]),
        ({"limit_batches": 9}, [4, 4, 3], [4, 4, 3]),
        ({"limit_batches": 2, "drop_last": True}, [4, 4], [4, 4]),
        ({"batch_size": 11, "drop_last": True}, [11], [11]),
        ({"batch_size": 1, "limit_batches": 1}, [1], [1]),
        ({"batch_size": 20}, [11], [11]),
        ({"batch_size": 20, "drop_last": True}, [], [11]),
    ],
    ids=str,
)
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_have_these_sizes(workers: int, changes: dict[str, Any], train: list[int], val: list[int]) -> None:
    for split, sizes in (("train", train), ("val", val)):
        batches = of(split=split, num_workers=workers, **changes)
        assert len(batches) == len(sizes)
        assert [len(batch) for batch in indices(batches.epoch(0))] == sizes


def test_a_limited_epoch_is_the_beginning_of_the_whole_one() -> None:
    assert listed(of(limit_batches=2).epoch(4)) == listed(of().epoch(4))[:2]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_batches_are_those_of_the_whole_epoch(workers: int) -> None:
    whole = of(num_workers=workers)
    assert len(whole.first(2)) == 2 and len(whole.first(99)) == len(whole)
    assert str(listed(whole.first(2).epoch(1))) == str(listed(whole.epoch(1))[:2])


@pytest.mark.parametrize(
    "changes",
    [
        {"num_workers": 1},
        {"num_workers": 2},
        {"num_workers": 3, "prefetch": 1},
        {"num_workers": 2, "prefetch": 5, "persistent_workers": False},
    ],
    ids=str,
)
def test_the_number_of_workers_changes_no_bit(changes: dict[str, Any]) -> None:
    here, there = of(), of(**changes)
    for epoch in range(2):
        for a, b in zip(here.epoch(epoch), there.epoch(epoch), strict=True):
            assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("slow", [False, True])
def test_loading_ahead_changes_no_bit(monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    """Without workers, fast batches are loaded several at a time; which ones depends on the clock."""
    expected = listed(of(batch_size=1).epoch(0))
    monkeypatch.setattr(module, "AHEAD_SECONDS", -1.0 if slow else 1e9)
    assert listed(of(batch_size=1).epoch(0)) == expected


@pytest.mark.parametrize("persistent", [True, False])
def test_an_epoch_that_was_left_in_its_middle_does_not_reach_into_the_next(persistent: bool) -> None:
    batches = of(num_workers=2, persistent_workers=persistent, batch_size=1)
    for epoch in range(3):
        left = batches.epoch(epoch)
        next(left)
        del left
        assert listed(batches.epoch(epoch + 1, start=2)) == listed(of(batch_size=1).epoch(epoch + 1, start=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_models_generators_alone(workers: int) -> None:
    batches = of(num_workers=workers)
    rng.seed(1)
    expected = [(torch.rand(()).item(), random.random(), np.random.rand()) for _ in range(2 * len(batches))]
    rng.seed(1)
    drawn = []
    for epoch in range(2):
        for _ in batches.epoch(epoch):
            drawn.append((torch.rand(()).item(), random.random(), np.random.rand()))
    assert drawn == expected


def test_what_the_model_draws_does_not_reach_the_augmentation() -> None:
    expected = listed(of().epoch(0))
    found = []
    for batch in of().epoch(0):
        found.append([part.tolist() for part in batch])
        torch.rand(5), random.random(), np.random.rand()
    assert found == expected


class Broken(Augmented):
    def __getitem__(self, index: int) -> tuple[int, Tensor, float, float]:
        super().__getitem__(index)
        raise ZeroDivisionError("the data set's own")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_sets_error_comes_through_and_leaves_generators_and_threads(workers: int) -> None:
    rng.seed(1)
    threads, expected = torch.get_num_threads(), torch.rand(())
    rng.seed(1)
    with pytest.raises(ZeroDivisionError, match="the data set's own"):
        list(of(Broken(), num_workers=workers).epoch(0))
    assert torch.equal(torch.rand(()), expected) and torch.get_num_threads() == threads


class Lists(Augmented):
    def __getitems__(self, chosen: list[int]) -> list[Any]:
        return [super(Lists, self).__getitem__(index) for index in chosen]


class Finished(Augmented):
    def __getitems__(self, chosen: list[int]) -> dict[str, Any]:
        return {"chosen": torch.tensor(chosen), "names": [f"{index}" for index in chosen]}


def test_getitems_may_return_samples_which_are_collated() -> None:
    assert listed(of(Lists()).epoch(0)) == listed(of().epoch(0))
    subset = Subset(TensorDataset(torch.arange(20)), list(range(5, 16)))  # torch's own: a list of samples
    assert sorted(index for batch in of(subset).epoch(0) for index in batch[0].tolist()) == list(range(5, 16))


@pytest.mark.parametrize("workers", [0, 1])
def test_getitems_may_return_the_finished_batch_which_is_left_as_it_is(workers: int) -> None:
    for batch in of(Finished(), num_workers=workers).epoch(0):
        assert type(batch) is dict and batch["names"] == [f"{index}" for index in batch["chosen"].tolist()]


class Threads(Augmented):
    def __getitem__(self, index: int) -> Any:
        return index, torch.get_num_threads()


@pytest.mark.parametrize("workers", [0, 1])
def test_data_are_loaded_on_one_thread_with_workers_and_without(workers: int) -> None:
    """A sum over one thread and over two may differ in its last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for batch in of(Threads(), num_workers=workers).epoch(0):
            assert set(batch[1].tolist()) == {1}
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


LARGE = """
import torch
from savepoint.config import DataSettings
from savepoint.data import Batches

class Large:
    def __len__(self): return 4
    def __getitem__(self, index):
        image = torch.randn(200_000)
        return (image * image).sum()

torch.set_num_threads(2)
image = torch.randn(2_000_000)
(image * image).sum()  # OpenMP has its threads now, as it has in any process that trains
with_workers, without = (
    list(Batches(Large(), split="train", settings=DataSettings(batch_size=2, num_workers=n), seed=0).epoch(0)) for n in (2, 0)
)
assert all(torch.equal(a, b) for a, b in zip(with_workers, without, strict=True))
print("done", flush=True)
"""


def test_workers_can_compute_on_large_tensors() -> None:
    """GNU's OpenMP never returns from a parallel region in a forked process."""
    process = subprocess.Popen(
        [sys.executable, "-c", LARGE],
        env=os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.communicate(timeout=40)[0] == "done\n"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too: they ignore everything else
            process.communicate()


class Signals(Augmented):
    def __getitem__(self, index: int) -> Any:
        ignored = [signal.getsignal(number) is signal.SIG_IGN for number in (signal.SIGINT, signal.SIGTERM)]
        return index, ignored


def test_workers_leave_signals_to_the_main_process() -> None:
    """A Ctrl-C reaches the whole process group, and the batches of the update in progress are still needed."""
    for batch in of(Signals(), num_workers=1).epoch(0):
        assert all(flag.all() for flag in batch[1])


# By what data are told apart


class Stored:
    """Numbers that a test can change. opened: by how many processes, each at its first sample."""

    def __init__(self, numbers: list[float], *, drawn: bool = False, slow: float = 0.0) -> None:
        self.numbers, self.drawn, self.slow, self.opened = numbers, drawn, slow, False

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Tensor:
        self.opened = True
        time.sleep(self.slow)
        noise = np.random.default_rng().standard_normal() if self.drawn else random.random()
        return torch.tensor([self.numbers[index], noise])


NUMBERS = [float(number) for number in range(50)]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_sample_of_a_small_data_set_counts(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FINGERPRINT_SECONDS", 60.0)  # the moment itself would be too short on a busy machine
    facts = of(Stored(NUMBERS), num_workers=workers).facts()
    assert (facts["samples"], facts["digested"]) == (50, 50)
    assert facts == of(Stored(NUMBERS), num_workers=2 - workers, seed=9, split="val", batch_size=7).facts()
    for index in (0, 17, 49):
        changed = Stored([*NUMBERS[:index], 99.0, *NUMBERS[index + 1 :]])
        assert of(changed, num_workers=workers).facts() == facts | {"sha256": of(changed).facts()["sha256"]}
        assert of(changed).facts()["sha256"] != facts["sha256"]


def test_of_a_slow_data_set_as_many_samples_count_as_a_moment_allows() -> None:
    facts = of(Stored(NUMBERS, slow=0.01)).facts()
    assert 16 <= facts["digested"] < 50
    assert of(Stored(NUMBERS)).facts(facts["digested"]) == facts
    assert of(Stored(NUMBERS)).facts()["sha256"] != facts["sha256"]
    assert of(Stored(NUMBERS, slow=0.02)).facts(48)["digested"] == 48, "what was digested once is digested again"


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_are_others_each_time_have_no_digest(workers: int) -> None:
    facts = of(Stored(NUMBERS, drawn=True), num_workers=workers).facts()
    assert facts["sha256"] is None and facts["samples"] == 50


def test_a_data_set_may_say_itself_what_tells_it_from_others() -> None:
    stored = Stored(NUMBERS)
    stored.fingerprint = lambda: 42  # type: ignore[attr-defined]
    assert of(stored).facts() == {"samples": 50, "digested": 50, "sha256": "42"} and not stored.opened


def test_looking_at_samples_changes_no_bit_of_training() -> None:
    for workers in (0, 1):
        looked = of(num_workers=workers)
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        looked.facts()
        drawn = (torch.rand(1).item(), random.random(), np.random.rand())
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        assert drawn == (torch.rand(1).item(), random.random(), np.random.rand())
        assert listed(looked.epoch(0)) == listed(of().epoch(0))


def test_where_workers_load_the_main_process_opens_nothing() -> None:
    stored = Stored(NUMBERS)
    of(stored, num_workers=2).facts()
    assert not stored.opened


class Stopping(Drawing):
    """What an iterator of its own raises at its end."""

    def __getitem__(self, index: int) -> Any:
        return next(iter(())) if index == 21 else super().__getitem__(index)


@pytest.mark.parametrize(
    ("split", "workers"),
    some(itertools.product(("train", "val"), (0, 2)), lambda case: case in (("val", 0), ("train", 2))),
)
def test_a_stop_iteration_of_the_data_set_does_not_pass_for_the_end_of_an_epoch(workers: int, split: str) -> None:
    data, settings = Stopping("train"), DataSettings(batch_size=4, num_workers=workers)
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        list(Batches(data, split=split, settings=settings, seed=0).epoch(0))


def test_what_is_looked_at_of_many_samples_is_no_list_of_all() -> None:
    settings = DataSettings(batch_size=4, limit_batches=1)
    looked = Batches(range(10**12), split="train", settings=settings, seed=0)  # nobody lists those
    assert 0 < looked.facts(digested=40)["digested"] == 40
