"""An audit of human rankings: faults that would mislead training, reported before it begins."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from image_reward.addresses import Address, PathLike
from image_reward.comparisons.forms import MOST_EXAMPLES, Record
from image_reward.comparisons.readers import records
from image_reward.comparisons.split import normalized_prompt
from image_reward.errors import AddressError, ImageReadError, StoreError
from image_reward.image_files import read_image_file
from image_reward.images import open_image
from image_reward.metrics import num_pairs
from image_reward.prompts import bert_tokenizer

# Contradictions in more than this share of the ordered pairs are more than noise. Annotators disagree in about a third of the pairs,
# which training copes with; contradictions of an annotator with themselves should be rare.
MOST_CONTRADICTED = 0.05


# ImageRewardDB as published: prompts -> images, to the precision published. The test split's pairs are those of its JSON list.
_PUBLISHED_TRAIN = {1000: "6.2k", 2000: "12.5k", 4000: "25.1k", 8000: "49.9k"}
_PUBLISHED_VALIDATION = {412: "2.6k"}
_PUBLISHED_TEST = {"prompts": 466, "images": 2720, "untied pairs": 6399, "tied pairs": 831}


@dataclass
class Finding:
    """One kind of fault, and where it occurs."""

    kind: str
    level: Literal["error", "warning"]
    """An error makes training unsound."""
    message: str
    num: int = 0
    """How often it occurs."""
    examples: list[str] = field(default_factory=list)
    """The first 20 places."""


@dataclass
class FileSummary:
    """Counts of one file."""

    path: str
    source: str
    num_prompts: int = 0
    """Comparisons: a prompt with its ranked images counts once for each time it was ranked."""
    num_distinct_prompts: int = 0
    """Ignoring spelling."""
    num_images: int = 0
    """Images of all comparisons; one that is in two comparisons counts twice."""
    num_distinct_images: int = 0
    num_untied_pairs: int = 0
    num_tied_pairs: int = 0
    images_per_prompt: dict[int, int] = field(default_factory=dict)
    """Number of images -> number of comparisons."""
    num_long_prompts: int = 0
    """Comparisons whose prompt has more tokens than the model reads."""
    longest_prompt: int = 0
    """In tokens, counting [CLS] and [SEP]."""

    @property
    def tie_rate(self) -> float:
        """The share of the pairs that are tied, in [0, 1]."""
        return self.num_tied_pairs / max(1, self.num_tied_pairs + self.num_untied_pairs)


@dataclass
class Audit:
    """The result of an audit."""

    files: list[FileSummary]
    findings: list[Finding]
    """Errors first."""
    images_opened: bool

    @property
    def sound(self) -> bool:
        """Whether a model may be trained on this."""
        return not any(finding.level == "error" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        files = [asdict(file) | {"tie_rate": file.tie_rate} for file in self.files]
        return {"sound": self.sound, "images_opened": self.images_opened, "files": files, "findings": [asdict(f) for f in self.findings]}


def audit(
    paths: Sequence[PathLike],
    images: PathLike | None = None,
    *,
    fast: bool = False,
    max_tokens: int = 35,
    on_image: Callable[[int, int], None] | None = None,
) -> Audit:
    """Check files of comparisons for all that would mislead training. Several files are taken to be splits of one data set.

    Every image is opened and decoded once, and hashed to find copies; ``fast`` only checks that its file exists. ``max_tokens``: the
    tokens of a prompt that the model reads. ``on_image(done, total)`` is called as images are checked.

    Errors (training would be unsound): rows that make no sense, images that are missing or cannot be opened, no ordered pair at all,
    prompts in more than one split, and contradictions in more than 5 % of the ordered pairs: a rank against a rating of the same
    annotation, or two copies of an image under different ranks. All else is a warning. Raises what ``read`` raises
    for a file that cannot be read as a whole.
    """
    findings = _Findings()
    files, splits = [], []
    for path in paths:
        rankings = list(records(path, images))
        files.append(_summarize(os.fspath(path), rankings, max_tokens, findings))
        splits.append(rankings)
    hashes = _check_images([record for rankings in splits for record in rankings], fast, findings, on_image)
    for summary, rankings in zip(files, splits, strict=True):
        _check_contradictions(summary, rankings, hashes, findings)
        _check_published(summary, rankings, findings)
    _check_leaks(files, splits, findings)
    return Audit(files, findings.sorted(), images_opened=not fast)


class _Findings:
    def __init__(self) -> None:
        self.by_kind: dict[str, Finding] = {}

    def add(self, kind: str, level: Literal["error", "warning"], message: str, where: str, num: int = 1) -> None:
        finding = self.by_kind.setdefault(kind, Finding(kind, level, message))
        finding.num += num
        if len(finding.examples) < MOST_EXAMPLES:
            finding.examples.append(where.encode(errors="backslashreplace").decode())  # a file's name need not be UTF-8; a report must be

    def sorted(self) -> list[Finding]:
        return sorted(self.by_kind.values(), key=lambda finding: finding.level != "error")


def _summarize(path: str, rankings: list[Record], max_tokens: int, findings: _Findings) -> FileSummary:
    comparisons = [record.comparison for record in rankings if record.comparison]
    summary = FileSummary(path, source=", ".join(sorted({c.source for c in comparisons if c.source})), num_prompts=len(comparisons))
    summary.num_distinct_prompts = len({normalized_prompt(c.prompt) for c in comparisons})
    summary.num_images = sum(len(c.images) for c in comparisons)
    summary.num_distinct_images = len({image for c in comparisons for image in c.images})
    summary.images_per_prompt = dict(sorted(Counter(len(c.images) for c in comparisons).items()))
    for record in rankings:
        where = f"{path}, {record.where}"
        if record.left_out:
            message = "rows that do not say which image is better, which are left out"
            findings.add("left out", "warning", message, f"{where}: {record.left_out}")
            continue
        if record.comparison is None:
            findings.add("bad row", "error", "rows that make no sense", f"{where}: {record.problem}")
            continue
        if record.warning:
            findings.add("incomplete", "warning", "comparisons that lack some of their images", f"{where}: {record.warning}")
        untied, tied = num_pairs(record.comparison.ranks)
        summary.num_untied_pairs += untied
        summary.num_tied_pairs += tied
        if not untied:
            findings.add("all tied", "warning", "comparisons in which all images are tied, from which nothing can be learnt", where)
    if not summary.num_untied_pairs:
        findings.add("nothing to learn", "error", "files without a single ordered pair of images", path)
    lengths = [
        len(encoding.ids) + 2 for encoding in bert_tokenizer().encode_batch([c.prompt for c in comparisons], add_special_tokens=False)
    ]
    summary.longest_prompt = max(lengths, default=0)
    for comparison, length in zip(comparisons, lengths, strict=True):
        if length > max_tokens:
            summary.num_long_prompts += 1
            message = f"prompts of more than {max_tokens} tokens, whose end the model does not read"
            findings.add("long prompt", "warning", message, f"{path}, id {comparison.id}: {length} tokens")
    return summary


# --- images --------------------------------------------------------------------------------------------------------------------------


def _check_images(
    rankings: list[Record], fast: bool, findings: _Findings, on_image: Callable[[int, int], None] | None
) -> dict[object, str]:
    """Image -> a hash of its content, or its name where images are not opened."""
    places: dict[object, str] = {}
    for record in rankings:
        for image in record.comparison.images if record.comparison else ():
            places.setdefault(image, record.where)
    hashes = {}
    check = _exists if fast else _open
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without holding the interpreter's lock
        for done, (image, result) in enumerate(zip(places, _bounded_map(pool, check, list(places)), strict=True), start=1):
            if isinstance(result, FileNotFoundError):
                findings.add("missing image", "error", "images that do not exist", f"{image} ({places[image]})")
            elif isinstance(result, Exception):
                findings.add("unreadable image", "error", "images that cannot be opened", f"{image} ({places[image]}): {result}")
            else:
                hashes[image] = result
            if on_image:
                on_image(done, len(places))
    return hashes


def _bounded_map(pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: list[Any]) -> Iterator[Any]:
    for start in range(0, len(items), 1024):  # so that an interrupt need not wait for all of them
        yield from pool.map(function, items[start : start + 1024])


def _exists(image: Any) -> str | Exception:
    try:
        Address.parse(image.path if callable(image) else image).open().close()
    except StoreError:
        raise
    except (OSError, AddressError) as error:
        return error
    return str(image)


def _open(image: Any) -> str | Exception:
    """A hash of the image's file, which is opened as scoring opens it, or what is wrong with it."""
    try:
        open_image(image)
        content = image() if callable(image) else read_image_file(image)
    except (FileNotFoundError, ImageReadError) as error:
        return error
    return hashlib.blake2b(content, digest_size=16).hexdigest()


