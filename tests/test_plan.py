"""`recipe-kit plan`: what it says before training, against what training then does."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
from click.testing import CliRunner, Result

from llama_shapes import LLAMA_2_7B, LLAMA_32_1B
from recipe_kit import cli, modeling, run_dir
from recipe_kit import plan as planning
from recipe_kit.errors import ModelError
from recipe_kit.plan import access, disk, judge, rows, sizes, steps, text
from recipe_kit.plan.shape import Plan
from recipe_kit.recipe import Recipe, load_recipe, resolve
from recipe_kit.speed import parameters
from tiny_recipe import TINY

datasets.disable_progress_bars()


def recipe_file(folder: Path, text: str = TINY) -> str:
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def tiny(folder: Path, *overrides: str) -> Recipe:
    return load_recipe(recipe_file(folder), overrides=overrides)


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.main, ["plan", *words], prog_name="recipe-kit")


def an_empty_plan(**parts: Any) -> Plan:
    plan = planning._empty(resolve("samsum"))
    plan.update(parts)  # type: ignore[typeddict-item]
    return plan


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., Any]:
    """Training arguments that run on any machine, with the options given."""
    from trl import SFTConfig

    def make(**values: Any) -> Any:
        return SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], **values)

    return make


# Rows


def test_histogram_has_bins_of_one_round_width_up_to_the_longest_row() -> None:
    found = rows.histogram(np.array([1, 40, 41, 41, 399]))
    assert [(bin["first"], bin["last"], bin["rows"]) for bin in found] == [
        (1, 40, 2), (41, 80, 2), (81, 120, 0), (121, 160, 0), (161, 200, 0), (201, 240, 0), (241, 280, 0),
        (281, 320, 0), (321, 360, 0), (361, 400, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(("longest", "width"), [(1, 1), (10, 1), (11, 2), (382, 40), (1024, 200), (8192, 1000)])
def test_bins_are_no_more_than_ten_and_round(longest: int, width: int) -> None:
    found = rows.histogram(np.array([longest]))
    assert len(found) <= 10 and found[0]["last"] == width and found[-1]["rows"] == 1


def test_quantiles_are_lengths_that_rows_have() -> None:
    assert rows.quantiles(np.array([10] * 50 + [20] * 40 + [30] * 9 + [999])) == {
        "p50": 10, "p90": 20, "p95": 30, "p99": 30, "max": 999,
    }  # fmt: skip


def test_lengths_and_turns_are_those_of_the_rows_that_are_used_in_their_order() -> None:
    details = datasets.Dataset.from_dict(
        {"input_ids": [[1], [1, 2], [1, 2, 3], []], "turn_lengths": [[7], [3, 4], [], [1, 2, 3]]}
    )
    assert rows.row_lengths(details).tolist() == [1, 2, 3, 0]
    assert rows.row_lengths(details.select([2, 0])).tolist() == [3, 1]
    assert [total.tolist() for total in rows.turn_totals(details)] == [[3, 2, 1], [11, 6, 3]]
    assert [total.tolist() for total in rows.turn_totals(details.select([1]))] == [[1, 1], [3, 4]]


def test_share_of_trained_tokens_is_told_for_each_turn() -> None:
    """axolotl #1761: only the last assistant turn was trained, and nothing said so."""
    part = rows.trained_part(200, 50, (np.array([10, 5]), np.array([20, 30])))
    assert part["share"] == 0.25
    assert part["turns"] == [
        {"turn": 1, "rows": 10, "tokens": 20, "share": 0.4},
        {"turn": 2, "rows": 5, "tokens": 30, "share": 0.6},
    ]


