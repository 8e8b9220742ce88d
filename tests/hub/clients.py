"""The real clients: the one of this process, and those of both majors in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.utils.tqdm import progress_bar_states

from hub.server import Hub

MAJORS = ("client 2", "client 1")


def older_client() -> Path:
    """The folder with huggingface_hub 1.x and what it needs, put there by `pip install --target`; skips without it."""
    folder = Path(os.environ.get("RECIPE_KIT_HUB1") or Path(sys.prefix) / "hub-1")
    if not (folder / "huggingface_hub").is_dir():
        pytest.skip("no huggingface_hub 1.x: no folder with it in RECIPE_KIT_HUB1, and no hub-1 in the environment")
    return folder


def use_in_this_process(hub: Hub, patch: pytest.MonkeyPatch, *, token: str | None = None, home: Path) -> None:
    """Point the huggingface_hub that is imported here at `hub`, for as long as `patch` lasts: online, LFS, `home`.

    It read its environment when it was imported, so its constants change, and the `HfApi` that its functions share.
    """
    for name, value in {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "AGENT_HARNESSES_PATH": str(home / "agents.json"),
    }.items():
        patch.setattr(f"huggingface_hub.constants.{name}", value)
    patch.setattr("huggingface_hub.hf_api.api.endpoint", hub.endpoint)
    patch.setitem(progress_bar_states, "_global", False)
    patch.setenv("HF_TOKEN", token or "")
    patch.setenv("NO_PROXY", "*")


def run_client(
    hub: Hub,
    code: str,
    *arguments: str | Path,
    token: str | None,
    major: str = "client 2",
    home: Path | None = None,
    **variables: str,
) -> str:
    """What `code` prints, run with the Hub's environment and `variables`. Its error output is shown where it fails."""
    paths = [str(older_client())] if major == "client 1" else []
    environment = {**os.environ, **hub.environment(token, home), **variables}
    environment["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()