# --- contradictions --------------------------------------------------------------------------------------------------------------------


def _check_contradictions(summary: FileSummary, rankings: list[Record], hashes: dict[object, str], findings: _Findings) -> None:
    by_rating: list[str] = []
    by_copy: list[str] = []
    for record in rankings:
        if record.comparison is None:
            continue
        ranks, images = record.comparison.ranks, record.comparison.images
        overall = record.ratings.get("overall_rating")
        for i, j in itertools.combinations(range(len(ranks)), 2):
            better, worse = (i, j) if ranks[i] < ranks[j] else (j, i)
            where = f"{summary.path}, {record.where}: image {better + 1} has rank {ranks[better]}, image {worse + 1} rank {ranks[worse]}"
            copies = images[i] == images[j] or (images[i] in hashes and hashes[images[i]] == hashes.get(images[j]))
            if copies and ranks[i] == ranks[j]:
                findings.add(
                    "copy",
                    "warning",
                    "copies of an image within a comparison",
                    f"{summary.path}, {record.where}: images {i + 1} and {j + 1}",
                )
            elif copies:
                by_copy.append(f"{where}, and they are the same image")
            elif overall and ranks[i] != ranks[j] and overall[better] < overall[worse]:
                by_rating.append(f"{where}, but they are rated {overall[better]:g} and {overall[worse]:g}")
    for kind, message, places in (
        ("rank against rating", "pairs that are ranked one way and rated the other", by_rating),
        ("rank against itself", "copies of an image under different ranks of one comparison", by_copy),
    ):
        level: Literal["error", "warning"] = "error" if len(places) > MOST_CONTRADICTED * summary.num_untied_pairs else "warning"
        for place in places:
            findings.add(kind, level, message, place)
        if places and level == "error":
            findings.by_kind[kind].level = "error"  # another file may have made it a warning


