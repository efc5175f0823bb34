from __future__ import annotations

import gc

import pytest

from image_reward import lazy
from image_reward.lazy import lazy_names


def test_a_name_is_imported_from_its_module_and_no_other_is_known() -> None:
    name = lazy_names("image_reward", {"types": ["Ranking"], "no_such_module": ["Missing"]})
    from image_reward.types import Ranking

    assert name("Ranking") is Ranking
    with pytest.raises(AttributeError, match="module 'image_reward' has no attribute 'Comparison'"):
        name("Comparison")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        name("Missing")


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_pauses_and_is_as_it_was(enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    was_enabled = []

    def imported(name: str) -> object:
        was_enabled.append(gc.isenabled())
        raise ImportError(name)

    monkeypatch.setattr(lazy, "import_module", imported)
    name = lazy_names("image_reward", {"types": ["Ranking"]})
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ImportError, match=r"image_reward\.types"):
            name("Ranking")
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
    assert was_enabled == [False]
