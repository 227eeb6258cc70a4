"""Draw docs/resume.svg from real runs: train, train again, kill -9, resume, compare. `python benchmarks/picture.py`

The commands in the picture are the ones that run, in a copy of this repository; … stands for further overrides, which
make the training short. The lines are what they printed, cut at the right edge. The curves are the logged training
losses of both runs, and their points are in the picture's <metadata>.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

REPOSITORY = Path(__file__).resolve().parents[1]
TRAIN = ["train.py", "experiment=digits_cnn", "trainer.max_epochs=4", "tracker=none", "trainer.log_every_n_steps=2"]
KILL_AT = 57  # updates: in the middle of the third epoch
COLUMNS = 58  # of the terminal
WIDTH, HEIGHT, TERMINAL = 830, 400, 462  # pixels: of the picture, and the terminal's part of the width
COLOURS = {
    "ground": "#10151c",
    "bar": "#1a222d",
    "text": "#c9d3de",
    "quiet": "#8493a5",
    "command": "#ffffff",
    "killed": "#ff7b72",
    "good": "#7ee787",
    "whole": "#4f9cf0",
    "again": "#ffb454",
}

Point = tuple[int, float]


class Story:
    """What a terminal showed, line by line, and the losses of both runs."""

    def __init__(self, root: Path, options: list[str]) -> None:
        self.root, self.options = root, options
        self.lines: list[tuple[str, str]] = []  # colour and text
        for name in ("train.py", "resume.py"):
            shutil.copy(REPOSITORY / name, root)
        for name in ("conf", "src"):
            shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        shutil.copy(REPOSITORY / "pyproject.toml", root)

    def play(self, kill_at: int) -> dict[str, Any]:
        """Run the commands. Returns: the points of both runs, where the second was killed, where its resume began."""
        whole = self._run(*self.options)
        first = _id(whole)
        self._say("command", f"$ python {' '.join(TRAIN[:2])} … &")
        killed = self._killed(kill_at)
        second = killed.name.rpartition("-")[2]
        before = points(killed)
        self._say("killed", f"$ kill -9 $!                      # it had done {before[-1][0]} updates")
        resumed = self._run("resume.py", "run=latest")
        began = next(line for line in resumed if line.startswith("resumed from"))
        verdict = self._run("-m", "savepoint", "diff", first, second)[-1]
        assert verdict == "identical", verdict
        run = next(self.root.glob(f"runs/*/*-{first}"))
        return {
            "whole": points(run),
            "killed": before,
            "resumed": points(killed),
            "resumed_from": int(began.rpartition(" ")[2]),
            "last": verdict,
        }

    def _run(self, *arguments: str) -> list[str]:
        shown = [*TRAIN[:2], "…"] if arguments[0] == "train.py" else [*arguments]
        self._say("command", f"$ python {' '.join(shown)}")
        done = subprocess.run([sys.executable, *arguments], **self._process(), stdout=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stdout
        lines = [str(line) for line in done.stdout.splitlines()]
        for line in lines:
            if line.startswith("resumed from") or line.lstrip()[:2] in [f"{epoch}/" for epoch in range(1, 10)]:
                self._say("text", line)
            elif line.startswith("epoch"):
                self._say("quiet", line)
            elif line == "identical":
                self._say("good", line)
        return lines

    def _killed(self, at: int) -> Path:
        """Start the training once more, and kill it after `at` updates. Returns: the run's directory."""
        known = {*self.root.glob("runs/*/*")}
        process = subprocess.Popen([sys.executable, *self.options], **self._process(), stdout=subprocess.DEVNULL)
        while process.poll() is None:
            for run in {*self.root.glob("runs/*/*")} - known:
                if (run / "metrics.jsonl").exists() and (logged := points(run)) and logged[-1][0] >= at:
                    os.kill(process.pid, signal.SIGKILL)
                    process.wait()
                    return run
            time.sleep(0.005)
        raise SystemExit(f"The training ended before update {at}, so nothing was killed.")

    def _process(self) -> dict[str, Any]:
        return {"cwd": self.root, "env": os.environ | {"PYTHONPATH": str(self.root / "src")}}

    def _say(self, colour: str, text: str) -> None:
        self.lines.append((colour, text[:COLUMNS].rstrip()))


def points(run: Path) -> list[Point]:
    """Return the training losses that a run has logged between epochs: (update, loss)."""
    whole_lines = [
        line for line in (run / "metrics.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")
    ]
    logged = [json.loads(line) for line in whole_lines]
    return [(line["step"], line["train/recent_loss"]) for line in logged if "train/recent_loss" in line]


def _id(lines: list[str]) -> str:
    return next(line.split()[1] for line in lines if line.startswith("run "))


