"""What a user can do. One module a command; whatever is slow to import is imported inside the command's body."""

from __future__ import annotations

import click

import recipe_kit
from recipe_kit.cli._common import Sentences
from recipe_kit.cli.card import card
from recipe_kit.cli.chat import chat
from recipe_kit.cli.compare import compare
from recipe_kit.cli.doctor import doctor
from recipe_kit.cli.eval import eval_
from recipe_kit.cli.formatters import formatters
from recipe_kit.cli.launch import launch
from recipe_kit.cli.merge import merge
from recipe_kit.cli.plan import plan
from recipe_kit.cli.preview import preview
from recipe_kit.cli.push import push
from recipe_kit.cli.recipes import diff, list_, new, schema, show, validate
from recipe_kit.cli.report import report
from recipe_kit.cli.reproduce import reproduce
from recipe_kit.cli.sweep import sweep
from recipe_kit.cli.train import train


@click.group(cls=Sentences, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(recipe_kit.__version__, prog_name="recipe-kit")
def main() -> None:
    """Fine-tune a chat model from one YAML recipe, show what it learnt, and publish it.

    \b
    recipe-kit list                            recipes that ship
    recipe-kit new mine.yaml --from samsum     own a copy
    recipe-kit validate mine.yaml              every mistake at once
    recipe-kit plan mine.yaml                  what will happen, with proofs
    recipe-kit preview mine.yaml               the tokens it will learn
    recipe-kit train mine.yaml                 train, measure, compare with the base model
    recipe-kit launch mine.yaml --slurm        a job file for a cluster; --sky for rented machines
    recipe-kit eval runs/mine/latest           measure again
    recipe-kit report runs/mine/latest         all of a run on one page
    recipe-kit chat runs/mine/latest           talk to it, beside its base
    recipe-kit compare runs/a runs/b           one table over several runs
    recipe-kit sweep mine.yaml --over lora.r=8,16
    recipe-kit merge runs/mine/latest          adapter into 16-bit weights, checked against the adapter
    recipe-kit card runs/mine/latest           the model card, from what was measured
    recipe-kit push runs/mine/latest           publish on the Hub: planned, one commit, compared
    recipe-kit reproduce acme/mine             train it again from what it pins, and compare

    Shell completion: eval "$(_RECIPE_KIT_COMPLETE=bash_source recipe-kit)" (or zsh_source, fish_source).
    """


for command in (
    list_, new, show, diff, validate, plan, schema, formatters, preview, train, launch, eval_, report, compare, sweep,
    chat, merge, card, push, reproduce, doctor,
):  # fmt: skip
    main.add_command(command)
