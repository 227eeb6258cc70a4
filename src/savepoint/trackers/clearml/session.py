"""Write an offline session with ClearML's own SDK: `python -m savepoint.trackers.clearml.session <order.json>`.

This runs in a process of its own, because `Task.init` allows one task per process, patches libraries, and catches
signals. Here the parts of `Task.init` that patch libraries are switched off.
"""

import itertools
import json
import os
import shutil
import sys
from pathlib import Path

# All frameworks that `Task.init` would connect to, and its inspection of the repository, which also looks for newer
# versions of ClearML.
OFF = (
    *("catboost", "detect_repository", "fastai", "gradio", "hydra", "jsonargparse", "joblib", "lightgbm", "matplotlib"),
    *("megengine", "pytorch", "scikit", "tensorboard", "tensorflow", "tfdefines", "xgboost"),
)
BATCH = 1000  # points


def write(order: Path) -> None:
    """Write `session.zip` beside the order. order: a file that `savepoint.trackers.clearml.offline` has written."""
    # Set these before ClearML is imported, because it reads them once.
    os.environ.update({"CLEARML_OFFLINE_MODE": "1", "CLEARML_CACHE_DIR": str(order.parent / "cache")})
    from clearml import Task
    from clearml.config import config_obj

    # Otherwise the SDK would fork a reporting process, which outlives this one by half a minute.
    config_obj.set_overrides({"sdk": {"development": {"report_use_subprocess": False}}})
    from clearml.backend_interface.metrics.events import PlotEvent, ScalarEvent
    from clearml.utilities.plotly_reporter import create_image_plot

    from savepoint.trackers.clearml import contents

    about = json.loads(order.read_text(encoding="utf-8"))
    task = Task.init(
        project_name=about["project"],
        task_name=about["name"],
        tags=about["tags"],
        reuse_last_task_id=False,
        auto_connect_arg_parser=False,
        auto_connect_frameworks=dict.fromkeys(OFF, False),
        auto_resource_monitoring=False,
        auto_connect_streams=False,
    )
    task.set_comment(about["note"])
    task.set_parameters(
        {f"{name}/{key}": text for name, each in about["hyperparams"].items() for key, text in each.items()}
    )
    reports = task.metrics_manager
    with (order.parent / "points.jsonl").open(encoding="utf-8") as lines:
        while batch := [json.loads(line) for line in itertools.islice(lines, BATCH)]:
            reports.write_events([ScalarEvent(**each, task=task.id) for each in batch], async_enable=False)
    for path, file in about["files"].items():
        if not Path(file).is_file():
            continue  # retention has deleted it meanwhile
        if not task.upload_artifact(path, file, wait_on_upload=True):
            raise OSError(f"{file} is not in the session")
        if shown := contents.picture(Path(file), path.rpartition("/")[0]):
            plot = json.dumps(create_image_plot(shown.pop("source"), shown["metric"]))
            reports.write_events([PlotEvent(plot_str=plot, **shown, task=task.id)], async_enable=False)
    # Not `Task.close`: everything is on the disk by now, and that call waits 10 seconds for an idle thread.
    shutil.make_archive(str(order.with_name("session")), "zip", task.get_offline_mode_folder())


if __name__ == "__main__":
    try:
        write(Path(sys.argv[1]))
    except Exception as error:  # whatever ClearML raises; `offline` shows the last line
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)
    os._exit(0)  # skips ClearML's exit handlers
