"""A stream's batches: from wherever it stands, the same in the training process and in a worker."""

import copy
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tools import sources
from torch.utils.data import IterableDataset, default_collate
from torch.utils.data._utils import pin_memory

from savepoint.config import DataSettings
from savepoint.data import Stream, is_stream
from savepoint.data import reader as readers
from savepoint.errors import ConfigError, UserError
from savepoint.system import rng

BATCH = 4


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    with rng.isolated():
        yield


def of(dataset: Any = None, *, split: str = "train", seed: int = 3, **changes: Any) -> Stream:
    dataset = sources.Sized(split, samples=11) if dataset is None else dataset
    return Stream(dataset, split=split, settings=DataSettings(**({"batch_size": BATCH} | changes)), seed=seed)


def listed(batches: Iterator[Any]) -> list[Any]:
    return [[part.tolist() for part in batch] for batch in batches]


def numbers(batches: Iterator[Any]) -> list[list[int]]:
    """Which samples each batch holds."""
    return [[round(100 * number) for number in batch[0][:, 0].tolist()] for batch in batches]


def interrupted(make: Any, epochs: int, stops: set[tuple[int, int]], **changes: Any) -> list[Any]:
    """The batches of all epochs, by streams built anew at each of `stops`: after so many batches of an epoch.

    workers: in turn, if there are several.
    """
    workers = changes.pop("workers", [0])
    found: list[Any] = []
    stream, built = of(make(), num_workers=workers[0], **changes), 1
    for epoch in range(epochs):
        batches = stream.epoch(epoch)
        for done in range(len(stream) + 1):
            if (epoch, done) in stops:
                state = copy.deepcopy(stream.state_dict())  # as a checkpoint holds it
                del batches, stream  # torch ends its workers slowly while others begin
                stream = of(make(), num_workers=workers[built % len(workers)], **changes)
                built += 1
                stream.load_state_dict(state)
                batches = stream.epoch(epoch, start=done)
            if done < len(stream):
                found += listed(iter([next(batches)]))
        assert next(batches, None) is None
    return found


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "with a length": (lambda: sources.Sized("train", samples=11), {}),
    "drop_last": (lambda: sources.Sized("train", samples=11), {"drop_last": True}),
    "limited to less": (lambda: sources.Sized("train", samples=11), {"limit_batches": 2}),
    "limited to more": (lambda: sources.Sized("train", samples=11), {"limit_batches": 5}),
    "limited to more, drop_last": (lambda: sources.Sized("train", samples=11), {"limit_batches": 5, "drop_last": True}),
    "endless": (lambda: sources.Stream("train", samples=None), {"limit_batches": 3}),
    "buffer": (lambda: sources.Sized("train", samples=11, buffer=3), {"drop_last": True}),
    "buffer, endless": (lambda: sources.Stream("train", samples=None, buffer=3), {"limit_batches": 3}),
    "an order drawn by iter()": (lambda: sources.Permuted("train", samples=11), {"limit_batches": 5}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_built_anew_after_any_batch_it_goes_on_to_the_same_bits(kind: str) -> None:
    make, changes = KINDS[kind]
    whole, count = interrupted(make, 3, set(), **changes), len(of(make(), **changes))
    assert len(whole) == 3 * count
    for stop in ((epoch, done) for epoch in range(3) for done in range(count + 1)):
        assert interrupted(make, 3, {stop}, **changes) == whole, stop


@pytest.mark.parametrize("kind", ["buffer, endless", "limited to more, drop_last"])
@pytest.mark.parametrize("workers", [[0, 1], [1, 0]], ids=str)
def test_a_worker_reads_the_same_bits_and_may_come_and_go(kind: str, workers: list[int]) -> None:
    make, changes = KINDS[kind]
    stops = {(0, 2), (2, 1)}
    assert interrupted(make, 3, stops, workers=workers, **changes) == interrupted(make, 3, set(), **changes)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]] * 2),
        ({"drop_last": True}, [[0, 1, 2, 3], [4, 5, 6, 7]] * 2),
        ({"limit_batches": 2}, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10], [0, 1, 2, 3]]),
        ({"limit_batches": 2, "drop_last": True}, [[0, 1, 2, 3], [4, 5, 6, 7]] * 2),
        ({"limit_batches": 4}, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10], [0, 1, 2, 3], [4, 5, 6, 7]]),
        ({"batch_size": 11}, [list(range(11))] * 2),
        ({"batch_size": 11, "drop_last": True}, [list(range(11))] * 2),
        ({"batch_size": 20}, [list(range(11))] * 2),
        ({"batch_size": 20, "limit_batches": 1}, [list(range(11))] * 2),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("workers", [0, 1])
def test_two_epochs_hold_these_samples(workers: int, changes: dict[str, Any], expected: list[list[int]]) -> None:
    stream = of(num_workers=workers, **changes)
    assert 2 * len(stream) == len(expected)
    assert numbers(stream.epoch(0)) + numbers(stream.epoch(1)) == expected


