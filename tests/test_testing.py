"""savepoint.testing finds a model that does not come back as it was, and passes one that does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tools.workshop import Workshop

PROGRAM = """
import sys
from pathlib import Path
from savepoint.testing import check_resumes
check_resumes("model=remembering", f"model.registered={sys.argv[2]}", "trainer.threads=1", directory=Path(sys.argv[1]))
"""


@pytest.mark.parametrize("registered", ["true", "false"])
def test_state_that_no_checkpoint_holds_is_found(registered: str, workshop: Workshop, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(workshop.root / "src")}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), registered]
    ended = subprocess.run(command, cwd=workshop.root, capture_output=True, text=True, env=environment)
    if registered == "true":
        assert ended.returncode == 0, ended.stderr
    else:
        assert "AssertionError: The resumed run ends in other bits:" in ended.stderr
