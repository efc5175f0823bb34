"""`image-reward prompts list|show`"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Union

import tyro

from image_reward.cli.options import OutputOptions, print_json


@dataclass
class List(OutputOptions):
    """List the published sets of prompts."""

    def run(self) -> int:
        from image_reward.prompt_sets import PROMPT_SETS

        if self.json:
            print_json(
                [
                    {
                        "name": name,
                        "num_prompts": prompts.num_prompts,
                        "description": prompts.description,
                        "licence": prompts.licence,
                        "sources": list(prompts.sources.values()),
                    }
                    for name, prompts in PROMPT_SETS.items()
                ]
            )
        else:
            from image_reward.evaluation.prompt_sets_report import prompt_sets_report
            from image_reward.reports.printing import show

            show(prompt_sets_report(PROMPT_SETS))
        return 0


@dataclass
class Show:
    """Print the prompts of a published set, or of a file, as JSONL: id, prompt, perhaps category. A published set is downloaded once."""

    prompts: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPTS", help="A published set (see `image-reward prompts list`), or a file.")
    ]

    def run(self) -> int:
        from image_reward.prompt_sets import prompts

        for prompt in prompts(self.prompts):
            values = asdict(prompt)
            if not prompt.category:
                del values["category"]
            print(json.dumps(values))
        return 0


@dataclass
class Prompts:
    """List and print published sets of prompts, which image generators are compared on."""

    command: tyro.conf.OmitArgPrefixes[
        Union[
            Annotated[List, tyro.conf.subcommand("list")],
            Annotated[Show, tyro.conf.subcommand("show")],
        ]
    ]

    def run(self) -> int:
        return self.command.run()
