"""`image-reward report SCORED`"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from image_reward.cli.options import ReportOptions, UsageError


@dataclass
class Report(ReportOptions):
    """Summarize scored rows: the distribution of rewards, the best and the worst rows, errors by kind, and duplicates."""

    scored: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SCORED", help="The output folder of `image-reward score-files`.")]
    show: int = 12
    """Number of best and of worst rows to show."""
    plots: ClassVar[bool] = True

    def run(self) -> int:
        if self.show < 0:
            raise UsageError(f"--show must be at least 0, not {self.show}")
        self.check_report()

        from image_reward.jobs.report import job_report
        from image_reward.jobs.results import Scored, summarize

        summary, image = summarize(self.scored, self.show), Scored(self.scored).image
        self.write_report(lambda pictures: job_report(summary, image, plots=pictures))
        return 0
