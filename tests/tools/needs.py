"""Marks of tests that need what not every version in pyproject.toml's ranges has."""

import pytest
import torch

HAS_MUON = hasattr(torch.optim, "Muon")
plain_graphs = pytest.mark.skipif(not HAS_MUON, reason="torch writes model.pt2 without pickles since 2.9")
muon = pytest.mark.skipif(not HAS_MUON, reason="torch has the optimizer Muon since 2.9")
