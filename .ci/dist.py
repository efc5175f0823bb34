"""Build the sdist and the wheel in dist/ from the last commit, and check them as a user of a package index would meet them.

Both are built from a copy in which the README's links are absolute, since an index shows it away from the repository. The wheel, whose
contents are compared with the repository, is installed in an empty environment and ranks images there with the embedded model.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROMPT = "a large green square above a yellow triangle on a blue background"
FAULTLESS = {"faultless-1.png", "faultless-2.png"}
FILE_LINK = re.compile(r"(!?)\]\((?!\w+:|#)([^)\s]+)\)")


def absolute_links(readme: str, repository: str) -> str:
    """The README with links to files of the repository as addresses."""
    return FILE_LINK.sub(lambda link: f"{link[1]}]({repository}/blob/main/{link[2]})", readme)


def repository_address() -> str | None:
    """The web address of the remote ``origin``, if it has one."""
    git = subprocess.run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True, check=False)
    match = re.fullmatch(r"(?:https://|git@)([\w.-]+)[/:]([\w./-]+?)(?:\.git)?", git.stdout.strip())
    return f"https://{match[1]}/{match[2]}" if match else None


def copy_of_last_commit(folder: Path, repository: str | None) -> None:
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    packed = folder / "source.tar"
    packed.write_bytes(archive)
    with tarfile.open(packed) as tar:
        tar.extractall(folder / "source", filter="data")
    if repository is None:
        print("dist: no web address of the repository is known (--repository): links of the README stay relative, for this machine only")
        return
    readme, project = folder / "source/README.md", folder / "source/pyproject.toml"
    readme.write_text(absolute_links(readme.read_text(), repository))
    urls = (
        f'Repository = "{repository}"\nDocumentation = "{repository}/tree/main/docs"\n'
        f'Changelog = "{repository}/blob/main/CHANGELOG.md"\nIssues = "{repository}/issues"\n'
    )
    project.write_text(project.read_text().replace("[project.urls]\n", f"[project.urls]\n{urls}"))


def check_contents(wheel: Path) -> None:
    """Every module, type marker and asset of the repository is in the wheel, and nothing else but metadata."""
    listed = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    expected = {name.removeprefix("src/") for name in listed if name}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packed = {name for name in names if ".dist-info/" not in name}
    if packed != expected:
        sys.exit(f"dist: {wheel.name} lacks {sorted(expected - packed)} and has besides {sorted(packed - expected)}")
    for needed in ("licenses/LICENSE", "licenses/NOTICE", "entry_points.txt"):
        if not any(name.endswith(f".dist-info/{needed}") for name in names):
            sys.exit(f"dist: {wheel.name} has no {needed}")


def check_installed(wheel: Path, folder: Path) -> None:
    """In an empty environment, away from the repository, the command ranks the faultless images first."""
    venv.create(folder / "venv", with_pip=True)
    binaries = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, str(wheel)], check=True)
    command = [str(binaries / "image-reward"), "rank", PROMPT, str(ROOT / "examples/shapes"), "--model", "ImageReward-mini", "--json"]
    ranked = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ""}).stdout
    best = {Path(image["image"]).name for image in json.loads(ranked)["images"][:2]}
    if best != FAULTLESS:
        sys.exit(f"dist: the installed wheel ranks {sorted(best)} first, not {sorted(FAULTLESS)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build and check what is uploaded to a package index.")
    parser.add_argument("--repository", default=repository_address(), help="web address of the repository; by default that of `origin`")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_of_last_commit(folder, arguments.repository and arguments.repository.rstrip("/"))
        built = folder / "built"
        build = [sys.executable, "-m", "build", "--outdir", str(built), str(folder / "source")]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        files = sorted(built.iterdir())
        subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)], check=True)
        (wheel,) = built.glob("*.whl")
        check_contents(wheel)
        check_installed(wheel, folder)
        arguments.output.mkdir(exist_ok=True)
        for path in files:
            (arguments.output / path.name).write_bytes(path.read_bytes())
            print(f"{arguments.output.name}/{path.name}  {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
