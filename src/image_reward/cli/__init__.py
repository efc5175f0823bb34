"""The command line: one file per command. `main` is the only place where a command meets exit codes."""

from __future__ import annotations

import difflib
import itertools
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import make_dataclass
from importlib import import_module
from typing import Annotated, Any, Union

PROGRAM = "image-reward"
COMMANDS = {
    "rank": "Rank images for a prompt by reward, best first.",
    "score": "Print the reward of each image for a prompt.",
    "compare": "Estimate how likely human annotators are to prefer one image to another.",
    "score-files": "Score any number of rows of prompts and images into a folder.",
    "filter": "Select the best rows that score-files scored.",
    "report": "Summarize the rows that score-files scored.",
    "serve": "Serve rewards over HTTP, to programs and to people.",
    "models": "List, download, verify, convert and describe models.",
    "data": "Check, convert and split human rankings.",
    "pretrain": "Pretrain a network from scratch by masked language modelling.",
    "train": "Train a reward model on human rankings.",
    "evaluate": "Measure how well scorers agree with human rankings.",
    "judge": "Ask a judge which image of each pair is better, in both orders.",
    "benchmark": "Compare image generators by the rewards of their images.",
    "generate": "Generate images for prompts and keep those with the highest rewards.",
    "tune": "Tune an image generator with a reward.",
    "prompts": "List and print published sets of prompts.",
    "verify-precision": "Measure the effect of a lower precision on your own images.",
    "export": "Export a scorer to ONNX, for programs without PyTorch.",
    "completion": "Print a script for tab completion in a shell.",
}
"""Name and summary; the command is the class of the same name in the module of the same name, loaded when it is called:
``verify-precision`` is ``VerifyPrecision`` in ``verify_precision``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["--version"], ["-V"]):
        from image_reward import __version__

        print(f"{PROGRAM} {__version__}")
        return 0
    from image_reward.cli.options import UsageError, in_options, warnings_in_one_line
    from image_reward.errors import is_defect
    from image_reward.terminal import encodable_output, note

    with encodable_output():
        try:
            with warnings_in_one_line():
                return parse(arguments).run()
        except UsageError as error:
            note(f"{PROGRAM}: {error}")
            return 2
        except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more on its way out
            return 1
        except KeyboardInterrupt as error:
            note(f"{PROGRAM}: {str(error) or 'interrupted'}")
            return 130
        except Exception as error:
            if not is_defect(error):
                line = in_options(_message(error)).replace("\n", "\\n")  # a name may hold a line end
            else:
                line = "this is a defect, not a mistake of yours; please report it with the lines above"
                note(traceback.format_exc().rstrip())
            note(f"{PROGRAM}: {line}")
            return 1


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}" if isinstance(error.filename, str | bytes) else error.strerror
    return str(error)


def parse(arguments: Sequence[str]) -> Any:
    """The command that the arguments spell. Help, and usage that cannot be parsed, exit with 0 and 2."""
    import tyro

    from image_reward.cli.help import CONFIG, prepare_help, wrapped_help
    from image_reward.cli.options import UsageError
    from image_reward.cli.outputs import check_outputs
    from image_reward.cli.repeated import refuse_repeated
    from image_reward.errors import InputError

    if arguments and arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "the commands are " + ", ".join(COMMANDS)
        raise UsageError(f"no command is called {arguments[0]:.80}; {hint}")
    if not arguments or arguments[0] not in COMMANDS:  # an overview, which tyro prints before it exits
        options = tuple(
            Annotated[make_dataclass(_class_name(name), [], namespace={"__doc__": summary}), tyro.conf.subcommand(name)]
            for name, summary in COMMANDS.items()
        )
        description = (
            "Score, rank and compare images for a prompt as human annotators would; train and evaluate the models that do so.\n\n"
            f"Options of a command: {PROGRAM} COMMAND --help\n\nVersion: {PROGRAM} --version\n\nTab completion: {PROGRAM} completion bash"
        )
        with wrapped_help():
            tyro.cli(Union[options], prog=PROGRAM, args=list(arguments) or ["--help"], description=description, config=CONFIG)  # type: ignore[call-overload]
    name = arguments[0]
    _refuse_dashes(name, arguments)
    command = command_class(name)
    refuse_repeated(name, command, arguments[1:])
    default = command.defaults(arguments[1:]) if hasattr(command, "defaults") else None
    prepare_help(command)
    try:
        with wrapped_help():
            parsed = tyro.cli(command, prog=f"{PROGRAM} {name}", args=list(arguments[1:]), default=default, config=CONFIG)
        if hasattr(parsed, "check_settings"):
            parsed.check_settings()
    except InputError as error:  # what a class of settings says of its values
        raise UsageError(str(error)) from None
    check_outputs(parsed)
    return parsed


def _refuse_dashes(command: str, arguments: Sequence[str]) -> None:
    """Raise ``UsageError`` for what begins with a dash and holds a space, such as a prompt, which tyro would call an unknown option."""
    from image_reward.cli.options import UsageError

    for argument in itertools.takewhile(lambda argument: argument != "--", arguments):
        if argument.startswith("-") and len(argument.partition("=")[0].split()) > 1:
            raise UsageError(
                f"{argument:.200} is not an option; before a prompt that begins with a dash, and after all options, put --, as in "
                f'`{PROGRAM} {command} --json -- "{argument:.200}" …`'
            )


def command_class(name: str) -> Any:
    return getattr(import_module(f"image_reward.cli.{name.replace('-', '_')}"), _class_name(name))


def _class_name(command: str) -> str:
    return command.title().replace("-", "")
