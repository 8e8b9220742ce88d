"""The Modelfile: a TEMPLATE that writes what the tokenizer's chat template writes, the system prompt, the stops."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recipe_kit.gguf import go_template
from recipe_kit.gguf.tokens import space_prefix
from recipe_kit.gguf.turns import Inexpressible, Message, Render, Turns, take_apart

# A chat for each thing a template could get wrong; roles in the order that templates insist on.
_CHATS: list[list[str]] = [
    ["Hello"],
    ["What is 2 + 2?", "4", "And 3 + 3?"],
    ["नमस्ते, क्या हाल है? 👩\u200d💻", "ठीक 你好", "日本語 \u00a0é", "…", 'last "quoted"'],
    ["{{ .Content }} {% if x %} {x} }}", '{"a": {"b": 1}}', '"""\nend {{- end }}\n"""', "{{", "\\n $system"],
    ["one\n\ntwo", "1.\n\n2.", "three"],
]
_PADDED = ["  Hello \n", "\n Hi  ", " And now?\t"]
_SYSTEMS = ["Be brief.", 'Say "{{ yes }}" only.\nनमस्ते {']


def compose(
    file_name: str,
    weights: Path,
    tokenizer: Any,
    *,
    adds_bos: bool,
    system: str | None,
    report: Callable[[str], None] = lambda text: None,
) -> str:
    """The text of the Modelfile beside `file_name`.

    `adds_bos`: whether the GGUF file asks for BOS before every prompt; TEMPLATE then leaves it out. A chat template
    that does more than write turns, so that TEMPLATE would not render the same, is reported and left out.
    """
    render = renderer(tokenizer, adds_bos=adds_bos)
    if system is not None:
        system = _as_written(system, render)
    fits = system is None or _fits_modelfile(system)
    turns, template = _template(tokenizer, render, None if fits else system, report)
    lines = [
        "# ollama create NAME -f Modelfile",
        f"FROM ./{file_name}",
        *([] if template is None else [f'TEMPLATE """{template}"""']),
        *([f'SYSTEM """{system}"""'] if system is not None and fits else []),
        *(f'PARAMETER stop "{stop}"' for stop in stops(weights, tokenizer, turns)),
    ]
    return "\n".join(lines) + "\n"


def _template(
    tokenizer: Any, render: Render, system: str | None, report: Callable[[str], None]
) -> tuple[Turns | None, str | None]:
    """TEMPLATE and the turns it writes; `system` is a system prompt that SYSTEM cannot hold, to be a part of it."""
    if not tokenizer.chat_template:
        report("Modelfile: the tokenizer has no chat template, so Ollama gives the model its prompts as they are")
        return None, "{{ .Prompt }}"
    try:
        if "strftime_now(" in tokenizer.chat_template:
            raise Inexpressible("the chat template writes today's date, and Ollama's language cannot in that form")
        turns = take_apart(render)
        template = go_template.write(turns, system=system)
        _compare(template, render if system is None else _with_system(render, system), turns, report)
    except Inexpressible as reason:
        report(
            f"Modelfile: no TEMPLATE, because {reason}; Ollama then takes the nearest template it knows, if any: "
            "compare `ollama show --template NAME` with the chat template before you use its answers"
        )
        if system is not None:
            report("Modelfile: no SYSTEM either, which cannot hold this system prompt; send it with each chat")
        return None, None
    if re.search(r"\btools\b", tokenizer.chat_template):
        report("Modelfile: TEMPLATE writes messages only; the chat template's tools are not in it")
    return turns, template


def renderer(tokenizer: Any, *, adds_bos: bool) -> Render:
    """The text that Ollama is to tokenise for a chat: the chat template's, apart from what its tokenizer adds itself.

    That is BOS where the file asks for it. SentencePiece vocabularies may start a text, not what follows a control
    token, with a space of their own; the file says that nothing is added, so that space is written out. (llama.cpp,
    with the file's own chat template, goes without it: the prompt's first token is another, the rest the same.)
    """
    bos = str(tokenizer.bos_token or "")
    space = space_prefix(tokenizer) == (True, False)

    def render(messages: Sequence[Message], answer: bool) -> str | None:
        try:
            text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer)
        except Exception:  # templates refuse in their own words, as jinja errors of several kinds
            return None
        if space and not any(text.startswith(token) for token in tokenizer.all_special_tokens):
            text = f" {text}"
        return str(text.removeprefix(bos)) if adds_bos else str(text)

    return render


def stops(weights: Path, tokenizer: Any, turns: Turns | None) -> list[str]:
    """Texts at which an answer ends: the model's own end tokens, control tokens of the turns, how a turn opens.

    BOS is none of them unless it opens the answer too, as `<|im_start|>` does in some tokenizers.
    """
    file = weights / "generation_config.json"
    own = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    ids = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    found = [str(tokenizer.convert_ids_to_tokens(index)) for index in ids if index is not None]
    if turns:
        control = sorted({token.content for token in tokenizer.added_tokens_decoder.values() if token.special})
        pieces = [*turns.assistant, *turns.user, *([] if turns.folded or not turns.system else turns.system)]
        if str(tokenizer.bos_token) not in turns.assistant[0]:
            control = [token for token in control if token != tokenizer.bos_token]
        found += [token for piece in pieces for token in control if token in piece]
        for before in pieces[::2]:
            opener = before.removeprefix(str(tokenizer.bos_token or "")).strip().split("\n")[0]
            if not any(token in before for token in found) and len(opener) > 2 and not opener.isalnum():
                found.append(opener)
    return [stop for stop in dict.fromkeys(found) if stop.isprintable()]


def _compare(template: str, render: Render, turns: Turns, report: Callable[[str], None]) -> None:
    """Raises Inexpressible unless the template writes every sample chat as the tokenizer does."""
    for chat in _chats(_CHATS, turns):
        expected, written = render(chat, True), go_template.render(template, chat)
        if expected != written:
            raise Inexpressible(f"the chat template does more than write turns: {expected!r} for {written!r}")
    for chat in _chats([_PADDED], turns):
        expected, written = render(chat, True), go_template.render(template, chat)
        if expected is None or "".join(expected.split()) != "".join(written.split()):
            raise Inexpressible("the chat template changes messages that begin or end with spaces")
        if expected != written:
            report(
                "Modelfile: the chat template takes away spaces around messages and Ollama's language cannot; "
                "send messages without them"
            )
            return


def _chats(contents: list[list[str]], turns: Turns) -> list[list[Message]]:
    """Chats of these messages, with and without a system message."""
    chats = [
        [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)] for texts in contents
    ]
    systems = [[{"role": "system", "content": text}] for text in _SYSTEMS] if turns.system else []
    return [[*system, *chat] for system in [[], *systems] for chat in chats]


def _with_system(render: Render, system: str) -> Render:
    """A renderer that gives a chat without a system message this one."""

    def render_with(messages: Sequence[Message], answer: bool) -> str | None:
        own = any(message["role"] == "system" for message in messages)
        return render(messages if own else [{"role": "system", "content": system}, *messages], answer)

    return render_with


def _fits_modelfile(text: str) -> bool:
    """Whether Ollama's parser gives a text between triple quotes back unchanged.

    It leaves out characters that are not printed, and ends the text at a line that ends in triple quotes.
    """
    lines = text.split("\n")
    return all(line.replace("\t", "").isprintable() and not line.rstrip().endswith('"""') for line in lines)


def _as_written(system: str, render: Render) -> str:
    """The system prompt without the spaces around it, if the chat template takes them away."""
    user = {"role": "user", "content": "a"}
    texts = [render([{"role": "system", "content": text}, user], True) for text in (system, system.strip())]
    return system.strip() if texts[0] == texts[1] else system
