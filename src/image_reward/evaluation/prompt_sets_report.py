"""The published sets of prompts as a report."""

from __future__ import annotations

from collections.abc import Mapping

from image_reward.prompt_sets import PromptSet
from image_reward.reports.document import Column, Grid, Report


def prompt_sets_report(sets: Mapping[str, PromptSet]) -> Report:
    """``sets``: by name."""
    columns = [Column("name", "left"), Column("prompts"), Column("description", "left"), Column("licence", "left")]
    rows = [[name, f"{prompts.num_prompts:,}", prompts.description, prompts.licence] for name, prompts in sets.items()]
    lead = "Print one with `image-reward prompts show NAME`; measure generators on one with `image-reward benchmark --prompts NAME`."
    return Report("Sets of prompts", lead, [Grid(columns, rows)])
