"""The Hub's client, with limits: nothing waits for ever, and what failed by accident is asked again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from recipe_kit.errors import PublishError
from recipe_kit.publish import refusals

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

QUESTION_SECONDS = 20.0  # without a byte from the Hub, when it is asked something small
UPLOAD_SECONDS = 180.0  # without a byte in either direction, when files travel or a commit is made
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt
FEW_WAITS = (1.0,)  # where the client itself tries again, though not after everything


def hub_token() -> str:
    """The token of this machine. Raises PublishError when there is none, or the Hub must not be asked."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise PublishError(refusals.OFFLINE)
    with refusals.explained("asking for this machine's token", None):
        token = get_token()
    if not token:
        raise PublishError(refusals.NO_TOKEN)
    if not token.isascii():  # no header can carry it
        raise PublishError(refusals.BAD_TOKEN)
    return token


def api(token: str) -> HfApi:
    """The client, which sends `token`; its warnings quote signed URLs and are not shown."""
    from huggingface_hub import HfApi, logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return HfApi(token=token, library_name="recipe-kit")


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Gives up on a silent Hub: by itself the client of huggingface_hub waits without end (seen with 1.33 and 2.4)."""
    from huggingface_hub import get_session

    session = get_session()
    before = session.timeout
    session.timeout = seconds
    try:
        yield
    finally:
        session.timeout = before


def ask(question: Callable[[], T], *, waits: tuple[float, ...] = WAITS, seconds: float = QUESTION_SECONDS) -> T:
    """The answer to something that can be asked twice. Raises the client's error once it is not worth asking again."""
    for wait in waits:
        try:
            with limited(seconds):
                return question()
        except Exception as error:
            time_out = refusals.pause(error, wait)
            if time_out is None:
                raise
            time.sleep(time_out)
    with limited(seconds):
        return question()


def post(token: str, path: str, value: Any) -> Any:
    """The Hub's answer to what the client has no function for, or none that can be used; no status is an error yet."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers = build_hf_headers(token=token, library_name="recipe-kit")
    return get_session().post(f"{endpoint()}{path}", json=value, headers=headers)


def endpoint() -> str:
    """Where the Hub is."""
    from huggingface_hub import constants

    return constants.ENDPOINT
