"""cookiecutter runs this in the directory that it made. The template's own program writes the project into it."""

import subprocess
import sys
from pathlib import Path

ANSWERS = {
    "name": """{{ cookiecutter.name | replace("\\", "\\\\") | replace('"', '\\"') }}""",
    "package": "{{ cookiecutter.package }}",
    "author": """{{ cookiecutter.author | replace("\\", "\\\\") | replace('"', '\\"') }}""",
    "licence": "{{ cookiecutter.licence }}",
    "tracker": "{{ cookiecutter.tracker }}",
    "examples": "{{ cookiecutter.examples }}",
}
PROGRAM = r"{{ cookiecutter._repo_dir }}/src/savepoint/template"

Path(".gitkeep").unlink()  # only there so that git keeps the template's empty directory
sys.exit(
    subprocess.run(
        [sys.executable, PROGRAM, "complete", ".", *(f"--{key}={value}" for key, value in ANSWERS.items())]
    ).returncode
)
