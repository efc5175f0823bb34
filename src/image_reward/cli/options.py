"""What commands have in common: the options of a model, lists of images, JSON for programs, and errors that are not tracebacks."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from image_reward.addresses import Address
from image_reward.errors import ImageReadError
from image_reward.image_files import no_such_image
from image_reward.terminal import note

if TYPE_CHECKING:
    from image_reward.images import ImageLike
    from image_reward.reports.document import Report
    from image_reward.scorers import Scorer
    from image_reward.scorers.distribution import RewardRow


DEFAULT_MODEL = "ImageReward-v1.0"
_MOST_DECODED = 1 << 29  # bytes of pixels that are kept from the check of images until they are scored; others are decoded twice
MODEL_HELP = (
    "A registered name (see `image-reward models list`), a file, what `image-reward export` wrote, a folder, a hub id OWNER/NAME, "
    "or the JSON file of an ensemble."
)


class UsageError(Exception):
    """The command line makes no sense; exit code 2."""


Config = Annotated[
    Path | None, tyro.conf.arg(help="The config.json of weights that come without one and do not have the sizes of the released models.")
]


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """How rewards are computed."""

    device: str | None = None
    """cpu, cuda, cuda:1, …; by default CUDA where available. auto spreads HPSv3, VQAScore and UnifiedReward over all GPUs."""
    dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None
    """Precision of the towers (int8: of the image tower); the head is float32. By default float32, and bfloat16 for HPSv3,
    VQAScore and UnifiedReward. `image-reward verify-precision` measures the effect."""
    compile: bool = False
    """Compile the image tower first, which takes a minute or more and pays off for many images."""
    batch_size: int | None = None
    """Images per batch; by default 8 on a CPU, 64 elsewhere (HPSv3, VQAScore, UnifiedReward: 8)."""
    exact: bool = False
    """Keep the order of operations of the original implementation, one image at a time, so that rounding is identical."""
    config: Config = None
    long_prompts: Literal["truncate", "error"] = "truncate"
    """How to treat a prompt that is longer than the model reads."""


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How image files are read."""

    orient: bool = False
    """Apply the EXIF orientation, which the original implementation does not."""
    allow_truncated: bool = False
    """Accept truncated image files."""
    max_pixels: int = 178_956_970
    """Refuse images with more pixels than this."""
    min_side: int = 2
    """Refuse images whose shorter side has fewer pixels than this."""

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise UsageError(f"--max-pixels must be at least 1, not {self.max_pixels}")
        if self.min_side < 0:
            raise UsageError(f"--min-side must be at least 0, not {self.min_side}")


@dataclass(kw_only=True)
class LoadingOptions:
    """How models are loaded, one or several."""

    model: str | tuple[str, ...] = ()
    inference: tyro.conf.OmitArgPrefixes[InferenceOptions] = field(default_factory=InferenceOptions)
    image: tyro.conf.OmitArgPrefixes[ReadingOptions] = field(default_factory=ReadingOptions)

    @property
    def loading(self) -> dict[str, Any]:
        """The options of ``image_reward.load``."""
        return asdict(self.inference) | asdict(self.image)

    def load_models(self, models: Sequence[str], taken: Sequence[str] = ()) -> list[Scorer[Any]]:
        """``taken``: names that none of them may have."""
        from image_reward.scorers import load_all

        print_notices(models)
        return load_all(models, taken=taken, **self.loading)


def print_notices(models: Iterable[str]) -> None:
    """What users of these models should know before they believe a reward."""
    from image_reward.scorers.registry import spec_of

    for model in models:
        if (spec := spec_of(model)) and spec.notice:
            note(spec.notice)


@dataclass(kw_only=True)
class ModelOptions(LoadingOptions):
    model: Annotated[str, tyro.conf.arg(help=MODEL_HELP)] = DEFAULT_MODEL

    def load(self) -> Scorer[Any]:
        return self.load_models([self.model])[0]


