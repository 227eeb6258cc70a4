"""Exact: prove on a run's own config that a resume gives the same bits (`python -m savepoint verify RUN --exact`).

Rooms, in reading order:
    comparison  the proof: three short trainings, and what their records say
    workplace   each training in a process of its own, in a temporary directory
    trace       inside such a process: train, and record everything that is computed
    watch       record what passes between the parts of a training
    outside     find values that live outside the saved state
    probe       read values of any kind: contents, digests, a few words about them
    traps       note calls that no seed decides: of clocks and of unseeded generators
    explain     find the first difference and name its cause
"""

from savepoint.exact.comparison import prove

__all__ = ["prove"]
