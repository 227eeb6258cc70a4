"""Ranks exchange bytes of any length, and whole numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tools import ranked

EXCHANGE = """
import json, sys
from savepoint import parallel

lengths = json.loads(sys.argv[1])
mine = bytes([parallel.rank() + 1]) * lengths[parallel.rank()]
with parallel.group("test", "cpu", seconds=60):
    found = parallel.exchange(mine)
    sums = parallel.Summing([parallel.rank(), 2**40]).sums()
assert found == [bytes([rank + 1]) * length for rank, length in enumerate(lengths)], [len(each) for each in found]
assert sums == [sum(range(len(lengths))), len(lengths) * 2**40]
"""


@pytest.mark.parametrize("lengths", [[0, 5], [32 * 1024, 32 * 1024 + 1], [100_000, 0, 40_000]])
def test_ranks_exchange_bytes_of_different_lengths(lengths: list[int], tmp_path: Path) -> None:
    script = tmp_path / "exchange.py"
    script.write_text(EXCHANGE)
    command = [sys.executable, str(script), json.dumps(lengths)]
    started = [
        subprocess.Popen(command, env={**os.environ, **place}, stderr=subprocess.PIPE)
        for place in ranked.places(len(lengths))
    ]
    for each in started:
        _, errors = each.communicate(timeout=60)
        assert each.returncode == 0, errors.decode(errors="replace")
