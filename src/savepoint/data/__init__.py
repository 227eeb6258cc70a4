"""Data: the batches of each epoch. Neither an interruption nor the number of loading workers changes them.

Rooms, in reading order:
    batches      batches of a data set, as a function of seed and epoch
    sampling     which samples each batch holds
    permutation  shuffle any number of positions without a list of them
    ranks        cut each batch among the processes that train together
    stream       batches of a data set that can only be read in its own order
    reader       read a stream batch by batch, in this process or in its one worker
    absent       no data: an epoch is a number of updates
    loading      load in this process or in workers, with equal bits
    workers      start, watch and end loading workers
    device       move a batch to the device that trains on it
    fingerprint  digest of any value, to detect changed data
"""

from savepoint.data.absent import NoData
from savepoint.data.batches import Batches
from savepoint.data.device import to_device
from savepoint.data.fingerprint import digest_of, spread
from savepoint.data.sampling import NEWEST_ORDER, OLDEST_ORDER, ORDERS
from savepoint.data.stream import Stream, is_stream
from savepoint.data.workers import end_workers, worker_death

__all__ = [
    "NEWEST_ORDER",
    "OLDEST_ORDER",
    "ORDERS",
    "Batches",
    "NoData",
    "Stream",
    "digest_of",
    "end_workers",
    "is_stream",
    "spread",
    "to_device",
    "worker_death",
]
