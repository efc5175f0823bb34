"""Tables for a terminal, in one visual language."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from image_reward.comparisons import Audit
from image_reward.comparisons.audit import FileSummary
from image_reward.reports.document import Grid
from image_reward.scorers import Scorer
from image_reward.scorers.distribution import Distribution, published_distribution
from image_reward.types import Preference

_WIDE = 200  # columns where there is no terminal to fit into, so that paths stay whole in files and pipes


@dataclass(frozen=True)
class RewardRow:
    """One image with its reward, and where that falls among the published images."""

    image: str
    reward: float
    rank: int | None
    distribution: Distribution | None

    @classmethod
    def of(cls, scorer: Scorer[Any], image: str, reward: float, rank: int | None = None) -> RewardRow:
        return cls(image, reward, rank, published_distribution(scorer.reference))

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {} if self.rank is None else {"rank": self.rank}
        found |= {"image": self.image, "reward": self.reward}
        return found | ({"percentile": round(self.distribution.percentile(self.reward), 2)} if self.distribution else {})


def show(*parts: RenderableType) -> None:
    """Print tables or text to standard output, as wide as the terminal, or wide enough for any path where there is none."""
    terminal = Console()
    console = Console(width=terminal.width if terminal.is_terminal else _WIDE)
    for part in parts:
        console.print(part)


def _table(title: str, caption: str = "") -> Table:
    return Table(
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        caption=Text(caption) if caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_style="",
    )


def grid_table(grid: Grid) -> Table:
    """A report's table: words are folded to fit, numbers stay whole."""
    table = _table(grid.title, grid.caption)
    for column in grid.columns:
        words = column.align == "left"
        table.add_column(Text(column.title), justify=column.align, no_wrap=not words, overflow="fold" if words else "ellipsis")
    for index, row in enumerate(grid.rows):
        table.add_row(*map(Text, row), style="bold" if index in grid.strong else "")
    return table


def reward_table(rows: Sequence[RewardRow], title: str, caption: str) -> Table:
    distribution = next((row.distribution for row in rows if row.distribution), None)
    if distribution:
        caption += f"; the last column compares with {distribution.num_images:,} published images, most of whose rewards lie in [-2, 2]"
    table = _table(title, caption)
    ranked = any(row.rank is not None for row in rows)
    if ranked:
        table.add_column("rank", justify="right")
    table.add_column("image", overflow="fold")
    table.add_column("reward", justify="right", no_wrap=True)
    if distribution:
        table.add_column("among published images", no_wrap=True)
    for row in rows:
        cells = [str(row.rank)] if ranked else []
        cells += [row.image, f"{row.reward:+.4f}"]
        if row.distribution:
            cells.append(row.distribution.in_words(row.reward))
        table.add_row(*map(Text, cells), style="bold" if row.rank == 1 and len(rows) > 1 else "")
    return table


def preference_table(preference: Preference, a: str, b: str, title: str, caption: str) -> Table:
    table = _table(title, caption)
    table.add_column("image", overflow="fold")
    table.add_column("reward", justify="right")
    table.add_column("people prefer it", justify="right")
    table.add_row(Text(a), f"{preference.rewards[0]:+.4f}", _percent(preference.a_better))
    if preference.tie:
        table.add_row("(no difference)", "", _percent(preference.tie))
    table.add_row(Text(b), f"{preference.rewards[1]:+.4f}", _percent(preference.b_better))
    return table


def _percent(probability: float) -> str:
    if 0 < probability < 0.001 or 0.999 < probability < 1:
        return "< 0.1 %" if probability < 0.5 else "> 99.9 %"
    return f"{100 * probability:.1f} %"


def models_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Models", "`image-reward models path NAME` prints where the files of a model are on this machine.")
    table.add_column("model, and what its score means", overflow="fold", ratio=1)
    for column in ("range", "licence"):
        table.add_column(column, overflow="fold", max_width=14)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("here", no_wrap=True)
    for row in rows:
        name = Text.assemble((row["name"], "bold"), "\n", row["description"])
        size = "-" if row["bytes"] is None else _size(row["bytes"])
        table.add_row(name, Text(row["range"]), Text(row["licence"]), size, "no" if row["paths"] is None else "yes")
    return table


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def facts_table(facts: Mapping[str, Any]) -> Table:
    table = _table(str(facts.get("name", "")))
    table.add_column("")
    table.add_column("", overflow="fold")
    for key, value in _flat(facts):
        table.add_row(key, f"{value:,}" if isinstance(value, int) else Text(str(value)))
    return table


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in facts.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return pairs


def audit_tables(audit: Audit) -> list[Table]:
    """What the files hold, and what was found in them."""
    files = _table("Comparisons")
    files.add_column("")
    for summary in audit.files:
        files.add_column(Text(summary.path), overflow="fold")
    for what, cell in _FILE_FACTS.items():
        files.add_row(what, *(Text(cell(summary)) for summary in audit.files))
    errors = sum(finding.level == "error" for finding in audit.findings)
    verdict = f"{errors} kind{'s' if errors > 1 else ''} of error: training on this would be unsound" if errors else "sound"
    opened = "" if audit.images_opened else "; images were not opened"
    findings = _table("Findings", caption=verdict + opened)
    for column in ("", "what", "how often", "the first"):
        findings.add_column(column, overflow="fold", justify="right" if column == "how often" else "left")
    if not audit.findings:
        findings.add_row("", "nothing is wrong", "", "")
    for finding in audit.findings:
        style = "bold red" if finding.level == "error" else "yellow"
        findings.add_row(Text(finding.level, style=style), finding.message, f"{finding.num:,}", Text(finding.examples[0]))
    return [files, findings]


_FILE_FACTS: dict[str, Callable[[FileSummary], str]] = {
    "data set": lambda f: f.source or "-",
    "prompts": lambda f: f"{f.num_prompts:,} ({f.num_distinct_prompts:,} distinct)",
    "images": lambda f: f"{f.num_images:,} ({f.num_distinct_images:,} distinct)",
    "images per prompt": lambda f: ", ".join(f"{images}: {prompts:,}" for images, prompts in f.images_per_prompt.items()) or "-",
    "untied pairs": lambda f: f"{f.num_untied_pairs:,}",
    "tied pairs": lambda f: f"{f.num_tied_pairs:,} ({100 * f.tie_rate:.1f} %)",
    "prompts longer than the model reads": lambda f: f"{f.num_long_prompts:,} (the longest has {f.longest_prompt} tokens)",
}


def evaluation_table(found: Mapping[str, Any]) -> Table:
    """The metrics of an evaluation, given as its ``as_dict()``."""
    table = _table(
        f"{found['name']} against people",
        f"{found['num_prompts']:,} prompts ({found['num_distinct_prompts']:,} distinct), {found['num_images']:,} images, "
        f"{found['num_untied_pairs']:,} untied and {found['num_tied_pairs']:,} tied pairs, "
        f"{found['num_predicted_ties']:,} pairs of equal reward.\n"
        f"In accuracies, {found['treatment_of_ties']}.\n"
        f"Intervals: bootstrap of prompts, {found['num_resamples']:,} resamples, seed {found['seed']}.",
    )
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right")
    table.add_column(f"{100 * found['confidence']:g} % interval", justify="center")
    table.add_column("prompts", justify="right")
    for name, estimate in found["metrics"].items():
        value, low, high = (None if estimate[key] is None else f"{estimate[key]:.4f}" for key in ("value", "low", "high"))
        table.add_row(name.replace("_", " "), value or "-", f"{low} to {high}" if low else "-", f"{estimate['num_prompts']:,}")
    return table
