"""The errors of this package, by kind, so that callers can catch the kinds they can handle.

Every message names the offending thing and the remedy. A file that is not there is always a plain ``FileNotFoundError``.
"""

from __future__ import annotations


class ImageRewardError(Exception):
    """Base of every error that whoever uses the package can cause or mend, except ``FileNotFoundError`` and what the operating system says.

    A scorer raises one to refuse a row of a job, which becomes the row's error. A plain ``ValueError`` or ``TypeError`` is for whoever
    writes a program: arguments that no option, file or image could have led to. Where a job or a command meets one, it is a defect.
    """


class InputError(ImageRewardError, ValueError):
    """An argument, an option or a file makes no sense; the message names it and the remedy. Kinds of files have errors of their own."""


def is_defect(error: BaseException) -> bool:
    """Whether an error is a defect of this package or of an extension, and not of the input or the environment.

    The operating system's own errors (no permission, a full disk, a name that is too long) carry a number. Libraries also raise
    ``OSError`` without one, for what they cannot read: where a user's file can cause that, it is converted where the file is read.
    """
    refused_by_system = isinstance(error, OSError) and error.errno is not None
    return not (refused_by_system or isinstance(error, ImageRewardError | FileNotFoundError))


class AddressError(InputError):
    """An address cannot be read or written: an unknown scheme, no such bucket, no permission; the message names it and the remedy."""


class StoreError(AddressError):
    """An object store cannot be used from here at all: no credentials, or no answer. Every other address of it would fail the same way."""


class PackageError(StoreError):
    """The package that reads the addresses of a scheme is not installed; the message says how to install it."""


class FileKindError(ImageRewardError, OSError):
    """A path that should be a file is a folder, a named pipe, a socket or a device, which could block or never end."""


class FileSizeError(ImageRewardError, OSError):
    """A file is larger than any valid file of its kind, and would fill the memory."""


class RowsError(ImageRewardError, ValueError):
    """A file of rows cannot be read: it is damaged, of another kind, or a row of it makes no sense; the message names the place."""


class ImageReadError(ImageRewardError, ValueError):
    """An image exists but cannot be read as a picture: truncated, not an image, too large, NaN pixels, a wrong shape."""


class PromptError(ImageRewardError, ValueError):
    """A prompt is not text, or is longer than the model reads while ``long_prompts="error"``."""


class CheckpointError(ImageRewardError, ValueError):
    """A checkpoint is damaged or does not fit the network: a tensor is missing, extra, misshapen or not finite."""


class DownloadError(ImageRewardError, OSError):
    """A checkpoint is not on this machine and could not be fetched; the message says how to place it by hand."""


class ServiceError(ImageRewardError, OSError):
    """A service that scores elsewhere cannot be reached, refuses a request, or fails; the message says what it answered."""


class UnknownModelError(ImageRewardError, ValueError):
    """A name that is neither registered, nor a file, nor a folder, nor a hub id."""


class RewardError(ImageRewardError, ArithmeticError):
    """The network gave NaN or infinity. No score is returned rather than a wrong one."""


class AnswerError(RewardError):
    """The text that a judge generated does not have the requested format, so no reward can be read from it. The message quotes it."""


class LongPromptWarning(UserWarning):
    """A prompt had more tokens than the model reads, and its end was cut off."""


class ComparisonError(RowsError):
    """A file of human rankings is of no known form, or a row of it makes no sense; the message names the row."""


class ComparisonWarning(UserWarning):
    """Rows of a file of human rankings do not say which image is better, and were left out."""


class TrainingError(ImageRewardError, RuntimeError):
    """Training cannot go on: the loss is not a number, the rewards have become constant, or the state cannot be saved."""


class JobError(ImageRewardError, RuntimeError):
    """A job over a file of rows cannot begin or go on: wrong input, another job's folder, a full disk. What is scored is kept."""
