"""Names of what ships, and the sentences for names that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipe_kit import catalog
from recipe_kit.errors import DataError, LaunchError, RecipeError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout: the package in src/, recipes and topologies at the top."""
    package = tmp_path / "src" / "recipe_kit"
    for name in ("recipes/samsum.yaml", "recipes/guanaco.yaml", "recipes/notes.md",
                 "accelerate_configs/single_gpu.yaml",
                 "src/recipe_kit/samples/chats.train.jsonl", "src/recipe_kit/samples/chats.test.jsonl"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(catalog, "_PACKAGE", package)
    return package


def test_a_checkout_has_them_at_the_top(package: Path) -> None:
    top = package.parents[1]
    assert catalog.recipe_names() == ["guanaco", "samsum"]
    assert catalog.recipe_path("samsum") == top / "recipes/samsum.yaml"
    assert catalog.accelerate_config_names() == ["single_gpu"]
    assert catalog.accelerate_config_path("single_gpu") == top / "accelerate_configs/single_gpu.yaml"


def test_a_wheel_has_them_inside(package: Path) -> None:
    (package / "recipes").mkdir()
    (package / "recipes/inside.yaml").touch()
    assert catalog.recipe_names() == ["inside"]
    assert catalog.recipe_path("inside") == package / "recipes/inside.yaml"


def test_samples_go_by_name_and_split(package: Path) -> None:
    assert catalog.sample_names() == ["chats"]
    assert catalog.sample_splits("chats") == ["test", "train"]
    assert catalog.sample_path("chats", "test") == package / "samples/chats.test.jsonl"


def test_an_accelerate_config_can_be_a_file(package: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.touch()
    assert catalog.accelerate_config_path(str(path)) == path


def test_unknown_names_get_the_nearest_and_the_list(package: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"no shipped recipe named 'samsun'; did you mean samsum\? There are: guanaco, sa"
    ):
        catalog.recipe_path("samsun")
    with pytest.raises(LaunchError, match=r"no accelerate config named 'singlegpu'; did you mean single_gpu?"):
        catalog.accelerate_config_path("singlegpu")
    with pytest.raises(LaunchError, match=r"no accelerate config at no/such.yaml; give a file, or one of single_gpu"):
        catalog.accelerate_config_path("no/such.yaml")
    with pytest.raises(DataError, match=r"no shipped sample named 'chat'; did you mean chats?"):
        catalog.sample_path("chat", "train")
    with pytest.raises(DataError, match="no split of the sample chats named 'dev'; There are: test, train"):
        catalog.sample_path("chats", "dev")