def test_training_the_last_turn_only_shows_as_one_turn(tiny_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    """axolotl #1761."""
    from recipe_kit.data import prepare

    chat = [{"role": role, "content": word} for role, word in
            (("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye"), ("assistant", "Goodbye."))]  # fmt: skip
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": chat}) + "\n")
    source = (f"data.train={{path: {path}}}", "data.formatter=messages", "data.eval=null")

    def turns(*overrides: str) -> list[list[int]]:
        split = prepare(tiny(tmp_path, *source, *overrides).data, tiny_tokenizer("chatml"))["train"]
        return [total.tolist() for total in rows.turn_totals(split.details)]

    first, last = turns()[1]
    assert turns() == [[1, 1], [first, last]]
    assert turns("data.train_on=last_assistant") == [[1], [last]]


# Batches and steps


def test_padding_counts_the_rows_that_are_there(options: Callable[..., Any]) -> None:
    lengths = np.array([2, 4, 3, 3, 5])  # batches of 4 + 4, 3 + 3 and 5 slots
    assert steps.padding_share(lengths, options(per_device_train_batch_size=2)) == pytest.approx(1 - 17 / 19)
    assert steps.padding_share(lengths, options(per_device_train_batch_size=2, pad_to_multiple_of=8)) == pytest.approx(
        1 - 17 / 40
    )
    assert steps.padding_share(lengths, options(per_device_train_batch_size=1)) == 0


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_packed_rows_are_those_that_trl_packs_from_the_tokens(
    options: Callable[..., Any], strategy: str, shuffled: bool
) -> None:
    from trl import pack_dataset

    lengths = np.random.default_rng(0).integers(1, 64, 2500)
    arguments = options(packing=True, packing_strategy=strategy, max_length=64, shuffle_dataset=shuffled)
    tokens = datasets.Dataset.from_dict({"input_ids": [list(range(length)) for length in lengths]})
    if shuffled:
        tokens = tokens.shuffle(seed=arguments.seed)
    packed = [len(row) for row in pack_dataset(tokens, 64, strategy)["input_ids"]]
    assert steps.packed_lengths(lengths, arguments).tolist() == packed
    part = steps.batches_part(lengths, arguments)
    assert part["rows"] == len(packed)
    assert part["packed"] and part["packed"]["filled_share"] == pytest.approx(lengths.sum() / (64 * len(packed)))


def test_without_packing_the_plan_says_what_packing_would_give(options: Callable[..., Any]) -> None:
    lengths = np.array([32] * 10)
    part = steps.batches_part(lengths, options(packing=False, max_length=64))
    assert (part["rows"], part["padding_share"], part["packed"]) == (10, 0, None)
    assert part["packed_instead"] == {"strategy": "bfd", "rows": 5, "filled_share": 1.0, "estimated": False}


def test_what_packing_would_give_is_told_from_a_part_of_many_rows(options: Callable[..., Any]) -> None:
    part = steps.batches_part(np.array([32] * 50_000), options(packing=False, max_length=64))
    assert part["packed_instead"] == {"strategy": "bfd", "rows": 25_000, "filled_share": 1.0, "estimated": True}


def test_grouping_by_length_leaves_less_padding_than_chance(options: Callable[..., Any]) -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 2000)

    def padding(strategy: str) -> float:
        return steps.batches_part(lengths, options(train_sampling_strategy=strategy, max_length=512))["padding_share"]

    assert padding("group_by_length") < 0.1 < 0.3 < padding("random") < 0.6


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("rows_read", [1, 7, 8, 50, 101])
@pytest.mark.parametrize("epochs", [1, 2.5])
def test_steps_are_those_of_the_trainer(
    options: Callable[..., Any], rows_read: int, drop_last: bool, epochs: float
) -> None:
    import torch
    from transformers import Trainer

    arguments = options(
        per_device_train_batch_size=3, gradient_accumulation_steps=4, num_train_epochs=epochs,
        dataloader_drop_last=drop_last,
    )  # fmt: skip
    if drop_last and rows_read < 3:
        assert steps.steps_part(rows_read, (10, 5), arguments, 1)["steps"] == 0
        return
    trainer = Trainer(model=torch.nn.Linear(1, 1), args=arguments, train_dataset=[{"x": 1}] * rows_read)
    _, per_epoch, *_, max_steps = trainer.set_initial_training_values(arguments, trainer.get_train_dataloader())
    part = steps.steps_part(rows_read, (1000, 100), arguments, 1)
    assert (part["steps_per_epoch"], part["steps"]) == (per_epoch, max_steps)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("processes", [2, 3, 8])
@pytest.mark.parametrize("rows_read", [24, 25, 101])
def test_batches_are_dealt_to_processes_as_accelerate_does(
    options: Callable[..., Any], rows_read: int, processes: int, drop_last: bool
) -> None:
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    shard = BatchSamplerShard(BatchSampler(range(rows_read), 3, drop_last), processes, 0)
    arguments = options(per_device_train_batch_size=3, gradient_accumulation_steps=1, dataloader_drop_last=drop_last)
    part = steps.steps_part(rows_read, (10, 5), arguments, processes)
    assert part["steps_per_epoch"] == len(shard)
    assert part["effective_batch_size"] == 3 * processes


