"""Marks of tests that need what not every version in pyproject.toml's ranges has."""

import pytest
import torch

HAS_MUON = hasattr(torch.optim, "Muon")
muon = pytest.mark.skipif(not HAS_MUON, reason="torch has the optimizer Muon since 2.9")
