"""Check and read configs and files that a stranger may have written.

Rooms, in reading order:
    validation     check a whole config, fresh or loaded, and read its settings
    policy         which values a config may hold
    package        the name of the project's own package in src/
    targets        which names a `_target_` may have
    torch_classes  the table of allowed torch classes
    instantiate    build the objects that a checked config describes
    strict_yaml    read and write config.yaml: plain values only
    strict_json    read a file that a stranger may have written; strict JSON
    text           make a stranger's text fit for a terminal
    redaction      take secrets out of command lines, patches and logs
"""

from savepoint.trust.instantiate import call, make
from savepoint.trust.package import package
from savepoint.trust.redaction import redact, redact_arguments
from savepoint.trust.strict_json import (
    MAX_JSON,
    Memory,
    map_file,
    parse_json,
    read_digested,
    read_file,
    read_member,
    unique_keys,
)
from savepoint.trust.strict_yaml import dump_config, parse_config
from savepoint.trust.text import join_path, printable, shown
from savepoint.trust.validation import check_config

__all__ = [
    "MAX_JSON",
    "Memory",
    "call",
    "check_config",
    "dump_config",
    "join_path",
    "make",
    "map_file",
    "package",
    "parse_config",
    "parse_json",
    "printable",
    "read_digested",
    "read_file",
    "read_member",
    "redact",
    "redact_arguments",
    "shown",
    "unique_keys",
]
