"""`image-reward compare PROMPT A B`"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from image_reward.cli.options import PROMPT_FIRST, ModelOptions, OutputOptions, Prompt, PromptOptions, check_images, print_json


@dataclass
class Compare(ModelOptions, OutputOptions, PromptOptions):
    """Estimate how likely human annotators are to prefer one image to another."""

    prompt: Prompt
    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A", help="The first image.")]
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B", help="The second image.")]

    def run(self) -> int:
        self.check_prompt(self.prompt, PROMPT_FIRST)
        check_images((self.a, self.b))
        scorer = self.load()
        preference = scorer.compare(self.prompt, self.a, self.b)
        if self.json:
            print_json({"model": scorer.name, "prompt": self.prompt, "a": self.a, "b": self.b} | preference.as_dict())
            return 0

        from image_reward.cli.tables import preference_table
        from image_reward.reports.tables import show

        show(preference_table(preference, self.a, self.b, title=self.prompt, caption=scorer.name))
        return 0
