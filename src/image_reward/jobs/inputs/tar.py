"""WebDataset: rows as files in a tar. A shard is read by seeking to the byte where it begins."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import IO, Any

from image_reward.errors import JobError
from image_reward.files import distinct_keys
from image_reward.image_files import IMAGE_SUFFIXES
from image_reward.jobs.arrow import arrow, clean, is_clean, text_table
from image_reward.jobs.files import LARGEST_TEXT, Access, Member
from image_reward.jobs.rows import Input, Rows, Shard, cut_records
from image_reward.rows import other_kind

_PROMPT_KEYS = ("prompt", "caption", "text")  # in the .json of a sample, which has no columns to choose from


class _BoundedReads:
    """A tar whose headers cannot fill the memory: tarfile reads long names and comments whole, whatever size they state."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > LARGEST_TEXT:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)


class TarInput(Input):
    """WebDataset: files that follow each other with the same name up to the first dot of their last part are a sample.

    A sample has one file of each extension; where one occurs again, the next sample begins.
    """

    kind = "WebDataset"

    def _samples(self, stream: IO[bytes], file: str, start: int = 0) -> Iterator[tuple[int, int, str, dict[str, tarfile.TarInfo]]]:
        """First byte, byte after the last, key, and members by extension. Raises ``JobError`` where the tar is damaged."""
        stream.seek(start)
        place = start
        try:
            with tarfile.open(fileobj=_BoundedReads(stream), mode="r:") as archive:  # type: ignore[call-overload]
                key, members, first = None, dict[str, tarfile.TarInfo](), start
                empty = archive.firstmember is None  # of which Python 3.10 cannot read the next
                while not empty and (member := archive.next()):
                    archive.members = []  # a list of every member of a large tar would fill the memory
                    if member.size < 0:
                        raise tarfile.ReadError("a member of negative size")
                    place = archive.offset
                    path = PurePosixPath(member.name)
                    stem, _, extension = path.name.partition(".")
                    extension = extension.lower()
                    if member.isdir() or not stem:  # hidden files, such as the ._NAME that macOS leaves
                        continue
                    this = str(path.with_name(stem))
                    if key is not None and (this != key or extension in members):
                        yield first, member.offset, key, members
                        members, first = {}, member.offset
                    key = this
                    members[extension] = member
                self._check_end(stream, file, archive.offset)
                if key is not None:
                    yield first, archive.offset, key, members
        except (tarfile.TarError, ValueError, OverflowError, RecursionError, OSError) as error:
            stream.seek(0)
            if problem := other_kind(stream.read(64)):
                raise JobError(f"{file} {problem}") from None
            raise JobError(f"{file} is not a whole, uncompressed tar: {error}, at byte {place:,}; write or download it again") from None

    def _check_end(self, stream: IO[bytes], file: str, end: int) -> None:
        """Note, or raise ``tarfile.ReadError``, where a tar does not end as it should: tarfile stops without a word at any damage."""
        stream.seek(end)
        block = stream.read(tarfile.BLOCKSIZE)
        if block.strip(b"\0"):
            raise tarfile.ReadError("what stands there is not a member")
        note = ""
        if not block:
            note = f"{file} has no mark at its end: it may have been cut there, and rows may be missing"
        elif stream.read(LARGEST_TEXT).strip(b"\0"):
            note = f"{file} goes on after the mark of its end, and what follows is not read; if tars were joined, give them one by one"
        if note and note not in self.notes:
            self.notes.append(note)

    def _pieces(self, file: str) -> Iterator[tuple[int, int, int, int]]:
        pa = arrow()
        self.schema = pa.schema(
            [(name, pa.string()) for name in ("id", "image", *(() if self.prompt is not None else (self.prompt_column,)))]
        )
        with self.access.open(file) as stream:

            def records() -> Iterator[tuple[int, int]]:
                for start, stop, key, _ in self._samples(stream, file):
                    self._ids.add(key)
                    yield start, stop

            yield from cut_records(records(), self._size)

    @property
    def image_column(self) -> str:
        return "image"

    @property
    def id_column(self) -> str:
        return "id"

    def _read(self, shard: Shard) -> Rows:
        keys: list[str] = []
        prompts: list[str | None] = []
        images: list[Any] = []
        named: list[str | None] = []
        problems: list[str | None] = []
        name = self._name(shard.file)
        with self.access.open(shard.file) as stream:
            for _, stop, key, members in self._samples(stream, shard.file, shard.start):
                place = stream.tell()
                prompt, problem = self._prompt(stream, members)
                stream.seek(place)
                pictures = [member for extension, member in members.items() if f".{extension.rpartition('.')[2]}" in IMAGE_SUFFIXES]
                if len(pictures) != 1:
                    problem = f"the sample {key} has {len(pictures)} images; it must have one (its files: {', '.join(sorted(members))})"
                picture = pictures[0] if pictures else None
                keys.append(key)
                prompts.append(prompt)
                images.append(picture and Member(shard.file, picture.offset_data, picture.size))
                named.append(f"{name}#{self._member_name(picture)}" if picture else None)
                problems.append((picture and _not_plain(picture)) or problem)
                if stop >= shard.stop:
                    break
        texts = {} if self.prompt is not None else {self.prompt_column: prompts}
        table = text_table({"id": keys, "image": named, **texts})
        return self._rows(table, shard, problems, images)

    def _member_name(self, member: tarfile.TarInfo) -> str:
        """Where keys repeat, names do not tell members apart: their place does."""
        return f"{member.name}@{member.offset_data}" if self.num_repeated_ids else member.name

    def _prompt(self, stream: IO[bytes], members: Mapping[str, tarfile.TarInfo]) -> tuple[str | None, str | None]:
        if self.prompt is not None:
            return None, None
        try:
            if self.names.prompt is None and "txt" in members:
                return _content(stream, members["txt"]).strip(), None
            if "json" in members:
                values = json.loads(_content(stream, members["json"]), object_pairs_hook=distinct_keys)
                if not isinstance(values, dict):
                    return None, f"the sample's json is not an object but {values!r:.40}"
                keys = [self.names.prompt] if self.names.prompt else [key for key in _PROMPT_KEYS if key in values]
                if not keys or keys[0] not in values:
                    found = ", ".join(map(str, values))
                    return None, f"the sample's json has no {self.names.prompt or ' or '.join(_PROMPT_KEYS)}; it has {found:.200}"
                prompt = values[keys[0]]
                if isinstance(prompt, str) and not is_clean(prompt):
                    return prompt, "the prompt in the sample's json holds half of a character (a lone surrogate)"
                if isinstance(prompt, str) or prompt is None:
                    return prompt, None
                return None, f"the prompt in the sample's json is not text but {prompt!r:.40}"
        except (ValueError, RecursionError, MemoryError) as error:
            return None, f"the sample's text cannot be read: {error or type(error).__name__}"
        return None, "the sample has neither a .txt nor a .json with its prompt"


