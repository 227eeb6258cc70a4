"""cookiecutter runs this in the directory that it made. The template's own program writes the project into it."""

import os
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
# A template that was named by a relative path lies beside the project, or where the shell stands.
PLACES = [r"{{ cookiecutter._output_dir }}", os.environ.get("PWD", ".")]
PROGRAMS = [Path(place, r"{{ cookiecutter._repo_dir }}", "src", "savepoint", "template") for place in PLACES]
PROGRAM = next((path for path in PROGRAMS if path.is_dir()), PROGRAMS[0])

Path(".gitkeep").unlink()  # only there so that git keeps the template's empty directory
command = [sys.executable, str(PROGRAM), "complete", ".", *(f"--{key}={value}" for key, value in ANSWERS.items())]
sys.exit(subprocess.run(command).returncode)
