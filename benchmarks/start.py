"""How much processor time passes before a command answers what needs no model, in seconds.

    python benchmarks/start.py
    python benchmarks/start.py --repeats 9

User and system time of a process of its own, so that what else the machine does counts little; the smallest of the repetitions, with
modules compiled.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass

import tyro

from image_reward.cli import COMMANDS

TRIVIAL = (["--version"], ["--help"], ["rank", "a cat", "none.png"], ["prompts", "list"], ["models", "path", "ImageReward-mini"])


@dataclass
class Benchmark:
    repeats: int = 5

    def run(self) -> None:
        with tempfile.TemporaryDirectory() as cache:
            self.measure({**os.environ, "PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""})

    def measure(self, environment: dict[str, str]) -> None:
        commands = {"python alone": ["-c", ""]}
        for arguments in (*TRIVIAL, *([name, "--help"] for name in COMMANDS)):
            commands[f"image-reward {' '.join(arguments)}"] = ["-m", "image_reward.cli", *arguments]
        for name, arguments in commands.items():
            _seconds(arguments, environment)  # compiles what the others load
            print(f"{min(_seconds(arguments, environment) for _ in range(self.repeats)):.2f}  {name}", flush=True)


def _seconds(arguments: list[str], environment: dict[str, str]) -> float:
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    _, _, usage = os.wait4(process.pid, 0)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    tyro.cli(Benchmark).run()