def test_a_stream_without_an_end_goes_on_through_the_epochs() -> None:
    stream = of(sources.Stream("train", samples=None), limit_batches=2)
    assert [numbers(stream.epoch(epoch)) for epoch in range(2)] == [
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[8, 9, 10, 11], [12, 13, 14, 15]],
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_every_batch_of_every_epoch_draws_numbers_of_its_own(workers: int) -> None:
    stream = of(num_workers=workers)
    seen = [tuple(row[1:5]) for epoch in range(2) for batch in stream.epoch(epoch) for row in batch[0].tolist()]
    for library in range(4):
        assert len({row[library] for row in seen}) == 22


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_leaves_the_models_generators_alone(workers: int) -> None:
    stream = of(num_workers=workers, limit_batches=5)
    rng.seed(1)
    expected = [(torch.rand(()).item(), random.random(), np.random.rand()) for _ in range(10)]
    rng.seed(1)
    found = [
        (torch.rand(()).item(), random.random(), np.random.rand()) for epoch in range(2) for _ in stream.epoch(epoch)
    ]
    assert found == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_where_it_stands_is_where_training_is_and_not_where_it_was_read_to(workers: int) -> None:
    stream = of(num_workers=workers, prefetch=3, limit_batches=5)
    assert stream.state_dict()["given"] == 0
    batches = stream.epoch(0)
    for given in (4, 8, 11, 4, 8):
        next(batches)
        assert stream.state_dict()["given"] == given


@pytest.mark.parametrize("workers", [0, 1])
def test_a_state_that_was_loaded_or_told_is_not_written_into(workers: int) -> None:
    make, changes = KINDS["buffer, endless"]
    first = of(make(), num_workers=workers, **changes)
    list(first.epoch(0))
    state = copy.deepcopy(first.state_dict())
    kept = copy.deepcopy(state)
    stream = of(make(), num_workers=workers, **changes)
    stream.load_state_dict(state)
    stream.epoch(1)
    expected = listed(stream.epoch(1))
    assert all(map(torch.equal, state["kept"], kept["kept"])), "by the run that loaded it"
    stream.load_state_dict(state)
    assert listed(stream.epoch(1)) == expected, "the beginning of the epoch"


def test_the_state_that_a_worker_sends_along_is_a_copy() -> None:
    """The queue takes it up in its own time, while the stream goes on."""
    data, settings = sources.Sized("train", buffer=2), DataSettings(batch_size=BATCH, num_workers=1)
    reader = readers.Reader(data, name="", split="train", settings=settings, length=50, collate=default_collate)
    given = reader.read(readers.Request(0, 0, 0, reader.beginning))
    kept = copy.deepcopy(given.place)
    reader.read(readers.Request(1, 0, 1, None))
    assert given.place["given"] == 4 and all(map(torch.equal, given.place["kept"], kept["kept"]))


class InPlace(sources.Sized):
    """What it loads goes into the very list that it once told."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given, self.kept[:] = state["given"], state["kept"]


def test_the_beginning_stays_what_it_was() -> None:
    stream = of(InPlace("train", samples=11, buffer=3), drop_last=True)
    list(stream.epoch(0))
    list(stream.epoch(1))
    assert not stream._reader.beginning["kept"] and len(stream.state_dict()["kept"]) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_validation_begins_at_the_beginning_each_time_and_ends_with_the_stream(workers: int) -> None:
    val = of(sources.Sized("val"), split="val", num_workers=workers)
    expected = [[100, 101, 102, 103], [104, 105, 106, 107], [108, 109]]
    left = val.epoch(0)
    next(left)
    for epoch in range(2):
        assert numbers(val.epoch(epoch)) == expected
    assert listed(val.epoch(0)) == listed(val.epoch(9))
    for changes in ({"limit_batches": 2}, {"limit_batches": 50}, {"limit_batches": 50, "drop_last": True}):
        unsized = of(sources.Stream("val"), split="val", num_workers=workers, **changes)
        assert numbers(unsized.epoch(0)) == expected[: changes["limit_batches"]]
        sized = of(sources.Sized("val"), split="val", num_workers=workers, **changes)
        assert numbers(sized.epoch(0)) == expected[: changes["limit_batches"]]


class Reading(sources.Sized):
    """Remembers whether it was read."""

    read = False

    def __iter__(self) -> Iterator[Any]:
        self.read = True
        return super().__iter__()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_tells_it_from_others_is_its_own_word_and_nothing_is_read(workers: int) -> None:
    data = Reading("train")
    stream = of(data, num_workers=workers)
    assert stream.facts() == {"samples": 50, "digested": None, "sha256": None}
    data.fingerprint = lambda: 42  # type: ignore[attr-defined]
    assert stream.facts(7) == {"samples": 50, "digested": None, "sha256": "42"} and not data.read
    assert of(sources.Stream("train"), limit_batches=1).facts()["samples"] is None


@pytest.mark.parametrize("workers", [0, 1])
def test_the_rest_of_an_epoch_that_is_all_trained_is_nothing_and_moves_nothing(workers: int) -> None:
    stream = of(num_workers=workers)
    list(stream.epoch(0))
    before = stream.state_dict()["given"]
    assert list(stream.epoch(0, start=len(stream))) == [] and stream.state_dict()["given"] == before


def test_what_torch_pins_is_the_batch_and_not_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would make a copy of each mapping and update it, which doubles a Counter."""
    monkeypatch.setattr(readers, "pin", lambda batch: ("pinned", batch))
    state = {"seen": Counter("aab")}
    given = pin_memory.pin_memory(readers.Result("batch", state))  # type: ignore[no-untyped-call]
    assert given.batch == ("pinned", "batch") and given.place is state
    assert readers.Result().pin_memory().batch is None


