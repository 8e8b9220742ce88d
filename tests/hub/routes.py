"""The table of the hub's endpoints: which function answers which address, and what the operation is called."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import unquote

from hub.wire import HubError, Request, Response

Endpoint = Callable[..., Response]
_ROUTES: list[tuple[str, tuple[str, ...], re.Pattern[str], Endpoint]] = []


def route(op: str, methods: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
    """Register a function for `methods` ("GET HEAD") on paths that `pattern` matches whole.

    The pattern is matched before anything is unquoted, so that `refs%2Fpr%2F1` is one part of the path; the function
    is called with the hub, the request and the groups, unquoted.
    """

    def register(function: Endpoint) -> Endpoint:
        _ROUTES.append((op, tuple(methods.split()), re.compile(pattern), function))
        return function

    return register


def find(request: Request) -> tuple[str, Callable[[Any], Response]]:
    """Name of the operation, and the call that answers it when given the hub."""
    path = request.target.split("?")[0]
    for op, methods, pattern, function in _ROUTES:
        if request.method in methods and (match := pattern.fullmatch(path)):
            values = [None if group is None else unquote(group) for group in match.groups()]
            return op, partial(_call, function, request, values)
    return "unknown", _nothing_here


def _call(function: Endpoint, request: Request, values: list[str | None], hub: Any) -> Response:
    return function(hub, request, *values)


def _nothing_here(hub: Any) -> Response:
    raise HubError(404, "Sorry, we can't find the page you are looking for.")
