"""From a folder of full weights to `NAME.gguf` and `Modelfile`, by llama.cpp's own converter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe_kit.errors import MergeError
from recipe_kit.gguf import check, modelfile, tokens
from recipe_kit.suggest import did_you_mean

OUTTYPES = ("f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto")  # what the converter itself writes
CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf.py")
QUANTIZER = "llama-quantize"
MODELFILE = "Modelfile"

_GET = "`git clone https://github.com/ggml-org/llama.cpp`, then give its folder: `--llama-cpp llama.cpp`"


@dataclass(frozen=True)
class Tools:
    """What writes one type of file: `quantizer` makes `quantized` of what the converter wrote, where there is one."""

    converter: Path
    written: str  # of OUTTYPES
    quantizer: Path | None
    quantized: str | None


def export(
    weights: Path,
    out: Path,
    *,
    outtype: str,
    llama_cpp: Path | str | None = None,
    system: str | None = None,
    name: str = "model",
    report: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Write `out/NAME-OUTTYPE.gguf` and `out/Modelfile` from a folder of full weights; the two paths.

    `outtype` is one of OUTTYPES, or a type of llama-quantize such as `Q4_K_M`. `system` is the system prompt that the
    model was trained with, if it was a fixed one. What could not be proved or said is told to `report`.
    Raises MergeError when a tool is missing, fails, or wrote another model than the one in `weights`; then `out` is
    as it was before.
    """
    tools = find_tools(outtype, llama_cpp)
    kind = tools.quantized or tools.written
    tokenizer = _tokenizer(weights)
    file_name = f"{name}-{kind}.gguf"
    part = out.parent / f".{out.name}-{kind}.part"  # the same name each time: what a killed export left is found again
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        file = part / file_name
        report(f"converting {weights.name} to {kind} with {tools.converter.name}")
        _convert(tools, _source(weights, part / "source", tokens.tokenizer_settings(weights, tokenizer)), file, name)
        reader = check.open_file(file)
        tokens.settle_scores(reader, weights, report)
        adds_bos = tokens.settle_flags(reader, tokenizer, report)
        check.compare(reader, file, weights, tokenizer, kind=kind, report=report)
        text = modelfile.compose(file_name, weights, tokenizer, adds_bos=adds_bos, system=system, report=report)
        (part / MODELFILE).write_text(text, encoding="utf-8", newline="\n")
        out.mkdir(parents=True, exist_ok=True)
        return [(part / written).replace(out / written) for written in (file_name, MODELFILE)]
    except OSError as error:
        raise MergeError(f"{out}: the export cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def find_tools(outtype: str, llama_cpp: Path | str | None = None) -> Tools:
    """All that an export to this type needs. Raises MergeError for an unknown type, and for what is missing."""
    check.require_gguf()
    written, quantized = _types(outtype)
    converter = find_converter(llama_cpp)
    return Tools(converter, written, find_quantizer(converter) if quantized else None, quantized)


def find_converter(llama_cpp: Path | str | None = None) -> Path:
    """llama.cpp's `convert_hf_to_gguf.py`: the path given or in the folder given, else in `$LLAMA_CPP`, else on PATH.

    Raises MergeError where it is not, saying how to get it.
    """
    given = llama_cpp or os.environ.get("LLAMA_CPP")
    if given is None:
        found = [path for name in CONVERTERS if (path := _on_path(name))]
    else:
        found = [path for path in (Path(given), *(Path(given) / name for name in CONVERTERS)) if path.is_file()]
    if not found:
        where = f"not in {given}" if given else "neither in $LLAMA_CPP nor on PATH"
        raise MergeError(f"--gguf needs llama.cpp's {CONVERTERS[0]}, which is {where}: {_GET}")
    return found[0]


def find_quantizer(converter: Path) -> Path:
    """The built `llama-quantize` of the converter's folder, or on PATH. Raises MergeError where it is not."""
    folder = converter.parent
    for place in ("build/bin", "build/bin/Release", "."):
        for name in (QUANTIZER, f"{QUANTIZER}.exe"):
            if (folder / place / name).is_file():
                return folder / place / name
    if found := _on_path(QUANTIZER):
        return found
    raise MergeError(
        f"--gguf: this type needs llama.cpp's {QUANTIZER}, which is neither in {folder / 'build/bin'} nor on PATH; "
        f"build it (`cmake -B build && cmake --build build --target {QUANTIZER}` in llama.cpp), or take one of "
        f"{', '.join(OUTTYPES)}, which need no program"
    )


def _on_path(name: str) -> Path | None:
    """A file of this name in a folder of PATH; scripts count whether or not they may be executed."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if folder and (Path(folder) / name).is_file():
            return Path(folder) / name
    return None


def _types(outtype: str) -> tuple[str, str | None]:
    """What the converter is to write, and what llama-quantize is to make of it, if anything."""
    from gguf import LlamaFileType

    if outtype.lower() in OUTTYPES:
        return outtype.lower(), None
    types = {kind.name.removeprefix("MOSTLY_") for kind in LlamaFileType if kind.name.startswith("MOSTLY_")}
    types -= {kind.upper() for kind in OUTTYPES}
    if outtype.upper() in types:
        return "auto", outtype.upper()
    hint = did_you_mean(outtype.upper(), sorted(types | {kind.upper() for kind in OUTTYPES}))
    raise MergeError(
        f"--gguf: no type {outtype!r}{hint}; llama.cpp writes {', '.join(OUTTYPES)}, and Q4_K_M and the like with "
        f"{QUANTIZER}"
    )


def _tokenizer(weights: Path) -> Any:
    from transformers import AutoTokenizer

    if not (weights / "config.json").is_file():
        raise MergeError(
            f"{weights}: no config.json; expected a folder of full weights, as `recipe-kit merge` writes it"
        )
    try:
        return AutoTokenizer.from_pretrained(weights)
    except (OSError, ValueError) as error:
        raise MergeError(f"{weights}: its tokenizer cannot be read: {str(error).splitlines()[0]}") from error


def _convert(tools: Tools, source: Path, file: Path, name: str) -> None:
    """Write `file` from the folder `source`; afterwards it is there."""
    first = file.with_name("unquantized.gguf") if tools.quantizer else file
    command = [sys.executable, tools.converter, source, "--outfile", first, "--outtype", tools.written]
    _run([*command, "--model-name", name], f"{tools.converter.name} cannot convert these weights")
    if tools.quantizer and tools.quantized:
        _run([tools.quantizer, first, file, tools.quantized], f"{QUANTIZER} cannot make {tools.quantized} of them")
    if not file.is_file():
        raise MergeError(f"{tools.converter.name} ended without an error and without a file; update llama.cpp")


def _source(weights: Path, folder: Path, settings: dict[str, Any]) -> Path:
    """`weights`, or where tokenizer settings are to be added, a folder of links to its files with these added.

    The converter takes such settings from tokenizer_config.json only.
    """
    if not settings:
        return weights
    folder.mkdir()
    for file in weights.resolve().iterdir():
        if file.is_file() and file.name != "tokenizer_config.json":
            (folder / file.name).symlink_to(file)
    own = json.loads((weights / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**own, **settings}), encoding="utf-8")
    return folder


def _run(command: list[Any], what: str) -> None:
    """Run a tool quietly. Raises MergeError with the last line it wrote if it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    try:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, errors="replace", env=environment,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except OSError as error:
        raise MergeError(f"{what}: {error.strerror or error}") from error
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise MergeError(f"{what}: {lines[-1] if lines else f'it ended with code {done.returncode}'}")
