"""Two processes train what one does: the same weights, tokens, losses, split and scores, written by one of them."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from recipe_kit import run_dir
from topologies import FULL, STEPS, require_equal, train, weights

pytestmark = pytest.mark.slow
Train = Callable[..., Path]
IN_PARTS = ["training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=2"]
with_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="the package deepspeed is not installed (extra deepspeed)"
)
ZERO2 = pytest.param("zero2", marks=with_deepspeed)
ZERO3 = pytest.param("zero3", marks=with_deepspeed)
# Grouped by topology, so that workers of pytest-xdist seldom train the same twice.
in_two_processes = pytest.mark.parametrize("name", ["multi_gpu", "fsdp2", ZERO2, ZERO3], scope="module")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """The run of a topology, with LoRA or as `changes` say; the same one for all tests that ask for it."""

    @functools.cache
    def once(name: str, *changes: str) -> Path:
        return train(tmp_path_factory.mktemp("ranks") / name, name, *changes)

    return once


def said(run: Path) -> str:
    return run.parent.parent.with_suffix(".txt").read_text()


def require_same_files(one: Path, other: Path) -> None:
    """But for the weights, which `require_equal` compares."""
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    for path in one.glob("*.json"):
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


@in_two_processes
def test_two_processes_end_with_the_weights_of_one(trained: Train, name: str) -> None:
    """Losses and gradients are summed over the tokens of all, also those of a head that TRL does not call."""
    one, two = trained("single_gpu"), trained(name)
    assert max(float(value.abs().max()) for value in weights(one).values()) > 0.01
    require_equal(one, two)
    alone, shared = (run_dir.require_finished(run) for run in (one, two))
    assert (alone["processes"], shared["processes"]) == (1, 2)
    assert shared["speed"]["strategy"] == {"multi_gpu": "ddp"}.get(name, name)
    assert shared["data"] == alone["data"]
    for key in ("steps", "tokens", "effective_batch_size", "epochs"):
        assert shared["training"][key] == alone["training"][key], key


@in_two_processes
def test_an_odd_number_of_rows_is_measured_once_each(trained: Train, name: str) -> None:
    runs = trained("single_gpu"), trained(name)
    one, other = (run_dir.read_metrics(run) for run in runs)
    assert (one["rows"], other["rows"], other["processes"]) == (15, 15, 2)
    for which in ("base", "tuned"):
        assert other[which]["tokens"] == one[which]["tokens"]
        assert other[which]["loss"] == pytest.approx(one[which]["loss"], abs=1e-5)
    assert other["scores"]["rouge1"]["base"]["value"] == one["scores"]["rouge1"]["base"]["value"]
    lines = [run_dir.read_lines(run / run_dir.SCORES) for run in runs]
    assert [line["row"] for line in lines[1]] == [line["row"] for line in lines[0]]
    assert len(lines[1]) == 15 and all(line["answers"][0]["tuned"]["text"] is not None for line in lines[1])


@in_two_processes
def test_one_process_writes_the_run(trained: Train, name: str) -> None:
    one, two = trained("single_gpu"), trained(name)
    assert [path for path in two.parent.iterdir() if path.name != "latest"] == [two]
    require_same_files(one / "adapter", two / "adapter")
    assert said(two).count("saving to ") == 1 and said(two).count("step 4/4") == 1


@pytest.mark.parametrize(
    ("name", "of_the_second"),
    [
        ("fsdp2", "optimizer_0/__1_0.distcp"),
        pytest.param("zero2", f"global_step{STEPS}/zero_pp_rank_1_mp_rank_00_optim_states.pt", marks=with_deepspeed),
        pytest.param("zero3", f"global_step{STEPS}/zero_pp_rank_1_mp_rank_00_optim_states.pt", marks=with_deepspeed),
    ],
)
def test_shards_are_kept_in_checkpoints_and_let_go_before_measuring(
    trained: Train, name: str, of_the_second: str
) -> None:
    run = trained(name)
    assert (run / run_dir.CHECKPOINTS / f"checkpoint-{STEPS}" / of_the_second).is_file()
    assert "loading the saved weights to measure them" in said(run)


@pytest.mark.parametrize("name", ["fsdp2", ZERO3])
def test_full_weights_in_shares_are_those_of_one_process(trained: Train, name: str) -> None:
    one, other = trained("single_gpu", *FULL), trained(name, *FULL, *IN_PARTS)
    require_equal(one, other)
    require_same_files(one / "model", other / "model")
    alone = transformers.AutoModelForCausalLM.from_pretrained(other / "model").state_dict()
    assert all(value.equal(alone[key]) for key, value in weights(other).items())


@with_deepspeed
def test_zero3_gone_on_with_from_its_checkpoint_ends_as_if_never_killed(trained: Train, tmp_path: Path) -> None:
    changes = [*FULL, *IN_PARTS]
    whole = trained("zero3", *changes)
    run = train(tmp_path / "zero3", "zero3", *changes, dies=True)
    assert run_dir.read(run)["status"] != "finished"
    assert train(tmp_path / "zero3", "zero3", *changes, resume=True) == run
    assert all(value.equal(weights(run)[key]) for key, value in weights(whole).items())
    before, after = (run_dir.require_finished(done)["training"] for done in (whole, run))
    assert (before["resumed_at_step"], after["resumed_at_step"]) == (None, 2)
    assert after["tokens"] == before["tokens"] and after["final_loss"] == before["final_loss"]
