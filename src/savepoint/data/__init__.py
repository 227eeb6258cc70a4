"""Data: the batches of an epoch, the same ones wherever a run was interrupted and however many workers load them.

Rooms, in reading order:
    batches      batches of a data set, as a function of seed and epoch
    sampling     which samples each batch holds
    stream       batches of a data set that can only be read in its own order
    loading      load in this process or in workers, with equal bits
    workers      how worker processes start, die and end
    fingerprint  a digest of any value, to notice changed data
"""

from savepoint.data.batches import Batches
from savepoint.data.fingerprint import digest_of, spread
from savepoint.data.stream import Stream, is_stream
from savepoint.data.workers import end_workers, worker_death

__all__ = ["Batches", "Stream", "digest_of", "end_workers", "is_stream", "spread", "worker_death"]