@dataclass(kw_only=True)
class SeveralModelOptions(LoadingOptions):
    """For commands that take several models: `--model A --model B`."""

    model: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(help=f"{MODEL_HELP} Repeat the option for several models. By default {DEFAULT_MODEL}."),
    ] = ()

    def check_models(self, others: Sequence[str] = ()) -> None:
        """Before anything is loaded: a table of results needs different names. ``others`` are names in it that are not models."""
        names = [*others, *self.model]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise UsageError(f"{twice[0]} occurs twice, and a table of results needs different names: leave one out, or rename it")

    def load_all(self, others: Sequence[str] = ()) -> list[Scorer[Any]]:
        """The models in the order of the command line, under names that differ from each other and from ``others``."""
        arguments = self.model or (DEFAULT_MODEL,)
        models = self.load_models(arguments, others)
        for a, b in combinations(range(len(models)), 2):
            if models[a] is models[b]:
                raise UsageError(f"{arguments[a]} and {arguments[b]} are the same model; name it once")
        return models


@dataclass(kw_only=True)
class OutputOptions:
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(kw_only=True)
class ReportOptions(OutputOptions):
    """For commands that make a report."""

    report: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Also write the report to this file: .html, .md or .json, here or in an object store. Repeat the option for several files."""
    plots: ClassVar[bool] = False
    """Whether its pages have plots, which need matplotlib."""

    def check_report(self) -> None:
        """Before hours of scoring, not after them."""
        for path in self.report:
            suffix = Address.parse(path).suffix.lower()
            if suffix not in (".html", ".md", ".json"):
                raise UsageError(f"--report {path}: a report is written as .html, .md or .json; give it a name that ends so")
            check_output("--report", path)
            if self.plots and suffix == ".html" and find_spec("matplotlib") is None:
                raise UsageError(f"--report {path}: its plots need matplotlib: pip install 'image-reward[report]'")

    def write_report(self, make: Callable[[bool], Report]) -> None:
        """Print the report or its JSON, and write its files. ``make`` takes whether to add pictures, which only pages have."""
        if self.report:
            from image_reward.reports.render import write
        for path in self.report:
            write(make(Address.parse(path).suffix.lower() == ".html"), path)
            note_written("report", path)
        report = make(False)
        if self.json:
            print_json(report.data)
        else:
            from image_reward.reports.printing import show

            show(report)


@dataclass(frozen=True, kw_only=True)
class IntervalOptions:
    """Confidence intervals, by bootstrapping prompts."""

    resamples: int = 10_000
    """Number of bootstrap samples."""
    confidence: float = 0.95
    """Confidence level of the intervals."""
    seed: int = 0
    """Seed of the resampling."""


@dataclass(kw_only=True)
class EstimateOptions(ReportOptions):
    """For commands whose results are estimates over prompts: intervals in tables, figures in pages."""

    interval: tyro.conf.OmitArgPrefixes[IntervalOptions] = field(default_factory=IntervalOptions)
    plots: ClassVar[bool] = True

    @property
    def resampling(self) -> dict[str, Any]:
        """The arguments of what estimates intervals."""
        return {"confidence": self.interval.confidence, "num_resamples": self.interval.resamples, "seed": self.interval.seed}

    def check_report(self) -> None:
        if self.interval.resamples < 1 or not 0 < self.interval.confidence < 1:
            raise UsageError("--resamples must be at least 1, and --confidence between 0 and 1")
        if self.interval.seed < 0:
            raise UsageError(f"--seed must be at least 0, not {self.interval.seed}")
        super().check_report()


def check_output(argument: str, place: str | Path) -> None:
    """Raise ``UsageError`` for a file that cannot be written where it is. ``argument``: as it is called on the command line.

    Raises ``AddressError`` for an object store that does not answer or has no such bucket.
    """
    address = Address.parse(place)
    if not address.is_local:
        address.parent.kind()
        return
    path = address.local
    if not path.parent.is_dir():
        raise UsageError(f"{argument} {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise UsageError(f"{argument} {path} is a folder; give the name of a file")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{argument} {path}: the folder {path.parent} cannot be written to")


def note_written(what: str, place: str) -> None:
    """Print to standard error where a file is that a command has written."""
    address = Address.parse(place)
    note(f"{what}: {address.local.resolve() if address.is_local else address}")


@dataclass(kw_only=True)
class GalleryOptions:
    gallery: str | None = None
    """Also write an HTML page of the images in order of reward, in one self-contained file."""

    def check_gallery(self) -> None:
        """Before images are scored, not after."""
        if self.gallery:
            if Address.parse(self.gallery).suffix.lower() not in (".html", ".htm"):
                raise UsageError(f"--gallery {self.gallery}: a gallery is a page; give it a name that ends in .html")
            check_output("--gallery", self.gallery)

    def write_gallery(self, rows: Sequence[RewardRow], prompt: str, scorer: Scorer[Any]) -> None:
        """Write the page if --gallery names one, and print its path to standard error."""
        if self.gallery:
            from image_reward.reports.gallery import write_gallery
            from image_reward.scorers.registry import spec_of

            notes = [spec.notice] if (spec := spec_of(scorer.name)) and spec.notice else []
            write_gallery(self.gallery, rows, prompt, scorer.name, notes)
            note_written("gallery", self.gallery)


Images = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="IMAGE...",
        help="Image files, folders of images, or globs, here or in an object store (s3://…); - reads paths from standard input, one per "
        "line.",
        help_behavior_hint="(at least one)",
    ),
]
Prompt = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT", help="The prompt that the images were made from.")]
PromptSet = Annotated[
    str | None,
    tyro.conf.arg(
        help="A published set (see `image-reward prompts list`), or a file: text with one prompt per line, or JSON, JSONL, CSV, TSV or "
        "Parquet with a column `prompt` and perhaps `id`."
    ),
]
ImageRoot = Annotated[str | None, tyro.conf.arg(help="Folder that image paths are relative to; by default that of the file.")]


@dataclass(kw_only=True)
class SkipOptions(LoadingOptions):
    """For commands that take any number of images."""

    skip_unreadable: bool = False
    """Leave out the images that cannot be read, and name them; the exit code is then 1."""

    def readable(self, images: Sequence[str]) -> tuple[list[str], list[ImageLike], dict[str, str]]:
        """The images that can be read, what to score for each, and what is wrong with each of the others, named on standard error.

        All are decoded before a model is loaded, and once, as far as memory should hold them.

        Raises ``ImageReadError`` that names every unreadable image, without --skip-unreadable or where no other image is left.
        """
        different = dict.fromkeys(images)
        problems = {image: "" if Address.parse(image).exists() else str(no_such_image(image)) for image in different}
        decoded: dict[str, ImageLike] = {}
        if not all(problems.values()):
            from image_reward.images import ImageOptions, open_image  # loads PyTorch

            options, room = ImageOptions(**asdict(self.image)), _MOST_DECODED
            for image in (image for image, problem in problems.items() if not problem):
                with warnings.catch_warnings():
                    if room <= 0:
                        warnings.simplefilter("ignore")  # comes again when it is scored
                    try:
                        picture = open_image(image, options)
                    except (ImageReadError, FileNotFoundError) as error:
                        problems[image] = in_options(str(error))
                        continue
                if room > 0:
                    decoded[image] = picture = picture.copy()
                    picture.info = {}  # it is upright already, and its EXIF block would turn it once more
                    picture.filename = image  # type: ignore[attr-defined] # by which messages name it
                    room -= picture.width * picture.height * len(picture.getbands())
        broken = {image: problem for image, problem in problems.items() if problem}
        kept = [image for image in images if image not in broken]
        if broken and not (self.skip_unreadable and kept):
            remedy = "; --skip-unreadable leaves out what cannot be read" if kept else ""
            count = f"{len(broken):,} of {len(different):,} images cannot be read: " if len(broken) > 1 else ""
            raise ImageReadError(count + "; ".join(broken.values()) + remedy)
        for message in broken.values():
            note("left out: " + message.replace("\n", "\\n"))  # a name may hold a line end
        return kept, [decoded.get(image, image) for image in kept], broken


def print_rewards(scorer: Scorer[Any], prompt: str, rows: Sequence[RewardRow], unreadable: dict[str, str]) -> None:
    """Print the JSON of `rank` and `score`. ``unreadable``: images that were left out, and what is wrong with each."""
    skipped = {"skipped": [{"image": image, "error": error} for image, error in unreadable.items()]} if unreadable else {}
    print_json({"model": scorer.name, "prompt": prompt, "images": [row.as_dict() for row in rows]} | skipped)


@dataclass(kw_only=True)
class PromptOptions:
    """For commands that take the text of a prompt."""

    prompt_is_text: bool = False
    """Accept a prompt that is empty, or that is or looks like the name of a file."""

    def check_used(self, has_prompts: bool, option: str) -> None:
        """Raise ``UsageError`` for --prompt-is-text where the command line has no prompts; ``option``: what would bring some."""
        if self.prompt_is_text and not has_prompts:
            raise UsageError(f"--prompt-is-text is about the text of {option}, which is not used: leave it out")

    def check_prompt(self, prompt: str, instead: str) -> None:
        """Raise ``UsageError`` for an empty prompt and for one that names a file; ``instead`` says where files go."""
        if self.prompt_is_text:
            return
        if not prompt.strip():
            raise UsageError("the prompt is empty; is a variable of the shell unset? To score an empty prompt, add --prompt-is-text")
        if what := _names_file(prompt):
            raise UsageError(f"{prompt:.200} {what}, not a prompt. {instead} To score it as text, add --prompt-is-text")


PROMPT_FIRST = (
    "Give the prompt first, then the images; files of rows, each with a prompt and an image, are scored by `image-reward score-files`."
)
"""What to do instead of giving a file for a prompt, for commands that take PROMPT IMAGE..."""

_FILE_SUFFIXES = {".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".tar", ".txt", ".xlsx", ".gz", ".zip", ".html"}


def _names_file(prompt: str) -> str:
    """How a prompt names a file or a folder, which need not exist; empty where it does not."""
    from image_reward.image_files import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES

    if os.path.isdir(prompt):  # noqa: PTH112 - unlike Path.is_dir, False for what cannot be a path
        return "is a folder"
    if os.path.exists(prompt):  # noqa: PTH110
        return "is a file"
    if any(space in prompt for space in " \n\t"):
        return ""
    if "://" in prompt:
        return "is an address"
    suffix = PurePath(prompt).suffix.lower()
    return "is the name of a file" if suffix in IMAGE_SUFFIXES | UNREADABLE_SUFFIXES | _FILE_SUFFIXES else ""


def find_images(arguments: Iterable[str]) -> list[str]:
    """Files as they are, folders as the images in them (sorted; not those in folders within), globs as the files they match, - as what
    standard input names. What a folder holds besides, such as HEIC pictures, is named on standard error.

    Files that are named need not exist. Raises ``UsageError`` where there are no images.
    """
    from image_reward.image_files import list_images

    images: list[str] = []
    for argument in arguments:
        if argument == "-":
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(errors="surrogateescape")  # the name of a file need not be UTF-8
            images += find_images(line for line in sys.stdin.read().splitlines() if line.strip())
        elif (address := Address.parse(argument)).kind() == "folder":
            listing = list_images(address)
            passed_over = listing.note()
            if not listing.names:
                raise UsageError(f"the folder {argument} has no images in it" + (f"; {passed_over}" if passed_over else ""))
            if passed_over:
                note(f"{argument}: {passed_over}")
            images += [str(address.join(name)) for name in listing.names]
        elif address.is_glob and not address.kind():
            matches = address.matches()
            if not matches:
                raise UsageError(f"nothing matches {argument}")
            images += map(str, matches)
        else:
            images.append(argument)
    if not images:
        raise UsageError("there are no images to score: name files, folders or globs")
    return images


def check_images(images: Iterable[str]) -> None:
    """Raise ``FileNotFoundError`` for the first that is not there: before a model is loaded, or downloaded, in vain."""
    for image in images:
        if not Address.parse(image).exists():
            raise no_such_image(image)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))  # ASCII: valid in whatever encoding standard output has


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """A warning is one line on standard error that names the image it is about, without the source code around it."""
    from image_reward.image_files import being_read

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        image = being_read.get()
        note(f"warning: {image}: {message}" if image else f"warning: {message}")

    with warnings.catch_warnings():  # for the whole program, before any thread of it
        warnings.filterwarnings("always", module=r"PIL\.", append=True)  # each file that has the fault, not the first alone
        warnings.showwarning = show
        yield


def in_options(message: str) -> str:
    """A message with the names of options as the command line spells them.

    >>> in_options('pass allow_truncated=True; allow this with long_prompts="truncate"; see max_pixels/a.png')
    'pass --allow-truncated; allow this with --long-prompts truncate; see max_pixels/a.png'
    """
    names = "|".join(option.name for kind in (InferenceOptions, ReadingOptions) for option in fields(kind) if "_" in option.name)

    def spelled(match: re.Match[str]) -> str:
        option, value = f"--{match['name'].replace('_', '-')}", match["value"]
        return option if value in (None, "True") else f"{option} {value.strip(chr(34))}"

    return re.sub(rf"(?<![\w./\\-])(?P<name>{names})(?:=(?P<value>True|\"\w+\")|(?![\w./\\=-]))", spelled, message)
