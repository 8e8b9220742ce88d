"""A plain TRL script that takes its labels and proofs from recipe-kit: no recipe, no launcher, no run folder.

    python train.py --model tiny:chatml --max-steps 4

Formatters turn rows into conversations, `label_rows` decides which tokens are learnt, the proofs stop the script
before the first step if something is wrong, and TRL's own SFTTrainer trains what it is given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import datasets
import trl
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe_kit import check_rows, label_rows, require
from recipe_kit.local_models import local_folder
from recipe_kit.modeling import choose_pad_token
from recipe_kit.wiring import check as check_wiring

ROWS = Path(__file__).with_name("questions.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="tiny:chatml", help="a Hub id, a folder, or tiny:STYLE for a wiring check")
    parser.add_argument("--max-steps", type=int, default=4)
    parser.add_argument("--output", default="out")
    options = parser.parse_args()

    where = str(local_folder(options.model) or options.model)
    tokenizer = AutoTokenizer.from_pretrained(where)
    tokenizer.pad_token = choose_pad_token(tokenizer, None)  # never the token that ends an answer
    model = AutoModelForCausalLM.from_pretrained(where)

    stored = datasets.load_dataset("json", data_files=str(ROWS), split="train")
    train = label_rows(stored, "question_answer", tokenizer, max_length=256)
    print(f"{train.counts.kept} rows, {train.counts.trained_tokens} of {train.counts.tokens} tokens are learnt")

    arguments = trl.SFTConfig(
        output_dir=options.output,
        max_steps=options.max_steps,
        per_device_train_batch_size=2,
        max_length=256,
        packing=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        bf16=False,
    )
    verdicts = check_rows({"train": train}, tokenizer, vocab_size=model.config.vocab_size)
    verdicts += check_wiring(arguments, train.rows, tokenizer, model.config)
    require(verdicts, print)  # stops here, with the reason, if one of them fails

    trainer = trl.SFTTrainer(model, args=arguments, train_dataset=train.rows, processing_class=tokenizer)
    trainer.train()


if __name__ == "__main__":
    main()
