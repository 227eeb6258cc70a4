"""Write docs/configs.md for a project, which has its own names and only some options, as `make docs` does there."""

import re
from collections.abc import Mapping

PAGE, CONFIG = "docs/configs.md", "conf/config.yaml"


def of_project(page: str, files: Mapping[str, bytes]) -> str:
    """Return the template's page with the project's files of conf/, without options for which the project has no file.

    files: the project's, by path.
    """
    config = files[CONFIG].decode().partition("\nhydra:")[0].strip()

    def row(found: "re.Match[str]") -> str:
        group, option, rest = found.groups()
        if f"conf/{group}/{option}.yaml" not in files:
            return ""
        is_default = re.search(rf"^  - {group}: {option}\b", config, re.M)
        return f"| [`{group}={option}`]{rest if is_default else rest.replace(' The default. |', ' |')}\n"

    def section(found: "re.Match[str]") -> str:
        text = files.get(f"conf/{found[1]}/{found[2]}.yaml")
        return "" if text is None else f"\n### {found[1]}={found[2]}\n\n```yaml\n{text.decode().strip()}\n```\n"

    page = re.sub(r"^\| \[`(\w+)=(\w+)`\](.*)\n", row, page, flags=re.M)
    page = re.sub(r"^\n### (\w+)=(\w+)\n\n```yaml\n.*?\n```\n", section, page, flags=re.M | re.S)
    page = re.sub(r"^\n## \w+\n\n\| option \| \|\n\|---\|---\|\n(?!\|)", "", page, flags=re.M)
    groups = ", ".join(f"[{group}](#{group})" for group in re.findall(r"^## (\w+)$", page, re.M))
    page = re.sub(r"^Groups: .*$", f"Groups: {groups}.", page, flags=re.M)
    return re.sub(r"(?<=^## Every run\n\n```yaml\n).*?(?=\n```\n)", lambda _: config, page, count=1, flags=re.M | re.S)
