"""The tables that commands print of models, images and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from image_reward.reports.tables import empty_table, plain

if TYPE_CHECKING:
    from image_reward.comparisons import Audit
    from image_reward.comparisons.audit import FileSummary
    from image_reward.scorers.distribution import RewardRow
    from image_reward.types import Preference


def reward_table(rows: Sequence[RewardRow], title: str, caption: str) -> Table:
    distribution = next((row.distribution for row in rows if row.distribution), None)
    if distribution:
        caption += f"; the last column compares with {distribution.num_images:,} published images, most of whose rewards lie in [-2, 2]"
    table = empty_table(title, caption)
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
        table.add_row(*map(plain, cells), style="bold" if row.rank == 1 and len(rows) > 1 else "")
    return table


def generated_table(rows: Sequence[tuple[str, RewardRow, int, float]], caption: str) -> Table:
    """Of prompt, image, seed, and the mean reward of all images of the prompt. Images are in one folder, which the caption names."""
    table = empty_table("", caption)
    table.add_column("prompt", overflow="fold")
    names = [Path(row.image).name for _, row, _, _ in rows]
    # Of what may be broken, the prompt is first: only names that would leave it no room are, too.
    table.add_column("image", overflow="fold", no_wrap=max(map(len, names), default=0) <= 18)
    for column in ("seed", "reward", "mean"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, (prompt, row, seed, mean) in zip(names, rows, strict=True):
        table.add_row(*map(plain, (prompt, name, str(seed), f"{row.reward:+.4f}", f"{mean:+.4f}")))
    return table


def preference_table(preference: Preference, a: str, b: str, title: str, caption: str) -> Table:
    table = empty_table(title, caption)
    table.add_column("image", overflow="fold")
    table.add_column("reward", justify="right")
    table.add_column("preferred by humans", justify="right")
    spreads = [f" ± {spread:.4f}" for spread in preference.spreads] if preference.spreads else ["", ""]
    table.add_row(plain(a), f"{preference.rewards[0]:+.4f}{spreads[0]}", _probability(preference.a_better))
    if preference.tie:
        table.add_row("(no difference)", "", _probability(preference.tie))
    table.add_row(plain(b), f"{preference.rewards[1]:+.4f}{spreads[1]}", _probability(preference.b_better))
    return table


def _probability(probability: float) -> str:
    if 0 < probability < 0.001 or 0.999 < probability < 1:
        return "< 0.1 %" if probability < 0.5 else "> 99.9 %"
    return f"{100 * probability:.1f} %"


def models_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = empty_table("Models", "`image-reward models path NAME` prints where the files of a model are on this machine.")
    table.leading = 1
    table.add_column("model, what its score means, its range, licence")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("here", min_width=4)
    for row in rows:
        name = Text.assemble((row["name"], "bold"), f"\n{row['description']}\n", (f"{row['range']}; {row['licence']}", "dim"))
        table.add_row(name, _size(row["bytes"], row["least_bytes"]), "no" if row["paths"] is None else "yes")
    return table


def _size(num_bytes: int | None, at_least: int | None) -> str:
    if num_bytes is None:
        return "-" if at_least is None else f"> {_size(at_least, None)}"
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def facts_table(facts: Mapping[str, Any]) -> Table:
    table = empty_table(str(facts.get("name", "")))
    table.show_header = False
    table.add_column("")
    table.add_column("", overflow="fold")
    for key, value in _flat(facts):
        table.add_row(key, f"{value:,}" if isinstance(value, int) else plain(str(value)))
    return table


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in facts.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return pairs


def audit_tables(audit: Audit) -> list[Table]:
    """What the files contain, and the findings of the audit."""
    files = empty_table("Comparisons")
    files.add_column("")
    for summary in audit.files:
        files.add_column(plain(summary.path), overflow="fold")
    for what, cell in _FILE_FACTS.items():
        files.add_row(what, *(plain(cell(summary)) for summary in audit.files))
    errors = sum(finding.level == "error" for finding in audit.findings)
    verdict = f"{errors} kind{'s' if errors > 1 else ''} of error: training on this would be unsound" if errors else "sound"
    opened = "" if audit.images_opened else "; images were not opened"
    findings = empty_table("Findings", caption=verdict + opened)
    for column in ("", "what", "how often", "the first"):
        findings.add_column(column, overflow="fold", justify="right" if column == "how often" else "left")
    if not audit.findings:
        findings.add_row("", "nothing is wrong", "", "")
    for finding in audit.findings:
        style = "bold red" if finding.level == "error" else "yellow"
        findings.add_row(plain(finding.level, style=style), plain(finding.message), f"{finding.num:,}", plain(finding.examples[0]))
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
