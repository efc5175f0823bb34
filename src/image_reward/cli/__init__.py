"""The command line: one file per command. `main` is the only place where a command meets exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Union

PROGRAM = "image-reward"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["--version"], ["-V"]):
        from image_reward import __version__

        print(f"{PROGRAM} {__version__}")
        return 0
    import tyro

    from image_reward.cli import compare, data, evaluate, models, rank, score
    from image_reward.cli.options import UsageError, warnings_in_one_line

    commands = Union[
        Annotated[rank.Rank, tyro.conf.subcommand("rank")],
        Annotated[score.Score, tyro.conf.subcommand("score")],
        Annotated[compare.Compare, tyro.conf.subcommand("compare")],
        Annotated[data.Data, tyro.conf.subcommand("data")],
        Annotated[evaluate.Evaluate, tyro.conf.subcommand("evaluate")],
        Annotated[models.Models, tyro.conf.subcommand("models")],
    ]
    command = tyro.cli(
        commands,
        prog=PROGRAM,
        args=arguments or ["--help"],
        description="Score, rank and compare images for a prompt by what people would prefer.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    try:
        with warnings_in_one_line():
            return command.run()
    except UsageError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    except (ArithmeticError, OSError, ValueError) as error:  # every error of this package is one of these
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
