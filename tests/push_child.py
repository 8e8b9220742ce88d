"""Processes that push: one that has imported the client and forks for every push, and how a test talks to it.

A push that is to be killed needs a process of its own, and starting Python for each would take most of the test's
time. Waiting costs nothing here (`time.sleep` only notes how long), and what was downloaded is loaded in earnest only
where a test asks for it, since that imports transformers.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hub.clients import older_client
from hub.server import Hub


@dataclass
class Done:
    """What came of a push. `code` is -9 where it was killed; `waits` are the seconds it would have waited."""

    code: int
    out: str
    err: str
    waits: list[float] = field(default_factory=list)


class Pusher:
    """Runs `recipe-kit push` against one Hub, each time in a forked process."""

    def __init__(self, hub: Hub, folder: Path, *, major: str = "client 2") -> None:
        self.folder = folder
        self.pid = 0  # of the push at work
        folder.mkdir(parents=True, exist_ok=True)
        paths = [str(older_client())] if major == "client 1" else []
        paths += [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, **hub.environment(home=folder / "home"), "PYTHONPATH": os.pathsep.join(paths)}
        self._server = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.client_version = self._read()["client"]

    def push(self, run: Path, *arguments: str, token: str | None, **options: Any) -> Done:
        """Run the command. Options: `environment` over the usual one, `load` for the real loading at the end, and
        `patch`, Python to execute before."""
        environment = {"HF_TOKEN": token or "", **options.pop("environment", {})}
        command = {"arguments": [str(run), *arguments], "environment": environment, "folder": str(self.folder)}
        self._write({**command, **options})
        self.pid = self._read()["pid"]
        code = self._read()["code"]
        self.pid = 0
        waits = self.folder / "waits"
        return Done(
            code,
            (self.folder / "out").read_text(encoding="utf-8"),
            (self.folder / "err").read_text(encoding="utf-8"),
            json.loads(waits.read_text()) if waits.exists() else [],
        )

    def close(self) -> None:
        self._stream(self._server.stdin).close()
        self._server.wait(timeout=30)

    def _write(self, value: Any) -> None:
        stdin = self._stream(self._server.stdin)
        stdin.write(json.dumps(value) + "\n")
        stdin.flush()

    def _read(self) -> Any:
        line = self._stream(self._server.stdout).readline()
        assert line, "the pushing process has ended"
        return json.loads(line)

    @staticmethod
    def _stream(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream


@contextlib.contextmanager
def pusher(hub: Hub, folder: Path, *, major: str = "client 2") -> Iterator[Pusher]:
    running = Pusher(hub, folder, major=major)
    try:
        yield running
    finally:
        running.close()


def serve() -> None:
    """Read commands from standard input, a line each; fork, run, and say how it ended."""
    import ssl

    import certifi
    import huggingface_hub
    import huggingface_hub._snapshot_download
    import huggingface_hub.hf_api
    import huggingface_hub.lfs
    import numpy  # noqa: F401

    import recipe_kit.cli.push
    import recipe_kit.publish  # noqa: F401 - all of it once, before forking

    context = ssl.create_default_context(cafile=certifi.where())  # 40 ms, and no push of ours needs one
    ssl.create_default_context = lambda *_, **__: context
    answers = os.fdopen(os.dup(1), "w")
    print(json.dumps({"client": huggingface_hub.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        folder = Path(command["folder"])
        for name in ("out", "err", "waits"):
            (folder / name).unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            _push(command, folder)
        print(json.dumps({"pid": pid}), file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), file=answers, flush=True)


def _push(command: dict[str, Any], folder: Path) -> None:
    """In the forked process: the command as a user runs it, without a terminal."""
    code = 1
    waits: list[float] = []
    try:
        for number, name in ((0, os.devnull), (1, str(folder / "out")), (2, str(folder / "err"))):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.environ.update(command["environment"])
        really = time.sleep
        # A short wait is that of a lock.
        time.sleep = lambda seconds: really(seconds) if seconds < 0.5 else waits.append(seconds)
        from recipe_kit.publish import verify

        if not command.get("load"):
            verify.load = lambda folder, what: [f"loaded {what}"]
        exec(command.get("patch", ""), {})
        from recipe_kit.cli.push import push

        push.main(command["arguments"], standalone_mode=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        (folder / "waits").write_text(json.dumps(waits))
        os._exit(code)


if __name__ == "__main__":
    serve()
