"""The tracker that tracks nothing, so that nobody has to ask whether there is one."""

from collections.abc import Mapping, Sequence
from pathlib import Path


class NoTracker:
    run_id: str | None = None

    def start(
        self,
        *,
        name: str | None,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        documents: Sequence[Path] = (),
        parents: Sequence[str] = (),
    ) -> None:
        pass

    def ready(self, timeout_seconds: float) -> str | None:
        return None

    def wake(self) -> None:
        pass

    def close(self, status: str, timeout_seconds: float) -> str | None:
        return None

    def abandon(self) -> None:
        pass