def test_max_steps_decides_and_the_epochs_follow(options: Callable[..., Any]) -> None:
    part = steps.steps_part(100, (5000, 1000), options(max_steps=40, per_device_train_batch_size=5), 1)
    assert (part["steps"], part["steps_per_epoch"], part["epochs"]) == (40, 20, 2.0)
    assert (part["tokens_per_step"], part["trained_tokens_per_step"]) == (250, 50)


def test_streamed_rows_have_the_steps_that_the_recipe_says_and_no_epoch(options: Callable[..., Any]) -> None:
    arguments = options(max_steps=40, per_device_train_batch_size=5)
    part = steps.steps_part(100, (5000, 1000), arguments, 1, streamed=True)
    assert (part["steps"], part["steps_per_epoch"], part["epochs"], part["tokens_per_step"]) == (40, None, None, 250)


def test_dropping_the_only_batch_is_a_problem(options: Callable[..., Any]) -> None:
    arguments = options(per_device_train_batch_size=8, dataloader_drop_last=True)
    plan = an_empty_plan(steps=steps.steps_part(5, (10, 5), arguments, 1))
    assert "leaves no full batch, so nothing would be trained" in judge.problems(plan)[0]


# Sizes


def llama(shape: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**shape)


def test_parameters_of_the_samsum_recipe_are_exact() -> None:
    part = sizes.count(load_recipe("samsum"), llama(LLAMA_32_1B), "bfloat16").part
    assert part["base"] == 1_235_814_400  # the embeddings, which the head shares, once
    assert part["trainable"] == 16 * 8 * (2 * (2048 + 2048) + 2 * (2048 + 512)) == 1_703_936
    assert part["total"] == 1_235_814_400 + 1_703_936
    assert part["share"] == pytest.approx(0.001377, rel=1e-3)
    assert part["saved_bytes"] == pytest.approx(4 * 1_703_936, rel=0.01)  # float32, also over 4-bit weights


def test_parameters_of_the_guanaco_recipe_are_exact() -> None:
    part = sizes.count(load_recipe("guanaco"), llama(LLAMA_2_7B), "float16").part
    assert part["base"] == 6_738_415_616
    assert part["trainable"] == 32 * 64 * 2 * (4096 + 4096) == 33_554_432
    assert part["saved_bytes"] == pytest.approx(4 * 33_554_432, rel=0.01)


def test_full_fine_tuning_trains_and_saves_all_parameters() -> None:
    part = sizes.count(load_recipe("llama32_1b_full"), llama(LLAMA_32_1B), "float32").part
    assert part["base"] == part["total"] == part["trainable"] == 1_235_814_400
    assert part["share"] == 1
    assert part["saved_bytes"] == pytest.approx(4 * 1_235_814_400, rel=0.001)


@pytest.mark.reference
def test_parameters_are_counted_from_a_folder_that_holds_a_config_only(reference: Path) -> None:
    config = modeling.load_config(
        load_recipe("samsum", overrides=[f"model.id={reference / 'model_configs' / 'Llama-3.2-1B-Instruct'}"]).model
    )
    assert sizes.count(load_recipe("samsum"), config, "bfloat16").part["trainable"] == 1_703_936


def test_adapter_on_layers_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lora\.target_modules: query_proj not in this model; its linear layers are"):
        sizes.count(tiny(tmp_path, "lora.target_modules=[query_proj]"), llama(LLAMA_32_1B), "float32")


def test_kinds_of_lora_that_need_weights_are_counted_without_them(tmp_path: Path) -> None:
    plain = sizes.count(tiny(tmp_path), llama(LLAMA_32_1B), "float32")
    assert (
        sizes.count(tiny(tmp_path, "lora.init_lora_weights=pissa"), llama(LLAMA_32_1B), "float32").part == plain.part
    )


def test_embeddings_of_added_tokens_are_counted_where_they_are_trained(tmp_path: Path) -> None:
    saved = tiny(tmp_path, "lora.modules_to_save=[embed_tokens, lm_head]")
    plain, more = (sizes.count(saved, llama(LLAMA_2_7B), "float32", tokens) for tokens in (32000, 32002))
    assert more.part["base"] - plain.part["base"] == 2 * 2 * 4096  # two rows in the embeddings, two in the head
    assert more.part["trainable"] - plain.part["trainable"] == 2 * 2 * 4096
    assert sizes.count(tiny(tmp_path), llama(LLAMA_2_7B), "float32", 32002).part["base"] == plain.part["base"]


