"""What a trial of the promise consists of, drawn at random from the whole conf tree.

An option that a file adds to conf/ takes part as soon as it is there. What is drawn depends on a seed alone.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tools.grid import FITTING, OPTIONS

# What makes an option short enough that each trial sees all of it: its milestones, its cycles, its end.
SHORT = {
    "model": {
        "mlp": ["model.hidden=[12]"],
        "cnn": ["model.channels=[4,6]"],
        "transformer": ["model.width=16", "model.layers=1", "model.heads=2"],
    },
    "data": {"text": ["data.dataset.context=16"]},
    "scheduler": {
        "cosine_warm_restarts": ["scheduler.T_0=2"],
        "cyclic": ["scheduler.step_size_up=3"],
        "lambda": ["scheduler.lr_lambda.warmup=4"],
        "multistep": ["scheduler.milestones=[1,2]"],
        "plateau": ["scheduler.patience=0", "scheduler.threshold=0.5"],
        "sequential": ["scheduler.milestones=[2]"],
        "step": ["scheduler.step_size=1"],
        "swa": ["scheduler.anneal_epochs=2"],
    },
    "amp": {"fp16": ["amp.growth_interval=2"]},
}
# Presets, cut short, with the task and the model that each chooses.
PRESETS = {
    "experiment=digits_cnn": ("classification", "cnn"),
    "experiment=diabetes": ("regression", "mlp"),
    "experiment=characters": ("language_model", "transformer"),
    "debug=anomaly": ("classification", "mlp"),
    "debug=one_batch": ("classification", "mlp"),
    "debug=overfit": ("classification", "mlp"),
}
HOW = ("kill", "term", "ctrl-c", "ctrl-c twice", "worker", "disk full", "kill at the disk", "kill by the clock")
AMONG_RANKS = (*HOW, "kill in a save")
FSDP, DDP = "trainer.parallel=fsdp", "trainer.parallel=ddp"
MOST = 0.04, 0.1, 0.15  # shares of the trials in fresh interpreters, of those with a preset, and of the recipes


@dataclass(frozen=True)
class Interruption:
    """how: one of AMONG_RANKS. at: how far into the process that it interrupts, as a share of what an uninterrupted one does.

    again: moments to a second Ctrl-C, and half milliseconds from the beginning of a save to its kill. changes: what
    that process is given which may not change a result. rank: the one that is interrupted, where several train; beyond
    the last: by turns. In a save, the turn after the last one's is that of all ranks together.
    """

    how: str
    at: float
    again: int = 1
    changes: tuple[str, ...] = ()
    rank: int = 0


@dataclass(frozen=True)
class Trial:
    """config: what train.py is called with. last: changes of the process that is not interrupted.

    fresh: in interpreters of their own, tracked by MLflow, instead of in forks of a warm one. ranks: how many train.
    """

    config: tuple[str, ...]
    interruptions: tuple[Interruption, ...]
    last: tuple[str, ...] = ()
    fresh: bool = False
    ranks: int = 1

    @property
    def in_parts(self) -> bool:
        """Whether each rank holds and saves a part of the model."""
        return self.ranks > 1 and FSDP in self.config


def trial(chance: random.Random, recipes: Sequence[tuple[str, ...]] = (), *, ranked: float = 0.15) -> Trial:
    """Any config, interrupted one to ten times in any way.

    recipes: the arguments of commands of docs/recipes/. ranked: the share of trials in which several ranks train, half
    of them with FSDP.
    """
    drawn = _trial(chance, recipes)
    if drawn.fresh or chance.random() >= ranked:
        return drawn
    config = (*drawn.config, *_some(chance, 0.5, FSDP))
    if FSDP in config:
        config += (f"fsdp.min_parameters={chance.choice((1, 100, 1_000_000))}", *_of_fsdp(chance))
    return replace(drawn, config=config, ranks=chance.choice((2, 3)), interruptions=interruptions(chance, AMONG_RANKS))


def _of_fsdp(chance: random.Random) -> Iterator[str]:
    yield from _some(chance, 0.3, "fsdp.reshard_after_forward=false")
    yield from _some(chance, 0.3, "fsdp.checkpoint_activations=true")
    yield from _some(chance, 0.3, "fsdp.param_dtype=bfloat16")
    yield from _some(chance, 0.3, "fsdp.reduce_dtype=bfloat16", "fsdp.reduce_dtype=float32")


def _trial(chance: random.Random, recipes: Sequence[tuple[str, ...]]) -> Trial:
    if recipes and chance.random() < MOST[2]:
        small = (
            f"seed={chance.randrange(2**64)}",
            "trainer.max_epochs=3",
            f"data.limit_batches={chance.randint(3, 9)}",
        )
        config = (*chance.choice(recipes), *small, *_some(chance, 0.5, "trainer.log_every_n_steps=2"))
        return Trial(config, interruptions(chance), _changes(chance))
    config = _preset(chance) if chance.random() < MOST[1] else _composed(chance, {})
    return Trial(config, interruptions(chance), _changes(chance), chance.random() < MOST[0])


def config_of(chance: random.Random, row: dict[str, str]) -> tuple[str, ...]:
    """A config with the factors of a row of grid.FACTORS, and anything else."""
    return _composed(chance, row)


def interruptions(chance: random.Random, ways: tuple[str, ...] = HOW) -> tuple[Interruption, ...]:
    count = chance.choice((1, 1, 2, 2, 3, 4, 10))
    # Ten of them come early, or the run would be over after a few.
    early = 1 if count < 4 else 3
    return tuple(_interruption(chance, chance.choice(ways), chance.random() ** early) for _ in range(count))


def _interruption(chance: random.Random, how: str, at: float) -> Interruption:
    changes = (f"data.num_workers={chance.randint(1, 2)}",) if how == "worker" else _changes(chance)
    return Interruption(how, at, chance.randint(1, 60), changes, chance.randrange(6))


def _changes(chance: random.Random) -> tuple[str, ...]:
    """What may be changed between two processes of one run, and changes no bit."""
    if chance.random() < 0.5:
        return ()
    workers = ("data.num_workers=0", "data.num_workers=1", "data.num_workers=2", "data.persistent_workers=false")
    cadence = ("checkpoint.every_n_steps=1", "checkpoint.every_n_steps=null", "checkpoint.every_n_minutes=0.0002")
    return (chance.choice((*workers, *cadence, "checkpoint.async_save=true", "checkpoint.keep_last=2")),)


def _composed(chance: random.Random, row: dict[str, str]) -> tuple[str, ...]:
    fitting = [pair for pair in FITTING if row.get("task and model", " ".join(pair)) == " ".join(pair)]
    task, model = chance.choice(fitting)
    chosen = {"task": task, "model": model}
    for group in ("optimizer", "scheduler", "amp"):
        chosen[group] = row.get(group) or chance.choice(OPTIONS[group])
    chosen["data"] = FITTING[task, model][0].removeprefix("data=")
    config = [f"{group}={option}" for group, option in chosen.items()] + FITTING[task, model][1:]
    given = [f"{key}={value}" for key, value in row.items() if "." in key]
    if row.get("parallel", "").endswith("fsdp"):
        given += ["trainer.parallel=fsdp", "fsdp.min_parameters=100"]
    further = [*_size(chance), *_settings(chance, model), *_of_options(chance, chosen)]
    further = [each for each in further if each.partition("=")[0] not in row]
    short = [each for group, option in chosen.items() for each in SHORT.get(group, {}).get(option, [])]
    return (*config, *short, *further, *given)


def _preset(chance: random.Random) -> tuple[str, ...]:
    preset = chance.choice(sorted(PRESETS))
    task, model = PRESETS[preset]
    short = SHORT["data"]["text"] if task == "language_model" else []
    return (preset, *SHORT["model"][model], *short, *_size(chance), *_settings(chance, model))


def _some(chance: random.Random, share: float, *values: str) -> Iterator[str]:
    if chance.random() < share:
        yield chance.choice(values)


def _size(chance: random.Random) -> Iterator[str]:
    yield f"seed={chance.randrange(2**64)}"
    yield f"trainer.max_epochs={chance.randint(2, 4)}"
    yield f"data.batch_size={chance.choice((8, 13, 32))}"
    yield f"data.limit_batches={chance.randint(3, 9)}"
    yield from _some(chance, 0.3, *(f"trainer.max_steps={number}" for number in (1, 3, 5, 7)))


def _settings(chance: random.Random, model: str) -> Iterator[str]:
    """Of the closed groups: each is there in some of the trials."""
    yield from _some(chance, 0.5, *(f"trainer.accumulate={number}" for number in (2, 3, 4)))
    if model != "embedding":  # torch clips no sparse gradients
        yield from _some(chance, 0.3, "trainer.clip_grad_norm=0.5")
    yield from _some(chance, 0.3, "trainer.ema_decay=0.8")
    yield from _some(chance, 0.2, "trainer.patience=1")
    yield from _some(chance, 0.3, *(f"trainer.evaluate_every_n_steps={number}" for number in (1, 2, 3)))
    yield from _some(chance, 0.2, "trainer.evaluate_first=true")
    yield from _some(chance, 0.1, "trainer.figures_every_n_epochs=1")
    yield from _some(chance, 0.5, *(f"trainer.log_every_n_steps={number}" for number in (1, 3, "null")))
    yield from _some(chance, 0.4, "data.num_workers=1", "data.num_workers=2")
    yield from _some(chance, 0.3, "data.persistent_workers=false")
    yield from _some(chance, 0.2, "data.prefetch=1")
    yield from _some(chance, 0.2, "data.shuffle=false")
    yield from _some(chance, 0.3, "data.drop_last=true")
    yield from _some(chance, 0.6, *(f"checkpoint.every_n_steps={number}" for number in (1, 2, 5)))
    yield from _some(chance, 0.3, "checkpoint.every_n_epochs=2", "checkpoint.every_n_epochs=null")
    yield from _some(chance, 0.3, "checkpoint.keep_last=1", "checkpoint.keep_last=3")
    yield from _some(chance, 0.3, "checkpoint.async_save=false")
    yield from _some(chance, 0.3, "checkpoint.mode=max", "checkpoint.keep_best=0")


def _of_options(chance: random.Random, chosen: dict[str, str]) -> Iterator[str]:
    """Of what was chosen of the open groups."""
    if chosen["amp"] == "fp16":  # the first updates overflow; or the scale grows from the start
        yield from _some(chance, 0.6, "amp.init_scale=1e20", "amp.init_scale=256")
    if chosen["scheduler"] != "plateau":
        yield from _some(chance, 0.4, "scheduler.interval=step", "scheduler.interval=epoch")
    if chosen["task"] != "regression":
        yield from _some(chance, 0.3, "task.label_smoothing=0.1")
    if chosen["model"] == "mlp":
        yield from _some(chance, 0.4, "model.batch_norm=true")
        yield from _some(chance, 0.3, "model.dropout=0.5")
    if chosen["data"] == "digits":
        yield from _some(chance, 0.6, "data.dataset.augment=true")
        yield from _some(chance, 0.4, "data.dataset.limit=61", "data.dataset.limit=80")
        yield from _some(chance, 0.2, "data.sampler={_target_: project.data.balanced.Balanced}")
