"""The tracker that does nothing, so that callers need not ask whether there is a tracker."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from savepoint.trackers.protocol import Dataset


class NoTracker:
    def start(
        self,
        *,
        name: str | None,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        documents: Sequence[Path] = (),
        parents: Sequence[str] = (),
        datasets: Sequence[Dataset] = (),
    ) -> None:
        pass

    def wake(self) -> None:
        pass

    def close(self, status: str, timeout_seconds: float, *, note: str | None = None) -> str | None:
        return None

    def page(self) -> None:
        return None

    def abandon(self) -> None:
        pass
