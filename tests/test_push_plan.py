"""What a push would do and why it would not: accounts, files, secrets, cards, merges, repositories, folders."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from huggingface_hub.errors import HfHubHTTPError

from hub.server import Hub
from push_run import RECIPE, add_merge, make_run, safetensors
from recipe_kit import publish, run_dir, secrets
from recipe_kit.cli import publication
from recipe_kit.cli.push import push
from recipe_kit.errors import PublishError, RecipeKitError
from recipe_kit.publish import Plan, Wish, check_before_training, checks, refusals, scan, weights
from recipe_kit.publish.account import account_of, problems
from recipe_kit.publish.repository import Remote
from recipe_kit.recipe import load_recipe

try:
    import httpx2 as httpx
except ImportError:  # what the client of the older major is built on
    import httpx


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(running: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A Hub that the client of this process may reach, without repositories; acme may write there."""
    running.repos.clear()
    running.heal()
    running.log.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.endpoint)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_TOKEN", running.add_user("acme"))
    return running


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def planned(run: Path, repo_id: str | None = "acme/x", **wishes: Any) -> Plan:
    return publish.plan(run, Wish(repo_id=repo_id, **wishes))


def problems_of(run: Path, repo_id: str | None = "acme/x", **wishes: Any) -> str:
    """The only reason not to push."""
    (problem,) = planned(run, repo_id, **wishes).problems
    return problem


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(push, [str(argument) for argument in arguments])


def untouched(run: Path, hub: Hub) -> bool:
    """Whether neither the run folder nor the Hub was changed."""
    return not (run / "README.md").exists() and not hub.repos


# The plan