def _check_leaks(files: list[FileSummary], splits: list[list[Record]], findings: _Findings) -> None:
    first_split: dict[str, int] = {}
    for number, rankings in enumerate(splits):
        for prompt, record in {normalized_prompt(r.comparison.prompt): r for r in rankings if r.comparison}.items():
            earlier = first_split.setdefault(prompt, number)
            if earlier != number:
                where = f"{prompt[:60]!r} is in {files[earlier].path} and {files[number].path} ({record.where})"
                findings.add(
                    "prompt in two splits", "error", "prompts in more than one split, so that test results would be too good", where
                )


# --- published sizes -------------------------------------------------------------------------------------------------------------------


def _check_published(summary: FileSummary, rankings: list[Record], findings: _Findings) -> None:
    """Compare a file that looks like a published split of ImageRewardDB, by form and name, with the published counts."""
    name = re.search(r"(train|valid|test).*\.(json|parquet)$", Address.parse(summary.path).name)
    if summary.source != "ImageRewardDB" or not name:
        return
    published: dict[str, object]
    counts = {"prompts": len(rankings), "images": summary.num_images}
    if name[1] == "test":
        counts |= {"untied pairs": summary.num_untied_pairs, "tied pairs": summary.num_tied_pairs}
        published = dict(_PUBLISHED_TEST)
    else:
        known = _PUBLISHED_TRAIN if name[1] == "train" else _PUBLISHED_VALIDATION
        nearest = min(known, key=lambda prompts: abs(prompts - len(rankings)))
        published = {"prompts": nearest, "images": known[nearest]}
    for what, expected in published.items():
        actual = f"{counts[what] / 1000:.1f}k" if isinstance(expected, str) else counts[what]
        if actual != expected:
            message = "counts other than those published for ImageRewardDB"
            findings.add("published counts", "warning", message, f"{summary.path}: {actual} {what}, published are {expected} ({name[1]})")