def test_bytes_of_a_safetensors_file_are_counted_without_writing_it() -> None:
    import torch
    from safetensors.torch import save

    tensors = {"b.weight": torch.zeros(3, 5), "a.weight": torch.zeros(7, dtype=torch.bfloat16), "c": torch.zeros(2, 2)}
    counted = [parameters.plain_tensor(name, value) for name, value in tensors.items()]
    assert sizes.safetensors_bytes(counted) == len(save(tensors, metadata={"format": "pt"}))


def tensor(*shape: int, itemsize: int = 4) -> sizes.Tensor:
    return sizes.Tensor("weight", shape, "F32", itemsize)


@pytest.mark.parametrize(
    ("optim", "bytes_a_value"),
    [
        ("adamw_torch_fused", 8), ("paged_adamw_32bit", 8), ("paged_adamw_8bit", 2 * (1 + 4 / 256)), ("sgd", 0),
        ("lion_32bit", 4), ("an_optimiser_of_tomorrow", 8),
    ],
)  # fmt: skip
def test_optimiser_state_is_told_from_its_kind(optim: str, bytes_a_value: float) -> None:
    assert sizes.optimizer_bytes(optim, [tensor(1000, 100)]) == int(100_000 * bytes_a_value)


def test_optimiser_state_of_bf16_weights_is_bf16_and_of_small_8_bit_ones_is_not() -> None:
    assert sizes.optimizer_bytes("adamw_torch", [tensor(1000, itemsize=2)]) == 4000
    assert sizes.optimizer_bytes("adamw_8bit", [tensor(1000)]) == 8000
    assert sizes.optimizer_bytes("adafactor", [tensor(1000, 100), tensor(10)]) == 4 * (1100 + 10)


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"save_strategy": "no"}, 0),
        ({"save_steps": 200}, 1),  # the last step is saved whatever `save_steps` says
        ({"save_steps": 30}, 4),
        ({"save_steps": 30, "save_total_limit": 2}, 3),  # the third is written before the first goes
        ({"save_steps": 0.5, "save_total_limit": 5}, 2),
        ({"save_strategy": "epoch"}, 3),
        ({"save_strategy": "epoch", "save_total_limit": 1}, 2),
    ],
)
def test_checkpoints_are_counted_at_the_worst_moment(
    options: Callable[..., Any], values: dict[str, Any], kept: int
) -> None:
    assert sizes.checkpoints_kept(options(**values), steps=100, epochs=2.5) == kept


# Disk and access


def test_pickled_weights_are_downloaded_only_where_there_are_no_safetensors() -> None:
    files = [("config.json", 1), ("model.safetensors", 100), ("original/consolidated.00.pth", 900),
             ("pytorch_model.bin", 90), ("tokenizer.json", 10), ("README.md", 5)]  # fmt: skip
    assert disk.wanted_files(files) == [("model.safetensors", 100), ("config.json", 1), ("tokenizer.json", 10)]
    assert ("pytorch_model.bin", 90) in disk.wanted_files([file for file in files if file[0] != "model.safetensors"])


def test_what_does_not_fit_is_a_problem_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=3 * 2**30))
    uses = [{"what": "3 checkpoints", "bytes": 5 * 2**30, "estimated": True}]
    parts = disk.parts(tmp_path / "runs", uses, [])  # type: ignore[arg-type]
    assert not (tmp_path / "runs").exists()
    assert judge.problems(an_empty_plan(disk=parts)) == [
        f"{tmp_path / 'runs'}: about 5.0 GiB are needed and 3.0 GiB are free; "
        "make room, choose another folder with --runs-dir, or lower training.save_total_limit"
    ]


def test_runs_and_downloads_on_one_disk_add_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    run_uses, downloads = [[{"what": what, "bytes": 2**30, "estimated": False}] for what in ("model", "weights")]
    parts = disk.parts(tmp_path / "runs", run_uses, downloads)  # type: ignore[arg-type]
    assert [part["needed_bytes"] for part in parts] == [2 * 2**30]


def test_file_in_the_place_of_the_runs_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    assert "choose another folder with --runs-dir" in judge.problems(
        an_empty_plan(disk=disk.parts(tmp_path / "runs", [], []))
    )[0]  # fmt: skip


