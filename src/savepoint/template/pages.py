"""Write the pages of a project that are not the template's: README, CHANGELOG, LICENSE."""

from savepoint.template.answers import Answers

_README = """\
# {title}

A PyTorch project on [Savepoint](docs/README.md)'s engine: interrupt a run anywhere, `kill -9` included, and resume it:
it ends in the same bits as a run that nobody interrupted. Checkpoints hold the whole state of a run and no pickle.

```sh
make train                             # on a fresh machine: makes .venv, installs{trains}
make test                              # this project's own tests
make resume                            # go on where the newest run stopped
```

Without make (Windows): `python -m venv .venv`, install with
`python -m pip install --constraint constraints.txt --editable ".[dev]"` in it, then `python train.py`,
`python -m pytest`, `python resume.py run=latest`. `python train.py --help` lists everything that a run can be made of.

{begin}
## Where things are

```text
src/{package}/{indent}yours: models, data, tasks           conf/     a folder for each choice
tests/project/{pad}tests of what is yours             docs/     how to use all of this
train.py  resume.py   start a run; go on with one        runs/     what you trained
src/savepoint/        the engine, with tests/engine/: leave both alone, so that newer versions can replace them
```

Newer engine: {upgrade}. It touches nothing of yours, and old runs resume with it to the same bits.
`make test-engine` runs the engine's own tests, which take about a quarter of an hour on two cores.
"""
_BEGIN = {
    "all": """\
Start from the worked examples: `python train.py experiment=digits_cnn` (images), `experiment=diabetes` (a table),
`experiment=characters` (text). Write your own beside them, then delete what you do not need.
""",
    "one": """\
Start from the worked example, digits classified by a small network: a model and a data set are a file in
`src/{package}/` and one in `conf/` each. [docs/first_steps.md](docs/first_steps.md) writes one of each.
""",
    "none": """\
Nothing can be trained yet: write a model, a data set and a task, each a file in `src/{package}/` and one in `conf/`.
[docs/first_steps.md](docs/first_steps.md) writes one of each; then choose them in `conf/config.yaml`.
""",
}
_CHANGELOG = """\
# Changelog

What changes in {title}, in the form of [Keep a Changelog](https://keepachangelog.com/en/1.1.0/).

## [Unreleased]

### Added

- The project, from the Savepoint template, version {version}.
"""
_PERMISSION = {
    "MIT": """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
""",
    "BSD-3-Clause": """\
Redistribution and use in source and binary forms, with or without modification, are permitted provided that the
following conditions are met:

1. Redistributions of source code must retain the above copyright notice, this list of conditions and the following
   disclaimer.

2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the following
   disclaimer in the documentation and/or other materials provided with the distribution.

3. Neither the name of the copyright holder nor the names of its contributors may be used to endorse or promote
   products derived from this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL,
SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY,
WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF
THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
""",
}
_NAMES = {"MIT": "MIT License", "BSD-3-Clause": "BSD 3-Clause License"}


def pages(answers: Answers, *, version: str) -> dict[str, str]:
    """Return the text of each page by its path. version: the engine's."""
    title = answers.name.replace("<", "&lt;")
    width = max(22 - len(f"src/{answers.package}/"), 2)
    readme = _README.format(
        title=title,
        package=answers.package,
        begin=_BEGIN[answers.examples].replace("{package}", answers.package),
        indent=" " * width,
        pad=" " * max(len(f"src/{answers.package}/") + width - len("tests/project/"), 2),
        trains="" if answers.examples == "none" else ", trains on real data",
        upgrade="`python -m savepoint upgrade --from <a newer Savepoint>`",
    )
    found = {"README.md": readme, "CHANGELOG.md": _CHANGELOG.format(title=title, version=version)}
    if answers.licence != "none":
        holder = answers.author or f"The {answers.name} authors"
        found["LICENSE"] = f"{_NAMES[answers.licence]}\n\nCopyright (c) {holder}\n\n{_PERMISSION[answers.licence]}"
    return found
