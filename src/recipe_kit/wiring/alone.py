"""A place to build trainers in without leaving a trace."""

from __future__ import annotations

import logging
import os
import random
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState, PartialState

# What tells a process that it is one of several, or which plugins to train with.
_LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_LAUNCH_PREFIXES = ("ACCELERATE_", "FSDP_", "PMI_", "OMPI_COMM_", "MV2_COMM_", "MPI_LOCAL")
_SINGLETONS = (PartialState, AcceleratorState, GradientState)


@contextmanager
def alone() -> Iterator[Path]:
    """A temporary folder, in a process that seems to be the only one and is put back as it was.

    Trainers make accelerate's singletons anew, seed every generator, set log levels and write to their folder. With
    several processes they would also wait for one another.
    """
    with ExitStack() as undone:
        folder = undone.enter_context(tempfile.TemporaryDirectory())
        for part in (_single_process, _fixed_randomness, _silence):
            undone.enter_context(part())
        yield Path(folder)


@contextmanager
def _single_process() -> Iterator[None]:
    environment = dict(os.environ)
    states = [dict(singleton._shared_state) for singleton in _SINGLETONS]
    for name in environment:
        if name in _LAUNCH_VARIABLES or name.startswith(_LAUNCH_PREFIXES):
            del os.environ[name]
    os.environ |= {"CI": "1", "DISABLE_KUBEFLOW_INTEGRATION": "TRUE"}  # no telemetry, no reports of progress
    for singleton in _SINGLETONS:
        singleton._shared_state.clear()
    try:
        yield
    finally:
        for singleton, state in zip(_SINGLETONS, states, strict=True):
            singleton._shared_state.clear()
            singleton._shared_state.update(state)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ |= environment


@contextmanager
def _fixed_randomness() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    initialised = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if initialised else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _silence() -> Iterator[None]:
    verbosity, disabled = transformers.logging.get_verbosity(), logging.root.manager.disable
    bars = not datasets.are_progress_bars_disabled()
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        logging.disable(disabled)
        if bars:
            datasets.enable_progress_bars()