def draw(lines: list[tuple[str, str]], data: dict[str, Any]) -> str:
    """Return the picture: the terminal on the left, the curves on the right. data: what `Story.play` returns."""
    words = "A run is trained, trained again, killed, resumed, and ends in identical bits; both loss curves coincide."
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
            f' role="img" aria-label="{words}">',
            f"<title>{words}</title>",
            f"<metadata>{escape(json.dumps(data))}</metadata>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="{COLOURS["ground"]}"/>',
            *_terminal(lines),
            *_curves(data),
            "</svg>\n",
        ]
    )


def _terminal(lines: list[tuple[str, str]]) -> list[str]:
    font = 'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" font-size="12"'
    drawn, y = [f'<g {font} xml:space="preserve">'], 20.0
    for colour, text in lines:
        weight = "bold" if colour in ("command", "good", "killed") else "normal"
        y += 25 if colour in ("command", "good") else 18
        # The width is set, so that columns stand under each other in whichever font a reader has.
        drawn.append(
            f'<text x="20" y="{y}" fill="{COLOURS[colour]}" font-weight="{weight}"'
            f' textLength="{len(text) * 7.2:.1f}" lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
        )
    return [*drawn, "</g>"]


def _curves(data: dict[str, Any]) -> list[str]:
    left, right, top, bottom = TERMINAL + 58, WIDTH - 24, 78, HEIGHT - 52
    steps, losses = zip(*data["whole"], strict=True)
    first, last, most = 0, max(steps), max(losses) * 1.03

    def place(point: Point) -> str:
        x = left + (point[0] - first) / (last - first) * (right - left)
        return f"{x:.1f},{bottom - point[1] / most * (bottom - top):.1f}"

    def line(values: list[Point], colour: str, style: str) -> str:
        return f'<polyline points="{" ".join(map(place, values))}" fill="none" stroke="{COLOURS[colour]}" {style}/>'

    killed, from_step = data["killed"][-1], data["resumed_from"]
    again = [point for point in data["resumed"] if point[0] >= from_step]
    x, y = place(killed).split(",")
    quiet = f'fill="{COLOURS["quiet"]}" font-size="11"'
    ticks = []
    for loss in range(int(most) + 1):
        height = bottom - loss / most * (bottom - top)
        ticks += [
            f'<line x1="{left}" x2="{right}" y1="{height:.1f}" y2="{height:.1f}" stroke="{COLOURS["bar"]}"/>',
            f'<text x="{left - 8}" y="{height + 4:.1f}" text-anchor="end" {quiet}>{loss}</text>',
        ]
    return [
        "<g font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\" font-size=\"12\">",
        f'<line x1="{TERMINAL}" x2="{TERMINAL}" y1="20" y2="{HEIGHT - 20}" stroke="{COLOURS["bar"]}"/>',
        *ticks,
        line(data["whole"], "whole", 'stroke-width="7" stroke-opacity="0.55" stroke-linejoin="round"'),
        line(data["killed"], "killed", 'stroke-width="1.8" stroke-linejoin="round"'),
        line(again, "again", 'stroke-width="1.8" stroke-linejoin="round"'),
        f'<line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}" stroke="{COLOURS["killed"]}" stroke-dasharray="3 4"/>',
        f'<circle cx="{x}" cy="{y}" r="4" fill="{COLOURS["killed"]}"/>',
        f'<text x="{float(x) + 6:.1f}" y="{top + 12}" fill="{COLOURS["killed"]}">kill -9</text>',
        f'<text x="{left}" y="{HEIGHT - 20}" {quiet}>0</text>',
        f'<text x="{right}" y="{HEIGHT - 20}" text-anchor="end" {quiet}>{last} updates</text>',
        *_legend(left),
        "</g>",
    ]


def _legend(left: int) -> list[str]:
    rows = (("whole", 7, "uninterrupted"), ("killed", 2, "killed"), ("again", 2, "resumed"))
    drawn = [f'<text x="{left}" y="34" fill="{COLOURS["text"]}" font-weight="bold">training loss, both runs</text>']
    x = left
    for colour, width, words in rows:
        drawn += [
            f'<line x1="{x}" x2="{x + 16}" y1="54" y2="54" stroke="{COLOURS[colour]}" stroke-width="{width}"/>',
            f'<text x="{x + 21}" y="58" font-size="11" fill="{COLOURS["text"]}">{words}</text>',
        ]
        x += 29 + 6 * len(words)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=REPOSITORY / "docs" / "resume.svg")
    parser.add_argument("--kill-at", type=int, default=KILL_AT, help="updates after which the second run is killed")
    parser.add_argument("overrides", nargs="*", help="more overrides of train.py, which the picture does not show")
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="savepoint-picture-") as place:
        story = Story(Path(place), [*TRAIN, *typed.overrides])
        data = story.play(typed.kill_at)
    typed.to.write_text(draw(story.lines, data), encoding="utf-8")
    print(f"{typed.to}: {len(data['whole'])} points of each run, killed at {data['killed'][-1][0]}: {data['last']}")


if __name__ == "__main__":
    main()
