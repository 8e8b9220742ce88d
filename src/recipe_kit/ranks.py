"""One of several processes that fails: its own error is said, once, and the others end quickly without one of theirs.

The processes find each other through the store they met at (torch's TCPStore, held by the launcher): who failed is
written there, and a sentence that all of them would say is said by the one who comes first.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import traceback
from contextlib import suppress
from datetime import timedelta
from typing import Any, Literal, NoReturn

from recipe_kit import signals
from recipe_kit.errors import RecipeKitError
from recipe_kit.signals import PeerEnded

FIRST_SPEAKS_SECONDS = 2.0  # that another process leaves to the first, which says a sentence without its number
NEWS_SECONDS = 5.0  # that a process whose peers do not answer waits to hear which of them failed
_FAILED = "recipe-kit/failed"
_WAITING = "recipe-kit/waiting"
# How another process that is gone, or does not answer, is told of: gloo's words as seen, NCCL's not seen yet.
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "NCCL error")
_SILENT = ("Timed out waiting", "Watchdog caught collective operation timeout", "timed out after")


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def fail(error: BaseException) -> NoReturn:
    """End this process, one of several, with exit code 1: its error is said, unless another's is the cause."""
    if (listener := signals.listener()) is not None:
        listener.waits = listener.quiet = True
    with suppress(PeerEnded, KeyboardInterrupt):  # the launcher ends this one, since another has failed before
        _say(error)
    leave(1)


def _say(error: BaseException) -> None:
    text = f"recipe-kit: {error}" if isinstance(error, RecipeKitError) else traceback.format_exc()
    store = _store()
    if isinstance(error, PeerEnded):
        return
    cause = _of_communication(error)
    if cause is not None:
        with suppress(Exception):  # the process that holds the store may be gone: then nobody is told
            store.set(f"{_WAITING}/{rank()}", "")
        if _somebody_failed(store):
            return
        if cause == "silent":
            text = f"recipe-kit: {_hang(store, error)}"
    elif store is not None:
        with suppress(Exception):
            store.set(_FAILED, str(rank()))
    if _may_say(store, text):
        signals.say(text if rank() == 0 else _numbered(text))
    if store is not None and rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        time.sleep(FIRST_SPEAKS_SECONDS)  # the store is in this process: let the others ask it


def leave(code: int) -> NoReturn:
    """Without the goodbyes of an interpreter: threads of a group whose members are gone may never end."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _numbered(text: str) -> str:
    if text.startswith("recipe-kit: "):
        return f"recipe-kit, process {rank()}: {text.removeprefix('recipe-kit: ')}"
    return f"recipe-kit, process {rank()}:\n{text}"


def _may_say(store: Any, text: str) -> bool:
    """Whether no other process has said the same."""
    if store is None:
        return True
    key = f"recipe-kit/said/{hashlib.sha256(text.encode()).hexdigest()}"
    try:
        waited = 0.0
        while rank() > 0 and waited < FIRST_SPEAKS_SECONDS and not store.check([key]):
            time.sleep(0.1)
            waited += 0.1
        return int(store.add(key, 1)) == 1
    except Exception:  # the process that held the store is gone
        return True


def _of_communication(error: BaseException) -> Literal["gone", "silent"] | None:
    """Whether an error comes from another process's end or silence; None for other errors."""
    link: BaseException | None = error
    while link is not None:
        if type(link).__module__.startswith("torch") or type(link) is RuntimeError:
            if any(sign in str(link) for sign in _GONE):
                return "gone"
            if any(sign in str(link) for sign in _SILENT):
                return "silent"
        link = link.__cause__
    return None


def _somebody_failed(store: Any) -> bool:
    """Whether another process is known to have failed. torch's launcher tells by a SIGTERM, ours raises PeerEnded."""
    listener, end = signals.listener(), time.monotonic() + NEWS_SECONDS
    while time.monotonic() < end:
        if listener is not None and listener.asked:
            return True
        with suppress(Exception):
            if store is not None and store.check([_FAILED]):
                return True
        time.sleep(0.1)
    return False


def _hang(store: Any, error: BaseException) -> str:
    """A sentence about processes that do not answer: those that have not said that they wait for others."""
    silent: list[int] = []
    with suppress(Exception):
        silent = [other for other in range(count()) if not store.check([f"{_WAITING}/{other}"])]
    who = f"process {', '.join(map(str, silent))}" if silent else "another process"
    said = (str(error).strip().splitlines() or [""])[0].rpartition("] ")[2]
    return (
        f"{who} did not answer ({said}); it hangs, or its machine or network is gone; --resume continues from the "
        "last checkpoint, and training.ddp_timeout says after how many seconds processes give up waiting"
    )


def _store() -> Any:
    """Where the processes meet; None before they have, when nobody waits for anybody."""
    torch = sys.modules.get("torch")
    group = None if torch is None else torch.distributed
    if group is not None and group.is_available() and group.is_initialized():
        with suppress(Exception):
            store = group.distributed_c10d._get_default_store()
            store.set_timeout(timedelta(seconds=10))
            return store
    return _launchers_store()


def _launchers_store() -> Any:
    """The launcher's own, for an error before the processes have met; None where it keeps none."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    with suppress(Exception):
        from torch._C._distributed_c10d import TCPStore

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))
    return None
