"""cookiecutter runs this in the directory that it made. The template's own program writes the project into it."""

import subprocess
import sys

ANSWERS = {
    "name": """{{ cookiecutter.name | replace("\\", "\\\\") | replace('"', '\\"') }}""",
    "package": "{{ cookiecutter.package }}",
    "author": """{{ cookiecutter.author | replace("\\", "\\\\") | replace('"', '\\"') }}""",
    "licence": "{{ cookiecutter.licence }}",
    "tracker": "{{ cookiecutter.tracker }}",
    "examples": "{{ cookiecutter.examples }}",
}
PROGRAM = r"{{ cookiecutter._repo_dir }}/src/savepoint/template"

sys.exit(
    subprocess.run(
        [sys.executable, PROGRAM, "complete", ".", *(f"--{key}={value}" for key, value in ANSWERS.items())]
    ).returncode
)
