"""What the whole suite shares: no network, no traces outside pytest's folder, tiny tokenizers, the reference data."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # here, because huggingface_hub reads it once, when it is first imported
os.environ["DS_ACCELERATOR"] = "cpu"  # so does DeepSpeed, which without a GPU would say so on stdout
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job, whose children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def caches_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Datasets and tiny models go to a folder of this session, in this process and in those it starts."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECIPE_KIT_CACHE", str(folder / "recipe-kit"))
        patch.setenv("HF_DATASETS_CACHE", str(folder / "datasets"))
        if "datasets" in sys.modules:  # imported while tests were collected, and the variable read then
            patch.setattr("datasets.config.HF_DATASETS_CACHE", str(folder / "datasets"))
        yield folder


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with real tokenizers and rows, which are no part of the repository."""
    folder = os.environ.get("RECIPE_KIT_REFERENCE")
    if not folder:
        pytest.skip("RECIPE_KIT_REFERENCE names no folder with tokenizers/ and data/ in it")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_tokenizer(caches_of_this_session: Path) -> Callable[..., Any]:
    """Makes the tokenizer of a `tiny:` model, ready to train with, under its own chat template or under `template`."""
    from recipe_kit.modeling import load_tokenizer
    from recipe_kit.recipe import ModelSection

    def make(style: str, template: str | None = None) -> Any:
        return load_tokenizer(ModelSection(id=f"tiny:{style}", chat_template=template))

    return make


@pytest.fixture(scope="session", autouse=True)
def threads_are_counted() -> None:
    """Several pytest workers with all threads each would wait for one another's threads most of the time."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        import torch

        torch.set_num_threads(1)
    # Else torchrun warns among what its processes say (torch 2.11, 2.13).
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
