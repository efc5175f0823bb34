"""`image-reward models list|path|download|verify|convert|info`"""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro

from image_reward.addresses import Address
from image_reward.cli.options import Config, OutputOptions, UsageError, print_json
from image_reward.terminal import note

if TYPE_CHECKING:
    from image_reward.evaluation.published_results import PublishedExample
    from image_reward.scorers import ModelSpec, Scorer

Model = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL", help="A registered name, a file, a folder or a hub id OWNER/NAME.")
]


Registered = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help="A registered name (see `image-reward models list`).")]


@dataclass
class List(OutputOptions):
    """List the registered models, and whether they are on this machine."""

    def run(self) -> int:
        from image_reward.scorers.registry import specs

        rows = [
            {
                "name": name,
                "description": spec.description,
                "range": spec.range,
                "licence": spec.licence,
                "bytes": spec.size,
                "least_bytes": spec.least_size,
                "paths": None if (paths := spec.local_paths()) is None else [str(path) for path in paths.values()],
            }
            for name, spec in specs().items()
        ]
        if self.json:
            print_json(rows)
            return 0

        from image_reward.cli.tables import models_table
        from image_reward.reports.tables import show

        show(models_table(rows))
        return 0


@dataclass
class Where:
    """Print the paths of a model's files on this machine, one per line; the exit code is 1 if one is missing."""

    model: Registered

    def run(self) -> int:
        from image_reward.scorers.registry import spec_of, specs

        spec = spec_of(self.model)
        if spec is None:
            raise UsageError(f"{self.model} is not a registered name; those are: {', '.join(specs())}")
        paths = spec.local_paths()
        if paths is None:
            note(f"{self.model} is not on this machine; get it with `image-reward models download {self.model}`")
            return 1
        print(*paths.values(), sep="\n")
        return 0


@dataclass
class Download:
    """Download and verify a model, resuming an interrupted download, and print the paths of its files, one per line."""

    model: Model

    def run(self) -> int:
        from image_reward.scorers.loading import find

        print(*find(self.model).paths.values(), sep="\n")
        return 0


@dataclass
class Verify:
    """Load a model strictly: names, shapes and finite values of its tensors, and size and sha256 where these are published."""

    model: Model
    config: Config = None
    published: Path | None = None
    """A folder with the images of the example in the model's documentation: their rewards are compared with those published."""

    def run(self) -> int:
        from image_reward.scorers import load

        example = self._example() if self.published else None  # before the model is loaded
        scorer = load(self.model, "cpu", config=self.config)
        parameters = sum(p.numel() for p in scorer.parameters())
        print(f"{self.model} is valid: " + (f"{parameters:,} parameters, all finite" if parameters else "it computes finite rewards"))
        return self._compare(scorer, example) if example else 0

    def _example(self) -> PublishedExample:
        """Raises ``UsageError`` where nothing is published for the model, or ``published`` lacks an image."""
        from image_reward.evaluation.published_results import EXAMPLES

        example = EXAMPLES.get(self.model)
        if example is None:
            raise UsageError(f"no rewards are published for {self.model}; --published is for {', '.join(EXAMPLES)}")
        if missing := [name for name in example.rewards if not self._image(name).is_file()]:
            raise UsageError(f"{self.published} lacks {', '.join(missing)}; they are at {example.source}")
        return example

    def _image(self, name: str) -> Path:
        assert self.published is not None
        return self.published / name

    def _compare(self, scorer: Scorer[Any], example: PublishedExample) -> int:
        import platform

        import torch

        from image_reward import __version__

        rewards = scorer.score(example.prompt, [str(self._image(name)) for name in example.rewards])
        largest = 0.0
        for (name, published), reward in zip(example.rewards.items(), rewards, strict=True):
            largest = max(largest, abs(reward - published))
            print(f"{name}: {reward:+.4f}, published {published:+.4f}, difference {abs(reward - published):.1e}")
        if largest <= example.tolerance:
            print(f"the rewards are the published ones, to {example.tolerance:g}")
            return 0
        note(
            f"the rewards are not the published ones, to {example.tolerance:g}: compare the images with those at {example.source}. "
            f"Processor {platform.processor() or platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), "
            f"PyTorch {torch.__version__}, Python {platform.python_version()}, image-reward {__version__}"
        )
        return 1


@dataclass
class Convert:
    """Convert a model to the format of this package: safetensors, and a JSON config with everything that a score depends on."""

    model: Model
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT", help="The folder to write to.")]
    config: Config = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the weights of the towers."""

    def run(self) -> int:
        from image_reward.files import remove_unfinished
        from image_reward.scorers import load

        Address.parse(self.output)  # refuses what a Path makes of an address
        remove_unfinished(self.output)
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise UsageError(f"{self.output} already exists and is not an empty folder")
        load(self.model, "cpu", self.dtype, config=self.config).save_pretrained(self.output)
        print(self.output)
        return 0


@dataclass
class Info(OutputOptions):
    """Describe a model: the meaning and range of its score, its sizes, image transform, token limit and reward scale, and how its linear
    layers are computed on this processor (see docs/performance.md)."""

    model: Model
    config: Config = None

    def run(self) -> int:
        from image_reward.scorers.registry import spec_of

        spec = spec_of(self.model)
        facts = self._facts_of_spec(spec) if spec and spec.local_paths() is None else self._facts()
        if spec:
            facts |= {"score": spec.description, "range": spec.range, "licence": spec.licence}
        if self.json:
            print_json(facts)
            return 0

        from image_reward.cli.tables import facts_table
        from image_reward.reports.tables import show

        show(facts_table(facts))
        return 0

    def _facts_of_spec(self, spec: ModelSpec) -> dict[str, Any]:
        """What is known before a download."""
        get = f"`image-reward models download {self.model}` gets it"
        note(f"{self.model} is not on this machine, so the sizes of its network are not shown; {get}")
        files = {part: f"{file.name} of {file.source}" for part, file in spec.files.items()}
        sizes = {"bytes": spec.size, "least_bytes": spec.least_size}
        return {"name": self.model} | {key: size for key, size in sizes.items() if size is not None} | {"files": files}

    def _facts(self) -> dict[str, Any]:
        from image_reward.models.linear import linear_ways
        from image_reward.scorers import load

        scorer = load(self.model, "cpu", config=self.config)
        facts: dict[str, Any] = {"name": scorer.name}
        if parameters := sum(p.numel() for p in scorer.parameters()):  # an ONNX file does not say
            facts["parameters"] = parameters
        config = getattr(scorer, "config", None)
        if is_dataclass(config) and not isinstance(config, type):
            facts |= asdict(config)
        elif is_dataclass(transform := getattr(scorer.prepare, "transform", None)) and not isinstance(transform, type):
            facts["image"] = asdict(transform)
        if ways := linear_ways(scorer):
            facts["linear_layers"] = ways
        return facts


@dataclass
class Models:
    """List, download, verify, convert and describe models."""

    command: tyro.conf.OmitArgPrefixes[
        Union[
            Annotated[List, tyro.conf.subcommand("list")],
            Annotated[Where, tyro.conf.subcommand("path")],
            Annotated[Download, tyro.conf.subcommand("download")],
            Annotated[Verify, tyro.conf.subcommand("verify")],
            Annotated[Convert, tyro.conf.subcommand("convert")],
            Annotated[Info, tyro.conf.subcommand("info")],
        ]
    ]

    def run(self) -> int:
        return self.command.run()