def test_a_plan_says_what_goes_where_as_whom_and_changes_nothing(hub: Hub, run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    plan = planned(run, tag="v1.0")
    assert plan.problems == ()
    assert (plan.repo_id, plan.branch, plan.tag, plan.private) == ("acme/x", "main", "v1.0", True)
    assert (plan.account.name, plan.account.token_role) == ("acme", "write")
    assert [file.path for file in plan.contents.files] == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
        "recipe-kit/files.json", "recipe-kit/recipe.yaml", "recipe-kit/run.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert plan.sends == list(plan.contents.files)
    assert untouched(run, hub)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_dry_run_prints_the_plan_and_sends_nothing(hub: Hub, run: Path) -> None:
    done = command(run, "--repo-id", "acme/x", "--dry-run")
    assert done.exit_code == 0
    first, *lines = done.stdout.splitlines()
    assert first == "acme/x (private, new), branch main, as acme, token role write"
    assert [line.split() for line in lines][2] == ["adapter_model.safetensors", "87", "B", "new"]
    assert untouched(run, hub)


def test_a_dry_run_with_problems_lists_them_all_and_exits_1(hub: Hub, run: Path) -> None:
    (run / "adapter" / "adapter_model.safetensors").write_bytes(safetensors(float("nan")))
    (run / "adapter" / "tokenizer.json").unlink()
    done = command(run, "--repo-id", "other/x", "--dry-run")
    assert done.exit_code == 1
    assert len([line for line in done.stderr.splitlines() if line.startswith("problem: ")]) == 3
    assert "nothing was sent" in done.stderr


def test_json_is_for_scripts(hub: Hub, run: Path) -> None:
    told = json.loads(command(run, "--repo-id", "acme/x", "--dry-run", "--json").stdout)
    assert told["repo_id"] == "acme/x"
    assert told["exists"] is False
    assert told["problems"] == []
    assert set(told["to_send"]) == set(told["files"])
    assert len(told["files"]["adapter_config.json"]["sha256"]) == 64


def test_a_name_alone_is_a_repository_of_ones_own(hub: Hub, run: Path) -> None:
    assert planned(run, "x").repo_id == "acme/x"


def test_without_a_repository_it_says_what_to_type(hub: Hub, run: Path) -> None:
    with pytest.raises(
        PublishError, match="no repository to push to; say --repo-id OWNER/NAME, or write publish.repo_id"
    ):
        planned(run, None)


def test_the_recipe_says_what_the_command_leaves_out(hub: Hub, tmp_path: Path) -> None:
    settings = {"repo_id": "acme/r", "private": "false", "what": "merged", "revision": "trial", "tag": "v3"}
    run = make_run(tmp_path, *(f"publish.{key}={value}" for key, value in settings.items()))
    add_merge(run)
    plan = planned(run, None)
    assert (plan.repo_id, plan.private, plan.contents.what, plan.branch, plan.tag) == (
        "acme/r", False, "merged", "trial", "v3",
    )  # fmt: skip
    assert planned(run, "acme/y", private=True, what="adapter").private


def test_publishing_asks_and_a_no_sends_nothing(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["recipe_kit.cli.push"], "_is_terminal", lambda: True)
    done = CliRunner().invoke(push, [str(run), "--repo-id", "acme/x"], input="n\n")
    assert done.exit_code == 1
    assert "Publish 9 files, 11" in done.stderr
    assert "to acme/x (private)? [y/N]" in done.stderr
    assert untouched(run, hub)


def test_with_standard_input_closed_it_wants_to_be_told(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(PublishError, match="there is nobody to ask here: say --yes to publish"):
        push.callback(str(run), "acme/x", None, None, None, False, None, False, None, False, False)  # type: ignore[misc]


def test_interrupted_it_says_how_to_go_on(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recipe_kit.publish.push", interrupted)
    result = command(run, "--repo-id", "acme/x", "--yes")
    assert result.exit_code == 130
    assert result.stderr.endswith("\ninterrupted: push again to finish what was begun\n")


def test_without_a_terminal_it_wants_to_be_told(hub: Hub, run: Path) -> None:
    done = command(run, "--repo-id", "acme/x")
    assert done.exit_code == 1
    assert "there is nobody to ask here: say --yes to publish, or --dry-run to look at it only" in done.stderr
    assert untouched(run, hub)


# Accounts


def test_no_token(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    done = command(run, "--repo-id", "acme/x", "--yes")
    assert done.exit_code == 1
    assert "no Hub token on this machine; make one with the role write" in done.stderr
    assert not hub.log


def test_a_token_that_the_hub_does_not_know(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    done = command(run, "--repo-id", "acme/x", "--yes")
    assert done.exit_code == 1
    assert "the Hub does not accept this token: unknown, expired or revoked" in done.stderr
    assert "hf_x" not in done.output


def test_a_token_that_no_header_can_carry(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_t\u00f6ken")
    with pytest.raises(PublishError, match="the Hub does not accept this token"):
        planned(run)


def test_a_token_that_may_only_read(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.add_user("acme", role="read"))
    assert problems_of(run).startswith("the token of acme may only read; make one with the role write at https://")


def test_someone_elses_namespace(hub: Hub, run: Path) -> None:
    assert problems_of(run, "other/x") == (
        "other/x belongs to other, and this token to acme; push to acme/x, or propose a change with --pr"
    )


def test_an_organisation_takes_pushes_of_members_who_write(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.add_user("ann", orgs={"lab": "write", "club": "read"}))
    assert planned(run, "lab/x").problems == ()
    assert problems_of(run, "club/x") == "ann has the role read in club; ask its owner for the role write"


@pytest.mark.parametrize(
    ("scopes", "is_enough"),
    [({"acme": ["repo.write"]}, True), ({"acme/x": ["repo.write"]}, True), ({"acme": ["repo.content.read"]}, False),
     ({"acme/y": ["repo.write"]}, False), ({}, True)],
)  # fmt: skip
def test_a_fine_grained_token_has_to_name_the_repository_or_its_owner(
    scopes: dict[str, list[str]], is_enough: bool
) -> None:
    scoped = [{"entity": {"name": name}, "permissions": rights} for name, rights in scopes.items()]
    told = {"name": "acme", "auth": {"accessToken": {"role": "fineGrained", "fineGrained": {"scoped": scoped}}}}
    assert (problems(account_of(told, "hf_x"), "acme/x", pull_request=False) == []) is is_enough


# Files


def test_what_is_not_on_the_list_stays_here_and_is_named(hub: Hub, run: Path) -> None:
    adapter = run / "adapter"
    (adapter / "training_args.bin").write_bytes(b"pickle")
    (adapter / "optimizer.pt").write_bytes(b"pickle")
    (adapter / "modeling.py").write_text("import os")
    (adapter / "secret.json").symlink_to("/etc/hostname")
    (adapter / "global_step2").mkdir()
    (adapter / "global_step2" / "state.json").write_text("{}")
    plan = planned(run)
    assert plan.problems == ()
    assert plan.contents.left_out == (
        "adapter/global_step2/state.json: no file that loading needs",
        "adapter/modeling.py: no file that loading needs",
        "adapter/optimizer.pt: a pickle, which can run code when it is loaded",
        "adapter/secret.json: a link",
        "adapter/training_args.bin: a pickle, which can run code when it is loaded",
    )
    assert {file.path for file in plan.contents.files} == {
        file.path for file in planned(make_run(run / "..")).contents.files
    }


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda adapter: (adapter / "adapter_model.safetensors").unlink(), "adapter_model.safetensors: is not there"),
        (
            lambda adapter: (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin"),
            "adapter_model.safetensors: is not there",
        ),
        (
            lambda adapter: (adapter / "adapter_model.safetensors").write_bytes(safetensors(1.0, 2.0)[:-3]),
            "adapter_model.safetensors: should have",
        ),
        (
            lambda adapter: (adapter / "adapter_model.safetensors").write_bytes(b"version https://git-lfs"),
            "adapter_model.safetensors: is no safetensors file, or only part of one",
        ),
        (
            lambda adapter: (adapter / "adapter_model.safetensors").write_bytes(safetensors(1.0, float("inf"))),
            "adapter_model.safetensors: weight holds numbers that are infinite or none; the training diverged",
        ),
        (lambda adapter: (adapter / "adapter_config.json").write_text("{"), "adapter_config.json: is no JSON"),
        (lambda adapter: (adapter / "tokenizer_config.json").write_text("[]"), "tokenizer_config.json: is no JSON"),
        (
            lambda adapter: (adapter / "adapter_config.json").write_text('{"r": 4}'),
            "adapter_config.json: no configuration of an adapter",
        ),
        (lambda adapter: (adapter / "tokenizer.json").unlink(), "tokenizer.json: is not there"),
        (
            lambda adapter: (adapter / "tokenizer_config.json").write_text('{"added": "/home/ann/models/x"}'),
            "tokenizer_config.json: added names a path of this machine",
        ),
    ],
)  # fmt: skip
def test_weights_that_nobody_could_load_are_not_published(hub: Hub, run: Path, spoil: Any, problem: str) -> None:
    spoil(run / "adapter")
    assert problems_of(run).startswith(f"{run / 'adapter'}/{problem}")


def test_of_the_licence_folder_only_texts_of_a_licence_go(hub: Hub, run: Path, tmp_path: Path) -> None:
    (run / "license").mkdir()
    for name in ("LICENSE.txt", "USE_POLICY.md", ".env", "id_rsa", "README.md", "config.json"):
        (run / "license" / name).write_text("text")
    (run / "license" / "LICENSE").symlink_to(tmp_path / "recipe.yaml")
    found = planned(run).contents
    paths = [file.path for file in found.files]
    assert {"LICENSE.txt", "USE_POLICY.md"} < set(paths) and paths.count("README.md") == 1
    assert not {"LICENSE", ".env", "id_rsa", "config.json"} & set(paths)
    assert "license/id_rsa: no text of a licence" in found.left_out


def test_a_linked_weights_folder_is_not_followed(hub: Hub, run: Path) -> None:
    (run / "adapter").rename(run / "elsewhere")
    (run / "adapter").symlink_to("elsewhere")
    assert problems_of(run).startswith(f"{run / 'adapter'}: is a link, which is not followed")


def test_a_run_that_did_not_finish_is_not_published(hub: Hub, run: Path) -> None:
    run_dir.update(run, status="failed", error="out of memory")
    done = command(run, "--repo-id", "acme/x", "--yes")
    assert done.exit_code == 1
    assert f"{run}: this run is failed (out of memory)" in done.stderr


def test_an_adapter_whose_base_nobody_can_get_is_not_published(hub: Hub, tmp_path: Path) -> None:
    """transformers #32212, PEFT #2124: an adapter that names a folder as its base."""
    run = make_run(tmp_path, "model.id=tiny:chatml", "model.revision=null")
    assert (
        "its base model tiny:chatml is not on the Hub, so nobody could load the adapter; publish merged weights"
        in (problems_of(run))
    )
    named = make_run(tmp_path / "2", "model.id=tiny:chatml", "model.revision=null", "card.base_model=acme/tiny-base")
    plan = planned(named)
    assert plan.problems == ()
    config = next(file for file in plan.contents.files if file.path == "adapter_config.json")
    assert json.loads(config.read())["base_model_name_or_path"] == "acme/tiny-base"


def test_full_weights_are_published_as_a_model(hub: Hub, tmp_path: Path) -> None:
    run = make_run(tmp_path, "method=full", "lora=null")
    plan = planned(run)
    assert plan.problems == ()
    assert {"config.json", "model.safetensors"} <= {file.path for file in plan.contents.files}
    with pytest.raises(RecipeKitError, match="--what adapter: this run trained all weights and has no adapter"):
        planned(run, what="adapter")


# Merged weights


@pytest.mark.parametrize("method", ["full", "lora"])
def test_whole_weights_are_read_once_for_a_plan(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Searched and hashed in one reading: record, manifest and the check of the merge take that hash."""
    run = make_run(tmp_path, *(["method=full", "lora=null"] if method == "full" else []))
    if method == "lora":
        add_merge(run, shards=1)
    monkeypatch.setattr(weights, "header", lambda path: {})  # reads a few bytes
    opened: list[str] = []
    really = Path.open

    def noted(path: Path, *arguments: Any, **options: Any) -> Any:
        opened.append(path.name)
        return really(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", noted)
    assert planned(run, what="merged").problems == ()
    assert opened.count("model.safetensors") == 1


def test_merged_weights_that_are_not_there_have_to_be_made(hub: Hub, run: Path) -> None:
    assert problems_of(run, what="merged") == f"{run / 'merged'}: is not there; run `recipe-kit merge {run}` first"


def test_merged_weights_with_a_record_are_published(hub: Hub, run: Path) -> None:
    add_merge(run)
    assert planned(run, what="merged").problems == ()
    assert planned(run, what="both").problems == ()


@pytest.mark.parametrize("what", ["merged", "both"])
def test_merged_weights_without_a_passing_parity_are_not_published(hub: Hub, run: Path, what: str) -> None:
    """PEFT #1035, unsloth #1267: what came of a merge that nobody compared."""
    add_merge(run)
    record = run_dir.read(run)["merge"]
    run_dir.update(run, merge={**record, "parity": {**record["parity"], "ok": False}})
    assert "the merged model was not shown to equal the adapter model; run `recipe-kit merge" in problems_of(
        run, what=what
    )
    run_dir.update(run, merge=None)
    assert "has no record of this merge" in problems_of(run, what=what)


def test_a_merge_of_an_older_adapter_is_not_published(hub: Hub, run: Path) -> None:
    add_merge(run)
    (run / "adapter" / "adapter_model.safetensors").write_bytes(safetensors(7.0))
    assert "merged from another adapter than" in problems_of(run, what="merged")


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "tokenizer.json"])
def test_merged_files_that_changed_since_are_not_published(hub: Hub, run: Path, name: str) -> None:
    add_merge(run)
    content = (run / "merged" / name).read_bytes()
    (run / "merged" / name).write_bytes(content.replace(b"1", b"2") if name.endswith("json") else content[:-1] + b"\1")
    assert f"{name} changed since the merge was checked; run `recipe-kit merge {run}` again" in problems_of(
        run, what="merged"
    )


def test_a_missing_shard_is_named(hub: Hub, run: Path) -> None:
    add_merge(run)
    (run / "merged" / "model-00002-of-00002.safetensors").unlink()
    assert problems_of(run, what="merged").startswith(
        f"{run / 'merged'}/model-00002-of-00002.safetensors: is not there"
    )


def test_a_shard_of_an_older_merge_is_left_out(hub: Hub, run: Path) -> None:
    add_merge(run)
    (run / "merged" / "model-00003-of-00003.safetensors").write_bytes(safetensors(1.0))
    plan = planned(run, what="merged")
    assert "merged/model-00003-of-00003.safetensors: its index does not name it" in plan.contents.left_out
    assert [problem for problem in plan.problems if "model-00003-of-00003.safetensors changed" in problem]


# Secrets

SECRETS = {
    "a Hugging Face token": "hf_" + "aBcDeFgHiJ" * 3 + "kLmN",
    "an OpenAI or Anthropic key": "sk-proj-" + "aB3dEf6hIj" * 4,
    "an AWS key": "AKIA" + "ABCDEFGH23456789",
    "a GitHub token": "ghp_" + "a1B2c3D4e5" * 3 + "f6G7h8",
    "a Slack token": "xoxb-" + "123456789012-abcdefghij",
    "a Google key": "AIza" + "SyA1b2C3d4E" * 3 + "5f",
    "a GitLab token": "glpat-" + "aB3dEf6hIj" * 2,
    "a Groq key": "gsk_" + "aB3dEf6hIj" * 5,
    "a package registry token": "npm_" + "aB3dEf6hIj" * 3 + "kLmNoP",
    "a signed token": "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "a private key": "-----BEGIN RSA PRIVATE KEY-----",
    "a user name and password in a URL": "https://" + "ann:hunter22@example.com/x",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_every_kind_of_secret_is_found_anywhere_in_a_stream(kind: str) -> None:
    data = b"\0" * 5000 + b' "' + SECRETS[kind].encode() + b'" ' + b"\xff" * 5000
    assert list(scan.search(data)) == [kind]
    for piece in (1, 7, 4096):
        looking = scan.Search()
        for start in range(4990, 5200, piece):
            looking.feed(data[start : start + piece])
        assert list(looking.found) == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "task-oriented-conversational-agents-and-other-long-words",
        "from huggingface_hub import hf_hub_download, hf_transfer",
        "see https://huggingface.co/acme/x and http://localhost:8000/v1",
        "git@github.com:acme/x.git and ann@example.com",
        "-----BEGIN CERTIFICATE-----",
        '"xox": 1, "AIza": 2, "AKIA": 3, "ghp_": 4',
    ],
)
def test_ordinary_text_is_no_secret(text: str) -> None:
    assert scan.search(text.encode()) == {}
    assert secrets.found_in(text) == []


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_found_in_a_text_and_blotted_out_of_it(kind: str) -> None:
    """In cards, in run.json, and in what a published repository says of its run."""
    text = f'see "{SECRETS[kind]}" there'
    assert [found for _, found in secrets.found_in(text)] == [kind]
    assert secrets.found_in(secrets.blotted(text)) == [] and "…" in secrets.blotted(text)


def test_random_weights_hold_no_secret() -> None:
    import random

    assert scan.search(random.Random(0).randbytes(3_000_000)) == {}


@pytest.mark.parametrize("place", ["adapter_config.json", "chat_template.jinja", "adapter_model.safetensors"])
def test_the_token_in_use_is_looked_for_in_every_file(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """autotrain #423: a log with the user's token in it."""
    token = hub.add_user("acme")[:11]  # too short to look like one
    hub.users[token] = hub.users[next(iter(hub.users))]
    monkeypatch.setenv("HF_TOKEN", token)
    path = run / "adapter" / place
    if place == "adapter_config.json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "note": token}))
    elif place == "chat_template.jinja":
        path.write_text(path.read_text() + "{# " + token + " #}")
    else:
        path.write_bytes(safetensors(1.0, name=token))
    problem = next(problem for problem in planned(run).problems if problem.startswith(f"{place}: holds"))
    assert "the token this push would use" in problem
    assert token not in problem


def test_a_key_in_a_tokenizer_stops_a_push(hub: Hub, run: Path) -> None:
    (run / "adapter" / "tokenizer.json").write_text(json.dumps({"normalizer": SECRETS["a GitHub token"]}))
    assert problems_of(run) == (
        "tokenizer.json: holds what looks like a GitHub token (from byte 16); take it out, and make a new one if it "
        "was ever shown to anybody"
    )


# Cards


def test_a_card_that_fails_its_lint_is_not_published(hub: Hub, run: Path) -> None:
    """autotrain #651: training done, and the upload refused for its card."""
    page = planned(run).contents.readme.text
    (run / "README.md").write_text(page.replace("base_model: acme/tiny-base", "base_model: /home/ann/base"))
    plan = planned(run)
    assert any("README.md: base_model: expected 'acme/tiny-base'" in problem for problem in plan.problems)
    assert all("correct it, or let `recipe-kit card" in p or "the Hub does not accept" in p for p in plan.problems)


def test_a_card_changed_by_hand_is_published_as_it_stands(hub: Hub, run: Path) -> None:
    page = planned(run).contents.readme.text + "\n## Thanks\n\nTo everybody who wrote an answer.\n"
    (run / "README.md").write_text(page)
    plan = planned(run)
    assert plan.problems == ()
    assert plan.contents.readme.text == page
    assert "is published as it stands" in " ".join(plan.notes)


def test_a_card_written_for_another_name_or_other_weights_is_written_anew(hub: Hub, run: Path) -> None:
    add_merge(run)
    for repo_id, what in (("acme/elsewhere", "adapter"), ("acme/x", "merged"), ("acme/third", "both")):
        plan = planned(run, repo_id, what=what)
        assert plan.problems == ()
        assert "is written anew" in " ".join(plan.notes)
        assert repo_id in plan.contents.readme.text
        plan.contents.readme.write(run)
        assert planned(run, repo_id, what=what).contents.readme.is_new is False


def test_words_that_were_added_to_the_recipe_stand_on_the_next_card(hub: Hub, run: Path) -> None:
    """`card` prints which keys to fill in; what the kit itself wrote before is no reason to leave them out."""
    planned(run).contents.readme.write(run)
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("contact: null", "contact: acme.example"))
    for what in ("adapter", "merged"):
        page = planned(run, what=what).contents.readme
        assert "**Contact:** acme.example" in page.text and page.is_new
    planned(run).contents.readme.write(run)
    assert not (run / "README.earlier.md").exists()


def test_the_notice_names_the_repository_that_it_lies_in(hub: Hub, tmp_path: Path) -> None:
    run = make_run(tmp_path, "publish.repo_id=acme/Llama-one", license="llama3.2")
    notice = next(file for file in planned(run, "acme/Llama-two").contents.files if file.path == "NOTICE")
    assert b"Llama-two was made from acme/tiny-base by fine-tuning" in notice.read()


def test_the_hub_is_asked_about_the_card_before_anything_is_sent(hub: Hub, run: Path) -> None:
    hub.fail("validate_yaml", status=400, message="license: not on our list")
    assert problems_of(run) == (
        "README.md: the Hub does not accept its metadata (license: not on our list); correct the recipe's card section"
    )
    assert untouched(run, hub)


def test_llamas_keep_their_name_and_notice(hub: Hub, tmp_path: Path) -> None:
    run = make_run(tmp_path, license="llama3.2")
    assert "asks for a name that begins with 'Llama'" in " ".join(planned(run, "acme/my-model").problems)
    plan = planned(run, "acme/Llama-3.2-support")
    assert plan.problems == ()
    notice = next(file for file in plan.contents.files if file.path == "NOTICE")
    assert b"Llama 3.2 is licensed under the Llama 3.2 Community License" in notice.read()


def test_what_everybody_sees_has_a_licence(hub: Hub, tmp_path: Path) -> None:
    run = make_run(tmp_path, license=None)
    assert planned(run).problems == ()
    assert problems_of(run, private=False) == (
        "README.md: names no licence, and everybody will see these weights; write card.license in the recipe"
    )


# Repositories


def test_an_existing_public_repository_gets_nothing_private(hub: Hub, run: Path) -> None:
    hub.add_repo("acme/x", private=False)
    assert problems_of(run) == (
        "acme/x is public, and this push is private; say --public to publish there, or choose another --repo-id"
    )
    assert planned(run, private=False).problems == ()


def test_visibility_is_changed_only_when_it_is_said(hub: Hub, tmp_path: Path) -> None:
    run = make_run(tmp_path, "publish.private=false")
    hub.add_repo("acme/x", private=True)
    plan = planned(run)
    assert (plan.private, plan.changes_visibility) == (True, False)
    assert "acme/x is private and stays so; --public makes it public" in plan.notes
    said = planned(run, private=False)
    assert (said.private, said.changes_visibility) == (False, True)


def test_a_tag_is_never_moved(hub: Hub, run: Path) -> None:
    repo = hub.add_repo("acme/x", private=True)
    repo.tags["v1.9"] = repo.refs["main"]
    assert problems_of(run, tag="v1.9") == (
        "--tag v1.9: it exists in acme/x and holds other files; choose another, such as v1.10"
    )


def test_names_that_are_taken_by_something_else(hub: Hub, run: Path) -> None:
    repo = hub.add_repo("acme/x", private=True)
    repo.tags["v1"] = repo.branches["trial"] = repo.refs["main"]
    assert problems_of(run, revision="v1").startswith("--revision v1: a tag of acme/x")
    assert problems_of(run, tag="trial").startswith("--tag trial: a branch of acme/x")


def test_a_pull_request_has_no_tag_and_goes_to_main(hub: Hub, run: Path) -> None:
    assert problems_of(run, tag="v1", pull_request=True).startswith("--tag and --pr:")
    assert problems_of(run, revision="trial", pull_request=True).startswith("--revision trial and --pr:")


def test_the_tag_of_a_recipe_is_left_out_of_a_pull_request(hub: Hub, tmp_path: Path) -> None:
    plan = planned(make_run(tmp_path, "publish.tag=v1"), pull_request=True)
    assert plan.problems == ()
    assert plan.tag is None
    assert "the tag v1 is left out" in " ".join(plan.notes)


@pytest.mark.parametrize(
    "repo_id",
    ["acme/", "acme/-x", "acme/x--y", "acme/x..y", "acme/x.git", "acme/x y", "a/b/c", "acme/" + "x" * 96, "acme/x."],
)
def test_names_that_no_repository_can_have(repo_id: str) -> None:
    assert checks.names(repo_id, "main", None)


@pytest.mark.parametrize("ref", ["v 1", "refs/pr/1", "a..b", "-v1", "x.lock", "a//b", "a/", "v1~2", "@{0}"])
def test_names_that_no_branch_or_tag_can_have(ref: str) -> None:
    assert len(checks.names("acme/x", ref, ref)) == 2


def test_names_that_are_fine() -> None:
    assert checks.names("acme/Llama-3.2_x", "refs-1/feature", "v1.0.0-rc1") == []
    assert [checks.next_tag(tag) for tag in ("v1.0", "v1.9", "2024-01", "first")] == [
        "v1.1",
        "v1.10",
        "2024-2",
        "first-2",
    ]


def test_nothing_is_said_of_visibility_where_there_is_no_repository() -> None:
    assert checks.visibility("acme/x", True, Remote(exists=False)) == []


# Folders


def test_a_folder_holds_what_a_push_would_send_without_network_or_token(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {file.path: file.read() for file in planned(run).contents.files}
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    requests = len(hub.log)
    out = tmp_path / "out"
    done = command(run, "--repo-id", "acme/x", "--to-folder", out)
    assert done.exit_code == 0, done.output
    assert {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()} == wanted
    assert len(hub.log) == requests
    assert not (run / "README.md").exists()


def test_an_earlier_export_is_replaced_and_anything_else_is_refused(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    add_merge(run)
    assert command(run, "--what", "both", "--to-folder", out).exit_code == 0
    assert command(run, "--what", "adapter", "--to-folder", out).exit_code == 0
    assert not (out / "adapter").exists()
    (out / "notes.txt").write_text("mine")
    done = command(run, "--to-folder", out)
    assert done.exit_code == 1
    assert f"{out}: holds files of somebody else (notes.txt); choose an empty folder" in done.stderr
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_has_no_tag(run: Path, tmp_path: Path) -> None:
    done = command(run, "--to-folder", tmp_path / "out", "--tag", "v1.0")
    assert done.exit_code == 2 and "leave out --revision, --tag and --pr" in done.stderr


def test_a_folder_with_problems_is_not_written(run: Path, tmp_path: Path) -> None:
    (run / "adapter" / "tokenizer.json").unlink()
    done = command(run, "--to-folder", tmp_path / "out")
    assert done.exit_code == 1
    assert "problem: " in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_half_a_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    done = command(run, "--to-folder", tmp_path / "out")
    assert done.exit_code == 1
    assert f"cannot write {tmp_path / 'out'}: No space left on device" in done.stderr
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


# Before training


def recipe(tmp_path: Path, *overrides: str) -> Any:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return load_recipe(tmp_path / "recipe.yaml", overrides=overrides)


def test_a_push_that_would_go_well_is_known_before_training(hub: Hub, tmp_path: Path) -> None:
    hub.add_repo("acme/tiny-base")
    assert check_before_training(recipe(tmp_path, "publish.repo_id=acme/x", "publish.tag=v1")) == []
    assert "acme/x" not in hub.repos


@pytest.mark.parametrize(
    ("publish", "model", "sentence"),
    [
        ("", "acme/base", "publish.repo_id: not set"),
        ("repo_id: other/x", "acme/base", "other/x belongs to other, and this token to acme"),
        ("repo_id: acme/x--y", "acme/base", "acme/x--y: no repository can have this id"),
        ("repo_id: acme/public", "acme/base", "acme/public is public, and this push is private"),
        (
            "repo_id: acme/old, tag: v1.0", "acme/base",
            "publish.tag: acme/old has a tag v1.0 already; write another, such as v1.1",
        ),
        ("repo_id: acme/x", "tiny:chatml", "publish.what: adapter, and the base model tiny:chatml is not on the Hub"),
        (
            "repo_id: acme/x", "acme/llama",
            "publish.repo_id: the base's licence asks for a name that begins with Llama; write acme/Llama-x",
        ),
        ("repo_id: acme/x, private: false", "acme/base", "card.license: the base model's card names no licence"),
    ],
)  # fmt: skip
def test_a_push_that_would_be_refused_is_refused_before_training(
    hub: Hub, tmp_path: Path, publish: str, model: str, sentence: str
) -> None:
    hub.add_repo("acme/base")
    hub.add_repo("acme/public")
    old = hub.add_repo("acme/old", private=True)
    old.tags["v1.0"] = old.refs["main"]
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "README.md").write_text("---\nlicense: llama3.2\n---\n# Llama\n")
    hub.add_repo("acme/llama", tmp_path / "llama")
    overrides = (f"publish={{{publish}}}", f"model.id={model}", "model.revision=null")
    (found,) = check_before_training(recipe(tmp_path, *overrides))
    assert found.startswith(sentence)


def test_a_push_after_training_that_is_interrupted_says_how_to_go_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recipe_kit.publish.plan", interrupted)
    with pytest.raises(SystemExit) as left:
        publication.publish_run(run)
    assert left.value.code == 130
    assert capsys.readouterr().err == (
        f"\ninterrupted: the training is finished and kept; go on with `recipe-kit push {run}`\n"
    )


def test_a_hub_that_cannot_be_reached_is_said_before_training(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fail("whoami", mode="reset", times=None)
    (found,) = check_before_training(recipe(tmp_path, "publish.repo_id=acme/x"))
    assert "asking who this token belongs to: the connection broke off" in found
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert check_before_training(recipe(tmp_path, "publish.repo_id=acme/x"))[0].startswith(
        "offline: HF_HUB_OFFLINE is set"
    )


# Refusals


def refused(status: int, message: str, headers: dict[str, str] | None = None) -> HfHubHTTPError:
    request = httpx.Request("POST", "http://127.0.0.1/api/models/acme/x/commit/main")
    response = httpx.Response(status, headers=headers or {}, request=request)
    return HfHubHTTPError(message, response=response, server_message=message)


@pytest.mark.parametrize(
    ("status", "message", "sentence"),
    [
        (402, "Payment required", "no room left: free some or extend it, then push again to finish"),
        (403, "Private repository storage limit reached", "no room left: free some"),
        (403, "You don't have the rights", "use a token with the role write for acme, or another --repo-id"),
        (404, "Repository not found", "not there, or not visible to this account (404); check --repo-id"),
        (409, "You already created this model repo", "the name is taken: choose another with --repo-id"),
        (412, "A commit has happened since", "a commit has happened since; look at it with `recipe-kit push RUN"),
        (413, "Payload too large", "it is more than the Hub takes at once"),
        (418, "I'm a teapot", "acme/x: committing: the Hub refused (418: I'm a teapot)"),
        (429, "Too many requests", "too many requests for now (429); push again in a few minutes to finish"),
        (507, "Insufficient storage", "no room left"),
        (599, "?", "the Hub is in trouble (599: ?); push again in a while to finish"),
    ],
)  # fmt: skip
def test_every_status_has_its_sentence(status: int, message: str, sentence: str) -> None:
    assert sentence in str(refusals.sentence(refused(status, message), doing="committing", repo_id="acme/x"))


def test_errors_are_looked_at_inside_what_the_client_wraps_around_them() -> None:
    outer = RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    outer.__cause__ = refused(503, "see https://bucket.example.com/x?signature=abc and hf_" + "a" * 34)
    assert refusals.sentence(outer, doing="uploading", repo_id="acme/x") == (
        "acme/x: uploading model.safetensors: the Hub is in trouble (503: see https://bucket.example.com/x and hf_…); "
        "push again in a while to finish"
    )
    quota = ValueError(
        "LFS batch API returned errors:\nEncountered error for file with OID x: `storage quota exceeded"
    )
    assert "no room left" in str(refusals.sentence(quota, doing="uploading", repo_id="acme/x"))


def test_a_bug_is_no_refusal_and_keeps_its_traceback() -> None:
    assert refusals.sentence(KeyError("x"), doing="uploading", repo_id="acme/x") is None
    with pytest.raises(KeyError), refusals.explained("uploading", "acme/x"):
        raise KeyError("x")


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [(500, {}, 2), (403, {}, None), (429, {"Retry-After": "42"}, 42), (429, {"Retry-After": "1"}, 2),
     (429, {"Retry-After": "4000"}, None), (429, {"RateLimit": '"api";r=0;t=55'}, 56)],
)  # fmt: skip
def test_it_waits_as_long_as_the_hub_asks_but_not_for_ever(
    status: int, headers: dict[str, str], seconds: float | None
) -> None:
    assert refusals.pause(refused(status, "?", headers), 2) == seconds


# Weights


@pytest.mark.parametrize(
    ("dtype", "number", "is_finite"),
    [
        ("F16", 0x7BFF, True),
        ("F16", 0x7C00, False),
        ("BF16", 0x7F7F, True),
        ("BF16", 0xFFC0, False),
        ("I64", -1, True),
    ],
)
def test_numbers_of_every_width_are_looked_at(tmp_path: Path, dtype: str, number: int, is_finite: bool) -> None:
    width = 8 if dtype == "I64" else 2
    data = (0).to_bytes(width, "little") + number.to_bytes(width, "little", signed=number < 0)
    header = json.dumps({"w": {"dtype": dtype, "shape": [2], "data_offsets": [0, len(data)]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert (weights.not_finite(path) is None) is is_finite
