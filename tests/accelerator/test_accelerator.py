"""The accelerator program runs: on the CPU, which every machine has. What a GPU does, only a GPU shows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from killed import make_config
from tools.processes import REPOSITORY, command

from savepoint import system, training, trust
from savepoint.errors import ConfigError
from savepoint.training import build
from savepoint.training.averaging import Average

PROGRAM = "tests/accelerator/run.py"


@pytest.mark.long
def test_quick_checks_pass_on_the_cpu_and_make_a_table(tmp_path: Path) -> None:
    ended = command(PROGRAM, "--device=cpu", "--quick", OUT=str(tmp_path))
    assert ended.status == 0, ended.output
    table = (tmp_path / "accelerator.md").read_text()
    assert ended.output.endswith(table + "\n")
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [name for name, _ in rows[1:]] == [
        "same bits after SIGKILL: bf16, 2 workers",
        "generators restored",
        "snapshot while the device goes on",
        "asynchronous save",
        "training step",
    ]
    assert "failed" not in table


def test_without_an_accelerator_the_program_says_in_one_line_that_nothing_was_tested() -> None:
    ended = command(PROGRAM, CUDA_VISIBLE_DEVICES="")
    assert ended.status == 0
    assert ended.output == "no accelerator: torch.cuda.is_available() is False; nothing was tested\n"


def test_a_device_is_in_use_before_its_generators_are_seeded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CUDA seeds a generator at random when the device is first used, so a seed set before that would be lost."""
    config = make_config("mlp", "cpu", tmp_path, {})
    settings = trust.check_config(config, source=REPOSITORY / "src")
    order: list[Any] = []
    seed, empty = system.rng.seed, torch.empty

    def noting_seed(value: int) -> None:
        order.append("seed")
        seed(value)

    def noting_empty(*size: Any, **options: Any) -> torch.Tensor:
        order.append(options.get("device"))
        return empty(*size, **options)

    monkeypatch.setattr(system.rng, "seed", noting_seed)
    monkeypatch.setattr(torch, "empty", noting_empty)
    training.assemble(config, settings, source=REPOSITORY / "src")
    assert order[:2] == [torch.device("cpu"), "seed"]


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_deterministic_run_is_compiled_without_choices_by_timing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deterministic: bool
) -> None:
    """The compiler times some kernels on a GPU and takes the fastest, which need not be the same in every process."""
    changes = {"trainer.compile": True, "trainer.deterministic": deterministic}
    config = make_config("mlp", "cpu", tmp_path, changes)
    settings = trust.check_config(config, source=REPOSITORY / "src")
    given: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda model, **keywords: given.append(keywords) or model)
    training.assemble(config, settings, source=REPOSITORY / "src")
    known = hasattr(torch._inductor.config, "deterministic")  # not in torch 2.8
    assert given == [{"options": {"deterministic": deterministic} if known else {}}]


def test_a_compiler_that_chooses_by_timing_alone_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch._inductor.config as compiler

    monkeypatch.delattr(compiler, "deterministic", raising=False)
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    model = torch.nn.Linear(1, 1, device="meta")  # any device but the CPU
    for deterministic in (True, False):
        config = make_config("mlp", "cpu", tmp_path, {"trainer.compile": True, "trainer.deterministic": deterministic})
        settings = trust.check_config(config, source=REPOSITORY / "src")
        if deterministic:
            with pytest.raises(ConfigError, match=r"^trainer\.compile: the compiler of torch \S+ chooses kernels by"):
                build.compiled(model, None, settings)
        else:
            assert build.compiled(model, None, settings) is model


def test_averaged_weights_have_the_bits_of_torchs_own_update() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7), torch.nn.Linear(7, 3).bfloat16())
    multi_avg_fn = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    expected = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=multi_avg_fn, use_buffers=True)
    average = Average(model, 0.9)
    for _ in range(4):
        for value in model.state_dict().values():
            value.add_(torch.ones_like(value) if value.dtype is torch.int64 else torch.randn_like(value))
        expected.update_parameters(model)
        average.update_parameters(model)
    states = average.state_dict(), expected.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert average.n_averaged == 4