# What is a stream, and which ones are refused


def test_a_stream_is_what_has_no_samples_by_number() -> None:
    assert is_stream(sources.Stream("train")) and is_stream(sources.Plain("train"))
    assert not is_stream(sources.Drawing("train")) and not is_stream([1, 2]) and not is_stream(5)


class Half(IterableDataset[int]):
    def state_dict(self) -> Any:
        return {}

    def __iter__(self) -> Iterator[int]:
        return iter(())


class Odd(Half):
    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


@pytest.mark.parametrize(
    "dataset, changes, told",
    [
        (sources.Plain("train"), {}, "data.dataset: tools.sources.Plain is a stream, and has no state_dict and no load_state_dict, so a run could not go on in its middle. Add state_dict(), which says where it stands, and load_state_dict(state), after which iter() goes on from there; or give it __len__ and __getitem__ (a map-style data set)."),
        (Half(), {}, "data.dataset: test_stream.Half is a stream, and has no load_state_dict, so"),
        (sources.Stream("train"), {}, "data.dataset: tools.sources.Stream is a stream without a length, so nothing says where an epoch ends. Set data.limit_batches, the number of batches in an epoch, or give it __len__."),
        (sources.Sized("train"), {"num_workers": 2}, "data.num_workers=2: tools.sources.Sized is a stream, and each worker would read the whole of it. Set data.num_workers=1, or 0."),
        (Odd(None), {"limit_batches": 1}, "data.dataset: state_dict() of test_stream.Odd gives a NoneType. It has to be a dict."),
        (Odd({"at": {1, 2}}), {"limit_batches": 1}, "data.dataset: state_dict() of test_stream.Odd, at: cannot save builtins.set exactly."),
    ],
    ids=["nothing", "half", "no length", "workers", "none", "set"],
)  # fmt: skip
def test_a_stream_that_could_not_go_on_is_refused_at_the_start(
    dataset: Any, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as error:
        of(dataset, **changes)
    assert str(error.value).startswith(told)


SHORT = "samples in an epoch, and its length is"


@pytest.mark.parametrize(
    "dataset, changes, told",
    [
        (lambda: sources.Sized("train", samples=7, length=11), {}, f"sources.Sized gave 7 {SHORT} 11. Make __len__ say what it gives, or set data.limit_batches."),
        (lambda: sources.Sized("train", samples=3, length=11), {}, f"gave 3 {SHORT} 11."),
        (lambda: sources.Sized("train", samples=0, length=11), {}, f"gave 0 {SHORT} 11."),
        (lambda: sources.Sized("train", samples=8, length=11), {}, f"gave 8 {SHORT} 11."),
        (lambda: sources.Sized("train", samples=7, length=11), {"drop_last": True}, f"gave 7 {SHORT} 11."),
        (lambda: sources.Sized("train", samples=3, length=11), {"drop_last": True}, f"gave 3 {SHORT} 11."),
        (lambda: sources.Stream("train", samples=0), {"limit_batches": 2}, "gives 0 samples from its beginning to its end, which make no batch with data.batch_size=4 and data.drop_last=false."),
        (lambda: sources.Stream("train", samples=3), {"limit_batches": 2, "drop_last": True}, "gives 3 samples from its beginning to its end, which make no batch with data.batch_size=4 and data.drop_last=true."),
    ],
)  # fmt: skip
def test_a_stream_that_gives_too_little_is_named_with_the_numbers(
    dataset: Any, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as error:
        list(of(dataset(), **changes).epoch(0))
    assert str(error.value).startswith("data.dataset: tools.sources.S") and told in str(error.value)


def test_what_a_stream_gives_beyond_its_length_is_no_part_of_the_epoch() -> None:
    stream = of(sources.Sized("train", samples=13, length=11))
    assert numbers(stream.epoch(0))[-1] == [8, 9, 10]
    with pytest.raises(UserError, match=f"gave 2 {SHORT} 11"):
        list(stream.epoch(1))


def test_an_empty_validation_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.dataset: test_stream\.Odd gives no sample to validate on\."):
        list(of(Odd({}), split="val", limit_batches=2).epoch(0))


class Broken(sources.Sized):
    def __iter__(self) -> Iterator[Any]:
        raise ZeroDivisionError("the data set's own")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_sets_error_comes_through(workers: int) -> None:
    with pytest.raises(ZeroDivisionError, match="the data set's own"):
        list(of(Broken("train"), num_workers=workers).epoch(0))
