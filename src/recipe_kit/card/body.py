"""The text of a card: what it is and whether it helped, how to use it, then the evidence, in that order."""

from __future__ import annotations

from recipe_kit import lock
from recipe_kit.card import evaluation, samples, snippets, training
from recipe_kit.card.facts import Facts, counted
from recipe_kit.card.limits import limits
from recipe_kit.card.markdown import (
    bullets,
    code,
    dataset_link,
    details,
    fenced,
    model_link,
    plain,
    section,
    words_of_author,
)
from recipe_kit.card.metadata import training_datasets
from recipe_kit.card.private import cleaned, is_private
from recipe_kit.card.scores import source_name
from recipe_kit.card.vocabulary import language_name
from recipe_kit.report import files, words

_KIT = "recipe-kit"


def body(facts: Facts) -> str:
    """Everything below the metadata. A section without facts is left out, with its heading."""
    card = facts.recipe.card
    parts = [
        f"# {plain(facts.title)}",
        f"**{facts.duties.built_with}**" if facts.duties.built_with else "",
        " ".join(part for part in (_description(facts), what_it_is(facts)) if part),
        evaluation.headline(facts),
        section("Intended use", words_of_author(card.intended_use), _labelled("Out of scope", card.out_of_scope)),
        section("How to use it", snippets.usage(facts)),
        section("Evaluation", *evaluation.results(facts)),
        section("Sample answers", *samples.answers(facts)),
        section("Limitations", words_of_author(card.limitations), bullets(limits(facts))),
        section("Training data", *training.data(facts)),
        section("Training", *training.procedure(facts), *training.proofs(facts)),
        section("Merge", *training.merged(facts)),
        section("Reproduce it", *reproduce(facts)),
        section("Licence", *licence(facts)),
        section("Authors and contact", words_of_author(card.developed_by), _labelled("Contact", card.contact)),
        section("Citation", _citation(card.citation)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def what_it_is(facts: Facts) -> str:
    """One sentence: base, method, rows."""
    base = model_link(facts.base_id) if facts.base_id else _local_base(facts)
    kind = {"full": "with all weights fine-tuned", "lora": "fine-tuned with LoRA", "qlora": "fine-tuned with QLoRA"}
    method = kind[facts.recipe.method]
    name = {"lora": "a LoRA adapter", "qlora": "a QLoRA adapter"}.get(facts.recipe.method, "")
    if facts.what == "adapter":
        start = f"This is {name} for {base}"
    else:
        inside = "" if facts.is_full else ", the adapter merged into the weights"
        beside = f" (and alone in {code(snippets.SUBFOLDER + '/')})" if facts.what == "both" else ""
        start = f"This is {base} {method}{inside}{beside}"
    languages = words.listed([language_name(code_) for code_ in facts.languages])
    spoken = f" Language: {languages}." if languages else ""
    return (
        f"{start}, trained {_on_rows(facts)}with {_KIT} {facts.info.get('recipe_kit_version', '')}".rstrip()
        + f".{spoken}"
    )


def _on_rows(facts: Facts) -> str:
    kept = counted(files.section(facts.info, "data", "splits", "train").get("kept"))
    hub = training_datasets(facts)
    others = [plain(source_name(source)) for source in facts.recipe.data.train if source.id is None]
    names = words.listed([*map(dataset_link, hub), *dict.fromkeys(others)])
    if facts.recipe.data.streaming:
        return f"on streamed rows of {names} "
    return f"on {words.counted(kept, 'row')} of {names} " if kept else f"on {names} "


def _local_base(facts: Facts) -> str:
    kind = {"package": "a model from an installed Python package", "tiny": "a tiny random model for wiring checks"}
    return f"{code(facts.base_name)} ({kind.get(facts.base_kind, 'a model that is not on the Hub')})"


def reproduce(facts: Facts) -> list[str]:
    """The command, and the recipe with every value written out."""
    text = lock.public_recipe(facts.run)
    changed = ""
    if is_private(text):
        text, changed = cleaned(text), " Paths in it are shortened here."
    known = f"SHA-256 of its values then {code(str(facts.info.get('recipe_sha256', '')))}, {_KIT} "
    known += str(facts.info.get("recipe_kit_version", ""))
    parts = []
    if facts.repo_id and "/" in facts.repo_id:
        command = fenced(f"pip install {_KIT}\n{_KIT} reproduce {facts.repo_id}", "bash")
        parts.append(f"This trains it again from the same rows and revisions, and compares the numbers:\n\n{command}")
    rows = [source_name(source) for source in facts.recipe.data.train if source.path]
    if rows:
        parts.append(
            f"The rows of {plain(words.listed(rows))} are not published; whoever has them can train it again."
        )
    parts.append(f"The recipe it was trained with ({known}).{changed}")
    return [*parts, details("recipe.yaml", fenced(text, "yaml"))]


def licence(facts: Facts) -> list[str]:
    """The licence of what is published and of its base, in a line, and what the base's asks for."""
    own, base = _license_name(facts.license), _license_name(facts.base_license)
    if not own:
        return ["No licence is recorded for this model. The terms of its base model and of its rows apply."]
    from_base = "the licence of the base model" if facts.recipe.card.license is None else ""
    said = f"{own}, {from_base}." if from_base else f"{own}."
    if facts.recipe.card.license is not None and base and base != own:
        said += f" The base model is published under {base}, whose terms go on for what is made of it."
    duties = facts.duties
    parts = [said]
    if duties.notice:
        parts.append(plain(duties.notice) + ("" if duties.notice.endswith(".") else "."))
    if duties.link:
        text = f"[{duties.license_name}]({duties.link})"
        parts.append(
            f"Terms: {text}; they rule out [some uses]({duties.policy}). The weights were changed by fine-tuning."
        )
    return [" ".join(parts)]


def _license_name(entry: dict[str, str]) -> str:
    """`apache-2.0`, or name and link of one that is not on the Hub's list."""
    if not entry:
        return ""
    name = entry.get("license_name") if entry["license"] == "other" else entry["license"]
    link = entry.get("license_link")
    shown = code(name or entry["license"])
    return f"[{shown}]({link})" if link else shown


def _description(facts: Facts) -> str:
    text = facts.recipe.description
    return plain(words.sentence(text)) if text else ""


def _labelled(label: str, text: str | None) -> str:
    said = words_of_author(text)
    return f"**{label}:** {said}" if said else ""


def _citation(text: str | None) -> str:
    said = words_of_author(text)
    return fenced(said, "bibtex") if said.startswith("@") else said