def _content(stream: IO[bytes], member: tarfile.TarInfo) -> str:
    """The text of a member. Raises ``ValueError`` where it cannot be read."""
    if problem := _not_plain(member):
        raise ValueError(problem)
    if member.size > LARGEST_TEXT:
        raise ValueError(f"{member.name} has {member.size:,} bytes; at most {LARGEST_TEXT:,} are read")
    stream.seek(member.offset_data)
    return stream.read(member.size).decode("utf-8-sig")


def _not_plain(member: tarfile.TarInfo) -> str | None:
    """What is wrong with a member whose bytes do not stand in the tar one after another."""
    if member.issparse():
        return f"{member.name} is sparse; make the tar again without --sparse"
    if not member.isreg():
        return f"{member.name} is a link or a device; make the tar again with --dereference --hard-dereference"
    return None


def image_in_tar(path: str, name: str, access: Access) -> bytes:
    """The member that the image column of a result names. Raises ``FileNotFoundError``, or ``JobError`` for a damaged tar."""
    try:
        with access.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if name in (clean(member.name), clean(f"{member.name}@{member.offset_data}")):
                    return access.read(Member(path, member.offset_data, member.size))
    except tarfile.TarError as error:
        raise JobError(f"{path} is not a whole, uncompressed tar: {error}") from None
    raise FileNotFoundError(f"{path} has no member {name}")
