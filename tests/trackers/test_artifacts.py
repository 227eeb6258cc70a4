"""A run's figures in a store: the same files as on the disk, each sent once, and the deleted ones gone."""

import shutil
from pathlib import Path

from savepoint.trackers.artifacts import FigureMirror


class Folder:
    """A store of artifacts that is a folder, and counts what it is sent."""

    def __init__(self, root: Path) -> None:
        self.root, self.sent = root, 0

    def names(self, folder: str) -> set[str]:
        place = self.root / folder
        return {path.name for path in place.iterdir()} if place.is_dir() else set()

    def put(self, file: Path, folder: str) -> None:
        self.sent += 1
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, self.root / folder)

    def delete(self, path: str) -> None:
        (self.root / path).unlink()


def test_figures_are_mirrored(tmp_path: Path) -> None:
    root, run = tmp_path / "run" / "figures", Folder(tmp_path / "stored")
    FigureMirror(root, run).sync()
    for number in (1, 2):
        path = root / "curve" / f"epoch_000{number}_step_00000006.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]))
        (path.parent / ".hidden").touch()
    for _ in range(2):
        FigureMirror(root, run).sync()  # another process, as after a resume
        found = {path.relative_to(run.root): path.read_bytes() for path in run.root.rglob("*.*")}
        assert found == {
            Path("figures", "curve", f"epoch_000{number}_step_00000006.png"): bytes([number]) for number in (1, 2)
        }
    assert run.sent == 2
    mirror = FigureMirror(root, run)
    path.unlink()
    mirror.sync()
    mirror.sync()
    assert [found.name for found in run.root.rglob("*.png")] == ["epoch_0001_step_00000006.png"]
