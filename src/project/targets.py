"""Names that a config may use as `_target_`, besides the classes of this folder and torch's own.

Each entry gives the name that a config says and the place where the object is defined, "module:qualified name":

    TARGETS = {
        "timm.create_model": "timm.models._factory:create_model",
        "project.models.mlp.tiny": "project.models.mlp:tiny",  # a function: classes in this folder need no entry
    }

Any checkpoint that someone opens can call what is named here, with any plain arguments: allow what only builds (a
model, a data set), never what runs commands, unpickles or writes files. The table is read as a literal, not executed.
"""

TARGETS: dict[str, str] = {
    "project.schedulers.inverse_sqrt": "project.schedulers:inverse_sqrt",
    "project.schedulers.inverse_time": "project.schedulers:inverse_time",
}
