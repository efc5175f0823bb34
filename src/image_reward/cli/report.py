"""`image-reward report SCORED`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from image_reward.cli.options import OutputOptions, UsageError, check_report_name, print_json
from image_reward.terminal import note


@dataclass
class Report(OutputOptions):
    """Say what is in a scored file: how rewards are distributed, the best and worst rows, errors by kind, what occurs more than once."""

    scored: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCORED", help="The folder that `image-reward score-files` wrote.")]
    report: Path | None = None
    """Also write it with plots and images: a self-contained .html page, .md, or .json."""
    show: int = 12
    """How many of the best and of the worst rows."""

    def run(self) -> int:
        if self.show < 0:
            raise UsageError(f"--show must be at least 0, not {self.show}")
        if self.report:
            check_report_name(self.report)

        from image_reward.jobs.results import Scored, summarize

        summary = summarize(self.scored, self.show)
        if self.json and not self.report:
            print_json(summary.as_dict())
            return 0

        from image_reward.jobs.report import job_report
        from image_reward.reports.render import show, write

        report = job_report(summary, Scored(self.scored).image, plots=self.report is not None)
        if self.json:
            print_json(report.data)
        else:
            show(report)
        if self.report:
            write(report, self.report)
            note(f"report: {self.report.resolve()}")
        return 0