def refusal(kind: str, status: int) -> Exception:
    """An error as huggingface_hub raises it for an answer of the Hub."""
    from huggingface_hub import errors

    response = SimpleNamespace(status_code=status, headers={}, request=None)
    error: Exception = getattr(errors, kind).__new__(getattr(errors, kind))
    error.response = response  # type: ignore[attr-defined]
    return error


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A Hub that gives each of three questions an answer, or raises it."""

    def set_up(
        *, info: Any = None, whoami: Any = None, auth: Any = None, token: str | None = "hf_secretsecret"
    ) -> None:
        def answer(value: Any) -> Callable[..., Any]:
            def reply(*args: Any, **options: Any) -> Any:
                if isinstance(value, Exception):
                    raise value
                return value

            return reply

        public = SimpleNamespace(gated=False, private=False, sha="0123456789abcdef", siblings=[])
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
        monkeypatch.setattr("huggingface_hub.HfApi.repo_info", answer(info or public))
        monkeypatch.setattr("huggingface_hub.HfApi.whoami", answer(whoami or {"name": "ada"}))
        monkeypatch.setattr("huggingface_hub.HfApi.auth_check", answer(auth))

    return set_up


GATED = SimpleNamespace(gated="manual", private=False, sha="0123456789abcdef", siblings=[])


def said(recipe: str = "samsum") -> dict[str, tuple[bool | None, str]]:
    found = access.check(load_recipe(recipe)).findings
    assert "hf_secret" not in str(found)
    return {finding["what"]: (finding["ok"], finding["detail"]) for finding in found}


def test_recipe_on_this_machine_needs_no_hub(tmp_path: Path) -> None:
    assert access.check(tiny(tmp_path)).findings == [
        {"what": "Hub", "ok": True, "detail": "not needed: model and rows are on this machine"}
    ]


def test_offline_nothing_is_checked_and_nothing_fails() -> None:
    (finding,) = access.check(load_recipe("samsum")).findings
    assert finding["ok"] is None
    assert finding["detail"] == (
        "offline (HF_HUB_OFFLINE is set); needed for meta-llama/Llama-3.2-1B-Instruct, knkarthick/samsum"
    )


def test_refused_connection_counts_as_offline(hub: Callable[..., None]) -> None:
    hub(whoami=ConnectionRefusedError(111, "Connection refused"))
    assert said()["Hub"][1].startswith("offline (the Hub cannot be reached)")


def test_hub_that_does_not_answer_counts_as_offline(hub: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    hub()
    monkeypatch.setattr(access, "TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda self: threading.Event().wait(5))
    assert said()["Hub"] [1].startswith("offline (no answer within 0.05 seconds)")  # fmt: skip


def test_granted_access_is_said_for_token_model_and_rows(hub: Callable[..., None]) -> None:
    hub(info=GATED)
    assert said() == {
        "token": (True, "valid, account ada"),
        "model meta-llama/Llama-3.2-1B-Instruct": (True, "gated, and granted, at 0123456"),
        "dataset knkarthick/samsum": (True, "gated, and granted, at 0123456"),
    }


@pytest.mark.parametrize(
    ("problems", "expected"),
    [
        ([], (True, "possible")),
        (["the token of ada may only read; make one"], (None, "the token of ada may only read; make one")),
    ],
)
def test_whether_the_run_can_be_pushed_is_said_and_decides_nothing(
    hub: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    problems: list[str],
    expected: tuple[bool | None, str],
    tmp_path: Path,
) -> None:
    hub()
    monkeypatch.setattr(access, "check_before_training", lambda recipe: problems)
    findings = access.check(tiny(tmp_path, "publish.repo_id=ada/x")).findings
    assert (findings[-1]["what"], findings[-1]["ok"], findings[-1]["detail"]) == ("push to ada/x", *expected)


def test_gated_model_without_access_names_its_page(hub: Callable[..., None]) -> None:
    hub(info=GATED, auth=refusal("GatedRepoError", 403), token=None)
    found = said()
    assert found["token"] == (True, "none; enough for what is public")
    assert found["model meta-llama/Llama-3.2-1B-Instruct"] == (
        False,
        "gated, and not granted to this account; accept its licence on "
        "https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct and run `hf auth login`",
    )


@pytest.mark.parametrize(
    ("error", "ok", "sentence"),
    [
        (refusal("RepositoryNotFoundError", 404), False, "no such repository, or a private one; check the id"),
        (refusal("RevisionNotFoundError", 404), False, "has no revision None; see https://huggingface.co/meta-llama/"),
        (refusal("HfHubHTTPError", 503), None, "the Hub answered 503"),
    ],
)
def test_other_answers_of_the_hub_are_sentences(
    hub: Callable[..., None], error: Exception, ok: bool | None, sentence: str
) -> None:
    hub(info=error)
    found = said()["model meta-llama/Llama-3.2-1B-Instruct"]
    assert found[0] is ok and found[1].startswith(sentence)


def test_token_the_hub_does_not_accept_is_a_problem(hub: Callable[..., None]) -> None:
    hub(whoami=refusal("HfHubHTTPError", 401))
    assert said()["token"] == (False, "the Hub does not accept this machine's token; run `hf auth login` again")


def test_download_is_what_the_hub_lists_and_the_cache_lacks(
    hub: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    siblings = [SimpleNamespace(rfilename="model.safetensors", size=2_471_645_608),
                SimpleNamespace(rfilename="original/consolidated.00.pth", size=2_471_677_666),
                SimpleNamespace(rfilename="config.json", size=877)]  # fmt: skip
    hub(info=SimpleNamespace(**{**vars(GATED), "siblings": siblings}))
    recipe = load_recipe("samsum")
    files = access.check(recipe).model_files
    (use,) = disk.download_uses(recipe, 1_235_814_400, files)
    assert (use["bytes"], use["estimated"]) == (2_471_645_608 + 877, False)
    (guess,) = disk.download_uses(recipe, 1_235_814_400, None)
    assert (guess["bytes"], guess["estimated"]) == (2 * 1_235_814_400, True)


# Judging and showing


def verdict(**values: Any) -> dict[str, Any]:
    proof = {"name": "one_bos", "ok": False, "detail": "2 of 9 rows start twice", "remedy": "mend it", "fatal": True}
    return {"sample": None, "verdicts": [{**proof, **values}]}


def test_failed_proof_stops_training_unless_the_recipe_downgrades_it() -> None:
    assert judge.problems(an_empty_plan(proofs=verdict())) == ["one_bos: 2 of 9 rows start twice; mend it"]
    assert judge.problems(an_empty_plan(proofs=verdict(fatal=False))) == []
    assert judge.problems(an_empty_plan(proofs=verdict(ok=None))) == []
    assert judge.problems(an_empty_plan(proofs=verdict(ok=True))) == []


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({}, "failed       one_bos  2 of 9 rows start twice; mend it"),
        ({"fatal": False}, "warned       one_bos  2 of 9 rows start twice; mend it"),
        ({"ok": None}, "not checked  one_bos  2 of 9 rows start twice; mend it"),
        ({"ok": True}, "ok           one_bos  2 of 9 rows start twice"),
    ],
)
def test_every_proof_is_shown_with_its_verdict(values: dict[str, Any], shown: str) -> None:
    assert f"  {shown}" in text.lines(an_empty_plan(proofs=verdict(**values)))


def test_text_ends_with_the_answer() -> None:
    assert text.lines(an_empty_plan())[-1] == "Nothing was found that would stop training."
    failed = an_empty_plan(errors=[{"part": "rows", "message": "no such file"}, {"part": "config", "message": "none"}])
    assert text.lines(failed)[-3:] == ["Training would fail, for 2 reasons", "  1. no such file", "  2. none"]


def test_memory_and_time_that_are_not_told_say_why() -> None:
    plan = an_empty_plan(not_looked_at={"memory": "no such layers", "time": "no such card"})
    assert plan["memory"] is None and plan["time"] is None
    shown = text.lines(plan)
    assert shown[shown.index("Memory") + 1] == "  not looked at: no such layers"
    assert shown[shown.index("Time") + 1] == "  not looked at: no such card"


def test_values_of_the_recipe_are_shown_with_their_origin() -> None:
    plan = planning._empty(resolve("samsum", profiles=["smoke"], overrides=["lora.r=4"]))
    short, long = "\n".join(text.lines(plan)), "\n".join(text.lines(plan, origins=True))
    assert re.search(r"lora\.r +4 +--set\n", short)
    assert re.search(r"training\.save_steps +4 +profile smoke, samsum\.yaml:\d+\n", short)
    assert "card.license" not in short
    assert re.search(r"card\.license +null +default\n", long)


# The whole


@pytest.mark.slow
def test_plan_agrees_with_the_run_that_follows(tmp_path: Path) -> None:
    from recipe_kit.training import train

    resolved = resolve(recipe_file(tmp_path), overrides=["training.max_steps=-1", "training.num_train_epochs=2"])
    plan = planning.build(resolved, runs_dir=tmp_path / "runs", quality=False)
    assert judge.problems(plan) == []
    assert not (tmp_path / "runs").exists()
    folder = train(resolved.recipe, runs_dir=tmp_path / "runs")
    info = run_dir.read(folder)
    assert plan["steps"] and plan["parameters"] and plan["splits"] and plan["disk"]
    assert plan["steps"]["steps"] == info["training"]["steps"] == 12
    assert plan["steps"]["epochs"] == info["training"]["epochs"] == 2
    assert plan["steps"]["effective_batch_size"] == info["training"]["effective_batch_size"]
    assert plan["parameters"]["trainable"] == info["model"]["trainable_parameters"]
    assert plan["parameters"]["total"] == info["model"]["parameters"]
    assert plan["parameters"]["saved_bytes"] == (folder / "adapter" / "adapter_model.safetensors").stat().st_size
    for name, split in plan["splits"].items():
        assert split.items() <= info["data"]["splits"][name].items()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ("method=full", "lora=null"),
        ("method=qlora",),
        ("method=qlora", "model.dtype=bfloat16", "lora.modules_to_save=[lm_head]"),
        ("training.packing=true",),
    ],
)
def test_plan_agrees_with_runs_of_every_method(tmp_path: Path, changes: tuple[str, ...]) -> None:
    from recipe_kit.training import train

    overrides = ["training.max_steps=-1", "evaluation.after_training=false", *changes]
    resolved = resolve(recipe_file(tmp_path), overrides=overrides)
    plan = planning.build(resolved, runs_dir=tmp_path / "runs", quality=False)
    folder = train(resolved.recipe, runs_dir=tmp_path / "runs")
    info = run_dir.read(folder)
    weights = next(folder.glob("*/adapter_model.safetensors"), folder / "model" / "model.safetensors")
    assert plan["steps"] and plan["parameters"] and plan["disk"]
    assert plan["steps"]["steps"] == info["training"]["steps"]
    assert plan["parameters"]["trainable"] == info["model"]["trainable_parameters"]
    assert plan["parameters"]["total"] == info["model"]["parameters"]
    assert plan["parameters"]["saved_bytes"] == weights.stat().st_size
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert written < plan["disk"][0]["needed_bytes"]


@pytest.mark.slow
def test_shipped_recipe_is_planned_as_text_and_as_json(tmp_path: Path) -> None:
    words = ["samsum", "--profile", "smoke", "--runs-dir", str(tmp_path / "runs")]
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 100
    titles = ["Recipe", "Rows", "Tokens a row", "Trained tokens", "Batches", "Steps", "Parameters", "Disk", "Access",
              "Proofs", "Quality", "Memory", "Time"]  # fmt: skip
    assert [line for line in result.stdout.splitlines() if line in titles] == titles
    assert "8 steps" in result.stdout and "7,168 (5.50 %)" in result.stdout
    assert "proving rows" in result.stderr and "proving rows" not in result.stdout
    assert not (tmp_path / "runs").exists()

    planned = json.loads(run(*words, "--json", "--sample", "10", "--no-quality").stdout)
    assert set(planned) == {*Plan.__annotations__, "problems"}
    assert planned["schema_version"] == 1
    assert planned["problems"] == planned["errors"] == []
    assert planned["proofs"]["sample"] == 10
    assert planned["quality"] is None
    assert planned["steps"]["effective_batch_size"] == 2
    assert math.isclose(planned["trained"]["share"], sum(t["tokens"] for t in planned["trained"]["turns"])
                        / planned["trained"]["tokens"])  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["lora.target_modules=[query_proj]"], r"lora\.target_modules: query_proj not in this model"),
        (["data.train={path: nowhere.jsonl}"], r"nowhere\.jsonl: no such file or folder"),
        (["model.id=tiny:gpt"], r"model\.id: no tiny model 'tiny:gpt'; the styles are chatml"),
        (["data.max_length=8"], r"none of \d+ rows is left"),
        (
            ["data.max_length=80", "data.too_long=truncate"],
            r"answers_whole: .* are cut off .*warn: \[answers_whole\]",
        ),
        (
            ["data.eval={sample: support, limit: 4}"],
            r"no_overlap: rows that are measured on and trained on: 4 of data\.eval",
        ),
        (["data.streaming=true", "data.eval=null", "training.max_steps=-1"], r"set training\.max_steps"),
        (["training.optim=paged_adamw_8bit"], r"training\.optim: paged optimisers need a GPU"),
    ],
)
def test_wrong_recipe_ends_with_exit_code_1_and_its_sentence(
    tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    words = [word for change in overrides for word in ("--set", change)]
    result = run(recipe_file(tmp_path), *words, "--no-quality", "--runs-dir", str(tmp_path / "runs"))
    assert result.exit_code == 1
    assert re.search(sentence, " ".join(result.stdout.partition("Training would fail")[2].split()))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_proof_that_the_recipe_downgrades_is_shown_and_stops_nothing(tmp_path: Path) -> None:
    words = ["--set", "data.eval={sample: support, limit: 4}", "--set", "proofs.warn=[no_overlap]", "--no-quality"]
    result = run(recipe_file(tmp_path), *words)
    assert result.exit_code == 0
    assert re.search(r"warned +no_overlap +rows that are measured on and trained on: 4 of data\.eval", result.stdout)


@pytest.mark.slow
def test_rows_that_are_streamed_are_told_from_the_first_of_them(tmp_path: Path) -> None:
    streamed = ["data.streaming=true", "data.eval=null", "data.train={sample: support}"]
    plan = planning.build(resolve(recipe_file(tmp_path), overrides=streamed), quality=False)
    assert judge.problems(plan) == []
    assert plan["steps"] and plan["steps"]["steps"] == 4
    assert plan["steps"]["steps_per_epoch"] is None and plan["steps"]["tokens_per_step"] > 0
    assert "data.streaming: counts, lengths and proofs are of the first rows" in plan["notes"][0]


@pytest.mark.slow
def test_several_processes_share_the_steps_and_agree_only_once_they_run(tmp_path: Path) -> None:
    resolved = resolve(recipe_file(tmp_path), overrides=["training.max_steps=-1"])
    plan = planning.build(resolved, processes=3, quality=False, sample=5)
    assert plan["steps"] and plan["proofs"]
    assert (plan["steps"]["effective_batch_size"], plan["steps"]["steps_per_epoch"]) == (12, 2)
    agree = next(proof for proof in plan["proofs"]["verdicts"] if proof["name"] == "processes_agree")
    assert (agree["ok"], agree["detail"]) == (None, "looked at when the 3 processes have started")


def test_without_a_tokenizer_formatters_and_files_are_still_looked_at(tmp_path: Path) -> None:
    wrong = ("model.id=tiny:gpt", "data.formatter=suport", "data.test={path: nowhere.jsonl}")
    plan = planning.build(resolve(recipe_file(tmp_path), overrides=wrong), runs_dir=tmp_path)
    unknown_model, unknown_formatter, no_file = judge.problems(plan)
    assert unknown_model.startswith("model.id: no tiny model 'tiny:gpt'")
    assert unknown_formatter.startswith("unknown formatter 'suport'")
    assert no_file.endswith("nowhere.jsonl: no such file or folder")
    assert plan["not_looked_at"]["rows"] == "the tokenizer could not be loaded"


def test_refusal_of_the_hub_is_told_once(hub: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: Any) -> Any:
        raise ModelError("model.id: cannot load it")

    hub(info=GATED, auth=refusal("GatedRepoError", 403))
    monkeypatch.setattr(modeling, "load_tokenizer", refuse)
    monkeypatch.setattr(modeling, "load_config", refuse)
    plan = planning.build(resolve("samsum"))
    assert [problem.split(":")[0] for problem in judge.problems(plan)] == [
        "model meta-llama/Llama-3.2-1B-Instruct", "dataset knkarthick/samsum",
    ]  # fmt: skip
    assert plan["not_looked_at"]["tokenizer"] == "the Hub does not give the model"


def test_recipe_for_a_gpu_can_be_planned_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling, "uses_cpu", lambda recipe: True)
    plan = planning.build(resolve("samsum"))  # offline: neither model nor rows
    assert any("here training would stop: training.optim: paged optimisers" in note for note in plan["notes"])
    assert not any("paged" in problem for problem in judge.problems(plan))


@pytest.mark.slow
def test_a_sample_does_not_hide_an_overlap(tmp_path: Path) -> None:
    result = run(
        recipe_file(tmp_path), "--set", "data.eval={sample: support, limit: 4}", "--sample", "1", "--no-quality"
    )
    assert result.exit_code == 1
    assert "rows that are measured on and trained on: 4 of data.eval" in " ".join(result.stdout.split())
