"""A run's figures in MLflow: the same files as on the disk, each sent once, and the deleted ones gone."""

from pathlib import Path


def test_figures_are_mirrored(tmp_path: Path) -> None:
    # Here, since MLflow's import takes seconds, and each process of pytest imports each test file.
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    from savepoint.trackers.mlflow.store import FigureMirror

    class Counting(LocalArtifactRepository):
        sent: list[str]

        def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
            self.sent.append(local_file)
            super().log_artifact(local_file, artifact_path)

    root, stored = tmp_path / "run" / "figures", tmp_path / "stored"
    artifacts = Counting(stored.as_uri())
    artifacts.sent = []
    FigureMirror(root, artifacts).sync()
    for number in (1, 2):
        path = root / "curve" / f"epoch_000{number}_step_00000006.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]))
        (path.parent / ".hidden").touch()
    for _ in range(2):
        FigureMirror(root, artifacts).sync()  # another process, as after a resume
        found = {path.relative_to(stored): path.read_bytes() for path in stored.rglob("*.*")}
        assert found == {
            Path("figures", "curve", f"epoch_000{number}_step_00000006.png"): bytes([number]) for number in (1, 2)
        }
    assert len(artifacts.sent) == 2
    mirror = FigureMirror(root, artifacts)
    path.unlink()
    mirror.sync()
    mirror.sync()
    assert [found.name for found in stored.rglob("*.png")] == ["epoch_0001_step_00000006.png"]
