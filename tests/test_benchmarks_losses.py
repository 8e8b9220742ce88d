"""The benchmarks of losses, memory and several GPUs: their tables, and that they compare like with like."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "speed")]

import losses  # noqa: E402
import memory  # noqa: E402
import recipes_of  # noqa: E402
import scaling  # noqa: E402
from works import Work  # noqa: E402

GIB = 2**30
FAST = {"attention": "torch_varlen", "kernels": "liger", "together": True, "padding_free": True}
PLAIN = {"attention": "sdpa", "kernels": "none", "together": False}


def run(configuration: str, seed: int, final: float, held_out: float, **more: Any) -> dict[str, Any]:
    return {
        "method": "lora",
        "configuration": configuration,
        "seed": seed,
        "final_loss": final,
        "held_out": {"loss": held_out, "tokens": 900, "rows": 200},
        "rows": [[5, 50, 600]],
        "start": 10.0,
        "trained_dtypes": ["float32"],
        "how": PLAIN if configuration == "plain" else FAST,
        **more,
    }


LOSSES = {
    "recorded": "2026-01-02",
    "machine": {"card": "H100"},
    "versions": {"torch": "2.13.0", "trl": "1.16.0"},
    "steps": 300,
    "rows_per_step": 16,
    "dropout": 0.0,
    "at_once": 6,
    "runs": [
        run("plain", 0, 1.0, 2.0),
        run("kit", 0, 1.001, 2.0),
        run("kit, bfloat16 adapters", 0, 1.02, 2.01, trained_dtypes=["bfloat16"]),
        run("plain", 1, 1.1, 2.2),
        run("kit", 1, 1.0978, 2.2012),
        {"method": "lora", "configuration": "kit, bfloat16 adapters", "seed": 1, "failed": "ValueError: a | b"},
    ],
}


def test_the_table_of_losses_shows_the_seed_with_the_largest_gap() -> None:
    table = losses.markdown(LOSSES).splitlines()
    assert table[2:5] == [
        "| lora | plain | float32 | 1.0500 ± 0.0707 |  | 2.1000 ± 0.1414 |  |  |",
        "| lora | kit | float32 | 1.0494 ± 0.0684 | -0.20% | 2.1006 ± 0.1423 | +0.05% | yes |",
        "| lora | kit, bfloat16 adapters | bfloat16 | 1.0200 | +2.00% | 2.0100 | +0.50% | no |",
    ]
    assert (
        '`kit`: `{"attention": "torch_varlen", "kernels": "liger", "padding_free": true, "together": true}`' in table
    )
    assert "Up to 6 runs at a time, so their times say nothing" in table[6]


def test_a_configuration_that_never_ran_is_told_with_its_reason() -> None:
    result = LOSSES | {"runs": [LOSSES["runs"][0], LOSSES["runs"][5]]}  # type: ignore[index]
    line = "| lora | kit, bfloat16 adapters | did not run: ValueError: a / b | | | | | |"
    assert line in losses.markdown(result).splitlines()


def test_runs_that_had_other_rows_are_not_compared() -> None:
    runs = copy.deepcopy(LOSSES["runs"])
    losses.check_same_rows(runs)  # type: ignore[arg-type]
    runs[1]["rows"] = [[5, 50, 601]]  # type: ignore[index]
    with pytest.raises(SystemExit, match="kit had other rows than plain in step 1"):
        losses.check_same_rows(runs)  # type: ignore[arg-type]


def test_runs_that_started_from_other_weights_are_not_compared() -> None:
    with pytest.raises(SystemExit, match="kit started from other weights than plain"):
        losses.check_same_rows([run("plain", 0, 1.0, 1.0), run("kit", 0, 1.0, 1.0, start=10.1)])


def test_configurations_of_a_method_and_seed_differ_in_nothing_else() -> None:
    options = losses.read_options(["--recipe", "quickstart", "--only", "lora", "--seeds", "3"])
    jobs = losses.jobs_of(options, Path("out"))
    assert [job["configuration"] for job in jobs] == ["plain", "kit", "kit, bfloat16 adapters"]
    assert losses.CONFIGURATIONS["qlora"] == losses.CONFIGURATIONS["lora"]
    assert len({tuple(job["overrides"]) for job in jobs}) == 1
    assert "training.seed=3" in jobs[0]["overrides"]
    assert "lora.lora_dropout=0.0" in jobs[0]["overrides"]


def test_results_of_several_sittings_become_one_in_the_order_of_the_table(tmp_path: Path) -> None:
    runs: list[Any] = LOSSES["runs"]  # type: ignore[assignment]
    later = LOSSES | {"at_once": 8, "runs": runs[3:5]}
    one = losses.joined([later, LOSSES | {"runs": runs[:3]}])
    assert [(run["configuration"], run["seed"]) for run in one["runs"]] == [
        ("plain", 0), ("plain", 1), ("kit", 0), ("kit", 1), ("kit, bfloat16 adapters", 0),
    ]  # fmt: skip
    assert one["at_once"] == 8 and not any("rows" in run for run in one["runs"])
    losses.write(tmp_path / "one.json", one)
    assert json.loads((tmp_path / "one.json").read_text()) == one
    table = losses.markdown(LOSSES | {"runs": runs[:5]}).splitlines()
    assert losses.markdown(one).splitlines()[2:5] == table[2:5]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 20}, "--table: steps is 300 in one file and 20 in another"),
        ({"machine": {"card": "T4"}}, "--table: machine is"),
        ({}, "--table: lora, plain, 0 is in two files"),
        ({"runs": [run("kit", 1, 1.0, 1.0, rows=[[5, 50, 601]])]}, "kit had other rows than plain in step 1"),
    ],
)
def test_results_that_do_not_belong_together_are_not_joined(changes: dict[str, Any], said: str) -> None:
    first = LOSSES | {"runs": LOSSES["runs"][:5]}  # type: ignore[index]
    with pytest.raises(SystemExit, match=said):
        losses.joined([first, first | changes])


def test_the_recorded_losses_are_those_of_the_pages() -> None:
    recorded = json.loads((BENCHMARKS / "results" / "losses_h100.json").read_text(encoding="utf-8"))
    table = losses.markdown(recorded).split("\n\n")[0]
    assert table.count("\n") == 1 + 2 + 3 + 3 and table in (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    for method in ("lora", "qlora"):
        single, half = ({run["seed"]: run for run in recorded["runs"]
                         if (run["method"], run["configuration"]) == (method, name)}
                        for name in ("kit", "kit, bfloat16 adapters"))  # fmt: skip
        assert len(single) == len(half) == 3
        for kind, lowest, highest in (("final", 2.45, 2.85), ("held_out", 1.15, 1.45)):  # told: 2.5 to 2.8, 1.2 to 1.4
            lower = [
                100 * (1 - losses.loss_of(single[seed], kind) / losses.loss_of(half[seed], kind)) for seed in half
            ]
            assert lowest < min(lower) < max(lower) < highest


CASE: dict[str, Any] = {
    "name": "lora-llama-3.2-1b",
    "micro_batch": {"rows": 1, "row_tokens": 8192, "tokens": 8192, "trained_tokens": 2456, "longest": 1024},
    "estimated_bytes": 11 * GIB,
    "planned_bytes": 12 * GIB,
    "needs_bytes": 13 * GIB,
    "peak_bytes": 10 * GIB,
    "reserved_bytes": int(10.5 * GIB),
    "taken_bytes": int(11.5 * GIB),
}
ON_A_CARD: dict[str, Any] = CASE | {
    "name": "guanaco, 8gb on rtx-3070",
    "card_case": {"recipe": "guanaco", "profile": "8gb", "card": "rtx-3070", "shape": "llama-2-7b"},
    "card_bytes": 12 * GIB,
    "parts": 1,
    "estimated_paged_bytes": 0,
    "chosen": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "packing": False,
        "optim": "paged_adamw_8bit",
    },
}
MEMORY: dict[str, Any] = {"recorded": "2026-01-02", "machine": {"card": "H100"}, "versions": {"torch": "2.13.0"}}


def test_the_table_of_estimates_says_the_largest_error() -> None:
    low = CASE | {"name": "low", "estimated_bytes": int(9.5 * GIB)}
    table = memory.markdown(MEMORY | {"cases": [CASE, low, {"name": "huge", "failed": "out of memory"}], "cards": []})
    assert table.splitlines() == [
        "| configuration | micro-batch | estimated | measured | error | planned | card needs | taken of the card |",
        "|---|---|---|---|---|---|---|---|",
        "| lora-llama-3.2-1b | 8,192 tokens, 2,456 trained | 11.00 | 10.00 | +10.0% | 12.00 | 13.00 | 11.50 |",
        "| low | 8,192 tokens, 2,456 trained | 9.50 | 10.00 | -5.0% | 12.00 | 13.00 | 11.50 |",
        "| huge | did not run: out of memory | | | | | | |",
        "",
        "GiB. Largest error +10.0% of 2 configurations: not within 8%.",
        "",
        "H100; torch 2.13.0; 2026-01-02",
    ]


def test_the_table_of_cards_says_what_was_chosen_and_whether_it_fits() -> None:
    table = memory.markdown(MEMORY | {"cases": [], "cards": [ON_A_CARD]})
    line = (
        "| guanaco, 8gb on rtx-3070 | Llama-2-7B | 12.00 | 2 rows × 2 | yes | paged_adamw_8bit | 12.00 | 10.00 "
        "| 10.50 | yes |"
    )
    assert table.splitlines()[2] == line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "yes"),
        ({"parts": 2}, "in 2 parts"),
        ({"reserved_bytes": 12 * GIB - 600 * 2**20}, "yes"),
        ({"reserved_bytes": 12 * GIB - 600 * 2**20 + 1}, "no"),
        ({"reserved_bytes": None}, ""),
        ({"taken_bytes": 13 * GIB}, "yes"),  # of the card as a whole: others may use it too
    ],
)
def test_a_recipe_fits_where_nothing_was_cut_and_what_was_reserved_leaves_room_for_cuda(
    changes: dict[str, Any], said: str
) -> None:
    assert memory.fits(ON_A_CARD | changes) == said


def test_every_method_and_size_is_measured_with_and_without_checkpointing() -> None:
    cases = memory.cases()
    names = [case.work.name for case in cases]
    assert len(set(names)) == len(cases) == 22
    pairs = [name for name in names if f"{name}-checkpointing" in names]
    assert len(pairs) == 9
    for case in cases:
        made = sum(case.work.lengths(memory.STEPS * case.accumulation))
        assert made >= memory.STEPS * case.accumulation * case.tokens  # no row is needed twice
        assert recipes_of.recipe_of(case.work).method == case.work.method


def test_sizes_of_micro_batches_are_those_the_estimate_asks_for() -> None:
    import torch

    ids = torch.ones(1, 6, dtype=torch.int64)
    labels = torch.tensor([[7, -100, 7, -100, 7, 7]])
    packed = {"input_ids": ids, "labels": labels, "position_ids": torch.tensor([[0, 1, 0, 1, 2, 3]])}
    assert memory.sizes_of(packed) == (1, 6, 6, 3, 4)  # the first label predicts nothing
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    padded = {"input_ids": ids.expand(2, 6)[:, :5], "labels": mask * 7, "attention_mask": mask}
    assert memory.sizes_of(padded)[:3] == (2, 5, 10)
    assert memory.sizes_of(padded)[4] == 4


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_work_becomes_the_recipe_that_trains_it(method: str) -> None:
    work = Work("a-work", "tiny", method, rows_per_step=36, rank=4, alpha=8, checkpointing=True)
    recipe = recipes_of.recipe_of(work, steps=5)
    assert recipe.method == method
    assert recipe.lora.get("r") == (None if method == "full" else 4)
    assert recipe.model.dtype == ("float32" if method == "full" else "bfloat16")
    assert recipe.training["gradient_accumulation_steps"] == 8  # packs of 1024 with the tokens of 36 rows
    assert recipe.training["gradient_checkpointing"] is True
    assert recipes_of.recipe_of(work, rows=12, packing=False).training["gradient_accumulation_steps"] == 3


def test_the_table_of_several_gpus_says_how_many_times_one_process() -> None:
    def ran(config: str, processes: int, speed: float) -> dict[str, Any]:
        told = {"config": config, "processes": processes, "tokens_per_second": speed, "peak_memory_bytes": 2 * GIB}
        return told | {"round": 0}

    runs = [ran("one", 1, 100.0), ran("multi_gpu", 2, 190.0), ran("one", 1, 110.0), ran("one", 1, 90.0)]
    runs.append({"round": 0, "config": "fsdp2", "processes": 2, "failed": "out of memory"})
    told = {"shape": "llama-3.2-1b", "method": "lora", "rows_a_process": 144, "steps": 15, "runs": runs}
    table = scaling.markdown(told | MEMORY)
    assert table.splitlines() == [
        "Llama-3.2-1B shape, lora, 144 rows a step and process, 15 timed steps.",
        "",
        "| launched with | processes | tokens/s | lowest to highest | times one process | peak GiB of the first |",
        "|---|---|---|---|---|---|",
        "| one | 1 | 100 | 90 to 110 |  | 2.0 |",
        "| multi_gpu | 2 | 190 | 190 to 190 | 1.90 | 2.0 |",
        "| fsdp2 | 2 | did not run: out of memory | | | |",
        "",
        "H100; torch 2.13.0; 2026-01-02",
    ]


def test_rows_of_the_benchmark_of_several_gpus_are_all_different() -> None:
    made = scaling.make_rows(200)
    assert len({row["instruction"] for row in made}) == len({row["response"] for row in made}) == 200
    assert made == scaling.make_rows(200)
