"""MLflow as a tracker. A second process talks to MLflow; the training process never imports it.

Neither MLflow's import nor a server that is slow or down costs training time, and the training process, which may fork
workers that load data, gets no thread from here.

Rooms, in reading order:
    tracker  MLflow as the training process sees it, and the address of the store
    process  start the second process, send it orders, read its answers
    worker   the second process: take orders, retry what fails, report
    mirror   one run's copy in MLflow
    store    the calls to MLflow's API
"""

from savepoint.trackers.mlflow.tracker import MLflowTracker, fetch_run, find_page, find_run, finish_sweep

__all__ = ["MLflowTracker", "fetch_run", "find_page", "find_run", "finish_sweep"]
