"""`recipe-kit chat`: talk to a tuned model, and to its base beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recipe_kit.cli._common import print_json, quiet_libraries, remark
from recipe_kit.errors import DataError, RecipeKitError
from recipe_kit.suggest import did_you_mean

if TYPE_CHECKING:
    from recipe_kit.chat import Answer, Chat, Decoding, Message, Which

PRECISIONS = ("bfloat16", "float16", "float32", "nf4")
BLOCK = '"""'
# Control characters, but for line ends and tabs.
_PICTURES: dict[int, int] = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_PICTURES |= dict.fromkeys(range(127, 160), 0xFFFD)
HELP = """\
/compare        show the base model's answer above the tuned one's, or stop doing so
/system TEXT    set the system prompt; alone: show it; /system "" removes it
/reset          forget the conversation; the system prompt stays
/save FILE      write the conversation as a row to train on; /save! FILE overwrites
/help           this list
/quit           leave, as does Ctrl-D; Ctrl-C stops an answer
A line that ends in \\ goes on in the next, and lines between two lines of \"\"\" are one message.
//text sends /text."""


@dataclass
class _Session:
    """A conversation and how it is answered."""

    chat: Chat
    decoding: Decoding
    which: Which
    compare: bool
    system: str | None
    turns: list[Message] = field(default_factory=list)
    unfinished: int = 0  # answers that were stopped, or cut off by --max-new-tokens

    @property
    def messages(self) -> list[Message]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]


@click.command()
@click.argument("target")
@click.option("--prompt", metavar="TEXT", help="Answer this and exit, the answer alone on stdout; - reads stdin.")
@click.option("--system", metavar="TEXT", help="System prompt, instead of the one the run was trained with.")
@click.option("--base", is_flag=True, help="Talk to the base model.")
@click.option("--compare", is_flag=True, help="Show the base model's answers above the tuned model's.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Longest answer in tokens."
)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, help="Default: 0, greedy.")
@click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=None, help="Needs --temperature.")
@click.option("--seed", type=click.IntRange(min=0), default=42, show_default=True, help="Of a temperature above 0.")
@click.option("--precision", type=click.Choice(PRECISIONS), default=None, help="Default: as it was trained.")
@click.option("--json", "as_json", is_flag=True, help="With --prompt: text, tokens, stopped and seconds as JSON.")
def chat(
    target: str,
    prompt: str | None,
    system: str | None,
    base: bool,
    compare: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float | None,
    seed: int,
    precision: str | None,
    as_json: bool,
) -> None:
    """Talk to TARGET: a run, a folder with weights or an adapter, or a Hub id.

    \b
    recipe-kit chat runs/samsum/latest
    recipe-kit chat runs/samsum/latest --prompt "Where is my order?"
    recipe-kit chat runs/samsum/latest --compare --temperature 0.7 --top-p 0.9
    """
    if base and compare:
        raise click.UsageError("--compare shows the base model's answers too: leave out --base")
    if as_json and prompt is None:
        raise click.UsageError("--json needs --prompt")
    if top_p is not None and not temperature:
        raise click.UsageError("--top-p needs --temperature: a greedy answer draws nothing")
    with suppress(AttributeError):  # bytes that are no text are refused with a sentence, once they are in a message
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    if prompt == "-":
        prompt = sys.stdin.read().removesuffix("\n")
    if prompt is not None and not prompt.strip():
        raise click.UsageError("--prompt is empty: there is nothing to answer")
    quiet_libraries()
    from recipe_kit.chat import Decoding, load

    remark(f"loading {target}")
    loaded = load(target, precision=precision, report=remark)
    session = _Session(
        chat=loaded,
        decoding=Decoding(max_new_tokens, temperature, 1.0 if top_p is None else top_p, seed),
        which="base" if base else "tuned",
        compare=compare,
        system=loaded.system if system is None else system or None,
    )
    if prompt is not None:
        _answer_once(session, prompt, as_json=as_json)
        return
    _check_system(session, session.system)
    session.chat.model(session.which)
    remark(_banner(session))
    _talk(session)


def _answer_once(session: _Session, prompt: str, *, as_json: bool) -> None:
    """`--prompt`: the answer on stdout, remarks on stderr. Ctrl-C leaves with 130."""
    session.turns = [{"role": "user", "content": prompt}]
    answers = _answers(session, quiet=as_json)
    if as_json:
        shown = {which: {k: v for k, v in answer.items() if k != "interrupted"} for which, answer in answers.items()}
        print_json(shown if session.compare else shown[session.which])
    if any(answer["interrupted"] for answer in answers.values()):
        sys.exit(130)


def _talk(session: _Session) -> None:
    """Read and answer until the input ends. What goes wrong with one message is said, and the chat goes on."""
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() a history and keys to edit with
    while True:
        try:
            message = _read_message()
            if message is None:
                return
            text, is_block = message
            if not text.strip():
                continue
            if is_block or not text.startswith("/"):
                _ask(session, text)
            elif text.startswith("//"):
                _ask(session, text[1:])
            elif not _command(session, text):
                return
        except KeyboardInterrupt:
            remark("\n/quit or Ctrl-D leaves")
        except RecipeKitError as error:
            remark(str(error))


def _ask(session: _Session, text: str) -> None:
    """One turn of the user and its answer. A turn that is refused, or stopped before its first word, is not kept."""
    before = list(session.turns)
    session.turns.append({"role": "user", "content": text})
    try:
        answer = _answers(session)[session.which]
    except BaseException:
        session.turns = before
        raise
    if answer["interrupted"] and not answer["text"]:
        session.turns = before
        return
    session.turns.append({"role": "assistant", "content": answer["text"]})
    session.unfinished += not answer["stopped"]


