"""The settings that may change on a resume while the run stays the same run.

The resolved configs are compared, so an override that changes nothing does not count. Any difference that is not listed
here makes a fork: a new run.
"""

from typing import Any

from savepoint.config import differences

# How a model is cut among processes; what the other keys of `fsdp` choose is the precision.
_CUTS = ("classes", "min_parameters", "reshard_after_forward", "checkpoint_activations", "cpu_offload")
# A key covers everything below it.
CONTINUES = {
    "trainer.max_epochs": "moves the planned end; no update before that end depends on it",
    "trainer.max_steps": "moves the planned end, counted in updates",
    "trainer.patience": "moves the end of a run that no longer improves",
    "trainer.log_every_n_steps": "decides which steps are logged, not what they compute",
    "trainer.log_grad_norm": "decides what is logged, not what is computed",
    "trainer.figures_every_n_epochs": "decides when pictures are drawn, which changes nothing that is computed",
    "trainer.on_nonfinite": "moves the end of a run whose loss is NaN or infinite",
    "trainer.test": "takes effect only after training has finished",
    "trainer.detect_anomaly": "only checks what is computed",
    "trainer.profile": "only measures what is computed",
    "trainer.threads": "may change bits, and a line at the start says so; lets a run move to another machine",
    "trainer.device": "may change bits, and a line at the start says so; lets a run move to another machine",
    "trainer.processes": "may change bits, and a line at the start says so; lets a run move to another machine",
    "trainer.parallel": "may change bits, and a line at the start says so; lets a run move to another machine",
    **dict.fromkeys(
        (f"fsdp.{key}" for key in _CUTS),
        "may change bits, and a line at the start says so; lets a run move to another machine",
    ),
    "trainer.timeout_seconds": "decides how long ranks wait for each other, which changes nothing that is computed",
    "trainer.compile": "may change bits, and a line at the start says so; lets a run move to another machine",
    "checkpoint": "decides what is saved and kept, never what is computed",
    "tracker": "mirrors the run directory, and nothing reads it back",
    "data.num_workers": "batches depend on the seed, the epoch and the batch alone, not on who loads them",
    "data.prefetch": "decides how early a batch is loaded",
    "data.persistent_workers": "decides how long a loading worker lives",
    "data.pin_memory": "decides how a batch travels to the device",
    "name": "is for people",
}


def other_run(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the keys, sorted, whose difference between two configs makes a resume a fork."""
    return [key for key in differences(before, after) if not _continues(key)]


def planned(trained: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return the checkpoint's config with the values that the run was given last for the keys of `CONTINUES`.

    An extension (`trainer.max_epochs=40`) counts from the moment it was accepted, even if the run was killed before
    its next checkpoint.

    trained: the checkpoint's config. own: the run's config.yaml, which is rewritten when a resume is accepted.
    """
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in trained.items()}
    for key in CONTINUES:
        group, _, name = key.partition(".")
        if name and all(isinstance(each.get(group), dict) for each in (own, merged)) and name in own[group]:
            merged[group][name] = own[group][name]
    return merged


def _continues(key: str) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in CONTINUES)
