"""`image-reward completion SHELL`"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Union

import tyro


@dataclass
class Completion:
    """Print a script for tab completion in a shell.

    For bash: source <(image-reward completion bash)
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional, tyro.conf.arg(help="The shell.")]

    def run(self) -> int:
        from image_reward.cli import COMMANDS, PROGRAM, command_class
        from image_reward.cli.help import CONFIG

        commands = tuple(Annotated[command_class(name), tyro.conf.subcommand(name)] for name in COMMANDS)
        try:
            tyro.cli(Union[commands], prog=PROGRAM, args=["--tyro-write-completion", self.shell, "-"], config=CONFIG)  # type: ignore[call-overload]
        except SystemExit as done:  # as tyro ends once it has printed the script
            return int(done.code or 0)
        raise AssertionError("tyro parsed a command instead of printing a script")