def _answers(session: _Session, *, quiet: bool = False) -> dict[Which, Answer]:
    """The answers asked for, written to stdout as they come unless `quiet`; base first where both are shown."""
    from recipe_kit.chat import reply

    asked: tuple[Which, ...] = ("base", "tuned") if session.compare else (session.which,)
    found: dict[Which, Answer] = {}
    for which in asked:
        if session.compare and not quiet:
            click.echo(click.style(f"{which}:", bold=True))
        write: Callable[[str], None] = _ignore if quiet else _write
        found[which] = answer = reply(
            session.chat, session.messages, which=which, decoding=session.decoding, write=write
        )
        if not quiet:
            click.echo()
        if answer["interrupted"]:
            remark("(stopped)")
        elif not answer["text"]:
            remark("(an empty answer)")
        elif not answer["stopped"]:
            remark(f"(cut off after {answer['tokens']:,} tokens; see --max-new-tokens)")
    return found


def _command(session: _Session, line: str) -> bool:
    """Do what a line that begins with / says; False to leave."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    match name:
        case "/quit" | "/exit":
            return False
        case "/help":
            remark(HELP)
        case "/compare":
            _toggle_compare(session)
        case "/system":
            _set_system(session, rest)
        case "/reset":
            session.turns.clear()
            session.unfinished = 0
            remark("the conversation is forgotten")
        case "/save" | "/save!":
            _save(session, rest, overwrite=name == "/save!")
        case _:
            known = ["/compare", "/system", "/reset", "/save", "/help", "/quit"]
            remark(f"no command {name}{did_you_mean(name, known) or '; /help lists them'} (//text sends /text)")
    return True


def _toggle_compare(session: _Session) -> None:
    if not session.compare:
        if not session.chat.is_adapter:
            remark("loading the base model, unless it is loaded already")
        session.chat.model("base")
        session.which = "tuned"
    session.compare = not session.compare
    both = "both models answer, and the conversation goes on from the tuned one's answer"
    remark(both if session.compare else "only the tuned model answers")


def _set_system(session: _Session, text: str) -> None:
    if text:
        system = None if text in ('""', "''") else text
        _check_system(session, system)
        session.system = system
    remark(f"system prompt: {session.system}" if session.system else "no system prompt")


def _check_system(session: _Session, system: str | None) -> None:
    """Raises LabelError for a system prompt that the template refuses, before anything is asked."""
    from recipe_kit.chat import check_messages

    if system:
        turns: list[Message] = [{"role": "system", "content": system}, {"role": "user", "content": "Hi"}]
        check_messages(session.chat, turns, which=session.which)


def _save(session: _Session, file: str, *, overwrite: bool) -> None:
    """Write the conversation as one row of the `messages` formatter, and say when training would refuse it."""
    from recipe_kit.chat import check_trainable

    if not file:
        raise DataError("/save needs a file, such as /save mine.jsonl")
    if not any(turn["role"] == "assistant" and turn["content"] for turn in session.turns):
        raise DataError("nothing to save yet: no answer was given")
    path = Path(file).expanduser()
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists already; choose another name, or overwrite it with /save! {file}")
    row = json.dumps({"messages": session.messages}, ensure_ascii=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(row + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
    remark(f"saved {len(session.turns)} turns to {path}")
    if session.unfinished:
        remark(f"{session.unfinished} of its answers did not end by themselves: correct them before you train on it")
    try:
        check_trainable(session.chat, session.messages)
    except RecipeKitError as error:
        remark(f"training would refuse this row: {error}")


def _read_message() -> tuple[str, bool] | None:
    """The next message, and whether it stood in a block of lines; None at the end of the input."""
    line = _read_line("> ")
    if line is None:
        return None
    if line.strip() == BLOCK:
        lines = []
        while (line := _read_line("... ")) is not None and line.strip() != BLOCK:
            lines.append(line)
        if line is None:
            remark(f"the input ended within {BLOCK}: nothing was sent")
            return None
        return "\n".join(lines), True
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        following = _read_line("... ")
        if following is None:
            break
        lines.append(following)
    return "\n".join(lines), False


def _read_line(sign: str) -> str | None:
    """A line without its end; None at the end of the input. `sign` is shown to a person only."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
    try:
        if sys.stdout.isatty():
            return input(sign)
        click.echo(sign, nl=False, err=True)
        return input()
    except EOFError:
        remark("")
        return None


def _write(piece: str) -> None:
    click.echo(_visible(piece) if sys.stdout.isatty() else piece, nl=False)


def _ignore(piece: str) -> None:
    pass


def _visible(text: str) -> str:
    """Control characters as pictures: what a model writes must not steer a terminal."""
    return text.translate(_PICTURES)


def _banner(session: _Session) -> str:
    chat, decoding = session.chat, session.decoding
    base = chat.recipe.model.id
    kind = base if chat.weights is None else f"adapter on {base}" if chat.is_adapter else f"all weights, from {base}"
    drawn = f"drawn at temperature {decoding.temperature:g}, top-p {decoding.top_p:g}, seed {decoding.seed}"
    answers = "; the base model answers" if session.which == "base" else ""
    lines = [
        f"{chat.name}: {kind}, weights in {chat.weights_type}{answers}",
        f"answers: {drawn if decoding.temperature else 'greedy'}, so the same conversation gets the same answer",
        f"system prompt: {session.system}" if session.system else "no system prompt",
        "/help lists the commands, Ctrl-D leaves",
    ]
    return "\n".join(lines)
