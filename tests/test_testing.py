"""savepoint.testing finds a model that does not come back as it was, and passes one that does."""

import os
import sys
from pathlib import Path

from tools.warm import Warm
from tools.workshop import Workshop

PROGRAM = """
import sys
from pathlib import Path
from savepoint.testing import check_resumes
for registered in ("true", "false"):
    overrides = ("model=remembering", f"model.registered={registered}", "trainer.threads=1")
    check_resumes(*overrides, directory=Path(sys.argv[1]) / registered)
    print(registered, "passed", flush=True)
"""


def test_state_that_no_checkpoint_holds_is_found(workshop: Workshop, warm: Warm, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(workshop.root / "src")}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    ended = warm.run(command, cwd=workshop.root, env=environment)
    assert "true passed" in ended.stdout and "false passed" not in ended.stdout, ended.stdout + ended.stderr
    assert "AssertionError: The resumed run ends in other bits:" in ended.stderr
