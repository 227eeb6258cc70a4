"""The first signal asks for a stop, the second acts at once."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from savepoint.system import signals

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", BOTH)
def test_the_first_signal_is_noted_and_does_nothing_else(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    with signals.watch() as stop:
        assert stop.signal is None
        signal.raise_signal(number)
        assert stop.signal == number
    said = capsys.readouterr().err
    assert ("Ctrl-C" if number == signal.SIGINT else "SIGTERM") in said and "Once more stops now" in said


@pytest.mark.parametrize("first", BOTH)
def test_the_second_signal_acts_as_if_nobody_watched(first: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), signals.watch() as stop:
        signal.raise_signal(first)
        assert stop.signal == first
        signal.raise_signal(signal.SIGINT)


def test_handlers_are_put_back_also_after_a_signal_and_after_an_exception() -> None:
    before = [signal.getsignal(number) for number in BOTH]
    with signals.watch():
        assert [signal.getsignal(number) for number in BOTH] != before
    assert [signal.getsignal(number) for number in BOTH] == before
    with pytest.raises(ZeroDivisionError), signals.watch():
        signal.raise_signal(signal.SIGTERM)
        1 / 0  # noqa: B018
    assert [signal.getsignal(number) for number in BOTH] == before


def test_stop_files_are_looked_for_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(signals, "_FILES", [])
    own, all_jobs = tmp_path / "stop", tmp_path / "all"
    with signals.watch(own) as stop:
        assert stop.signal is None
        own.touch()
        clock[0] += 0.9
        assert stop.signal is None
        clock[0] += 0.2
        assert stop.signal == signals.FILE and signals.Interrupted(signals.FILE, "").exit_code == 0
    signals.obey(all_jobs)
    with signals.watch() as stop:
        assert (stop.signal, signals.asked() in (None, *BOTH)) == (None, True)
        all_jobs.touch()
        clock[0] += 1
        assert stop.signal == signal.SIGTERM


LINUX = pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="Windows has no SIGUSR2")
LAUNCHED = """
import os, signal, sys
from savepoint.system import signals
signal.signal(signal.SIGUSR2, lambda number, frame: print("queued again"))
signals.note()
if "before" in sys.argv:
    os.kill(os.getpid(), signal.SIGUSR2)
with signals.watch() as stop:
    if "before" not in sys.argv:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    print(stop.signal == getattr(signal, sys.argv[1]))
signals.hand_back()
"""


@LINUX
@pytest.mark.parametrize("order", ["SIGUSR2", "SIGUSR2 before", "SIGTERM"])
def test_a_launchers_signal_stops_the_training_and_is_handed_back(order: str) -> None:
    """submitit queues a job again whose time is up. It has to be saved before."""
    command = [sys.executable, "-c", LAUNCHED, *order.split()]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout == ("True\nqueued again\n" if "USR2" in order else "True\n")


@LINUX
def test_a_preempted_job_of_slurms_ends_without_a_result() -> None:
    """submitit would take a job that returns for one that has ended, while SLURM starts it again."""
    environment = os.environ | {"SLURM_JOB_ID": "1"}
    command = [sys.executable, "-c", f"{LAUNCHED}\nprint('a result')", "SIGTERM"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (143, "True\n")


def test_in_a_thread_signals_are_left_as_they_are() -> None:
    """Some launchers of sweeps run jobs in threads, where Python allows no handlers."""
    before = [signal.getsignal(number) for number in BOTH]
    found: list[object] = []

    def watching() -> None:
        with signals.watch() as stop:
            found.extend([stop.signal, [signal.getsignal(number) for number in BOTH]])

    thread = threading.Thread(target=watching)
    thread.start()
    thread.join()
    assert found == [None, before]


WATCHER = """
import sys, time
from savepoint.system import signals
with signals.watch() as stop:
    print("watching", flush=True)
    while stop.signal is None:
        time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(30)
"""


def test_a_second_sigterm_ends_the_process_as_sigterm_does() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WATCHER],
        env=os.environ | {"PYTHONPATH": str(Path(signals.__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "watching\n"
        process.terminate()
        assert process.stdout.readline() == "noted\n"
        process.terminate()
        assert process.wait(timeout=10) == -signal.SIGTERM


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_exits_with_what_a_shell_reports_for_its_signal(number: int, code: int) -> None:
    interrupted = signals.Interrupted(number, "Interrupted. To go on: …")
    assert interrupted.exit_code == code and str(interrupted) == "Interrupted. To go on: …"


def test_an_interruption_passes_what_catches_errors() -> None:
    """A sweep goes on after a job that failed, and not after Ctrl-C."""
    assert issubclass(signals.Interrupted, KeyboardInterrupt)


@pytest.fixture
def nothing_pressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process, and with this one's own handler back afterwards."""
    monkeypatch.setattr(signals, "_PRESSED", [])


def test_ctrl_c_while_held_acts_at_the_end_and_not_before(nothing_pressed: None) -> None:
    before, reached = signal.getsignal(signal.SIGINT), False
    with pytest.raises(KeyboardInterrupt), signals.held():
        signal.raise_signal(signal.SIGINT)
        reached = True
    assert reached and signals.pressed()
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_happens_at_the_end_of_held_if_nobody_pressed(nothing_pressed: None) -> None:
    before = signal.getsignal(signal.SIGINT)
    with signals.held():
        pass
    assert not signals.pressed() and signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_is_remembered_whatever_a_library_makes_of_it(nothing_pressed: None) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        signals.remember()
        with pytest.raises(ImportError):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("a library's own") from None
        assert signals.pressed()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "interrupt, code, said",
    [
        (KeyboardInterrupt(), 130, "Stopped."),
        (signals.Interrupted(signal.SIGTERM, "Interrupted. To go on: x"), 143, "Interrupted. To go on: x"),
    ],
    ids=["before the loop", "in the loop"],
)
def test_a_process_that_was_stopped_says_so_in_one_line(
    interrupt: KeyboardInterrupt, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert signals.say(interrupt) == code
    assert capsys.readouterr().err == f"\n{said}\n"
