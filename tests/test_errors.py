from __future__ import annotations

import inspect
import pickle

import pytest

from image_reward import errors

FAMILY = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.ImageRewardError)]
WARNINGS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Warning)]


@pytest.mark.parametrize("kind", [kind for kind in FAMILY if kind is not errors.ImageRewardError])
def test_every_error_is_also_the_builtin_that_a_caller_without_this_package_would_catch(kind: type[Exception]) -> None:
    assert issubclass(kind, ValueError | OSError | ArithmeticError | RuntimeError)


@pytest.mark.parametrize("kind", FAMILY)
def test_errors_come_whole_out_of_another_process(kind: type[Exception]) -> None:
    error = pickle.loads(pickle.dumps(kind("cat.png is empty")))
    assert (type(error), str(error)) == (kind, "cat.png is empty")


def test_a_missing_file_is_no_error_of_the_family() -> None:
    assert not any(issubclass(kind, FileNotFoundError) for kind in FAMILY)


def test_warnings_are_of_the_kind_that_is_shown_by_default() -> None:
    assert WARNINGS
    assert all(issubclass(kind, UserWarning) for kind in WARNINGS)
