"""GGUF files and Modelfiles.

llama.cpp's converter is no Python package: a stand-in writes real GGUF files here, through the gguf package, and goes
wrong on demand. Where LLAMA_CPP names a llama.cpp folder, its own converter is run too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipe_kit import gguf as export_module
from recipe_kit.errors import MergeError
from recipe_kit.gguf import check, go_template, modelfile, tokens
from turns import assistant, system, user

gguf = pytest.importorskip("gguf")

CHATS = [
    [user("Hi")],
    [user("नमस्ते 👩\u200d💻"), assistant("{{ .Content }} {% x %}"), user('"""\nend }}\n{')],
    [system("Be brief."), user("Hi"), assistant("Hello"), user("Bye"), assistant("Bye"), user("Still there?")],
]


# --- the stand-in for llama.cpp's converter ---


def fake_converter() -> None:
    """`convert_hf_to_gguf.py FOLDER --outfile FILE --outtype TYPE ...`; $FAULT says what it gets wrong."""
    fault = os.environ.get("FAULT", "")
    if fault == "exit":
        sys.exit("INFO: loading\nNotImplementedError: BPE pre-tokenizer was not recognized")
    folder, options = Path(sys.argv[1]), dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    if fault != "no file":
        write_gguf(folder, Path(options["--outfile"]), options["--outtype"], fault)
    if fault == "half":
        os.truncate(options["--outfile"], 1000)


def write_gguf(folder: Path, file: Path, outtype: str = "f32", fault: str = "") -> Path:
    """A tiny Llama as GGUF, as llama.cpp's converter writes it."""
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    add_vocabulary(writer, folder, config["vocab_size"], fault)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, value in load_file(folder / "model.safetensors").items():
        if fault == "tensor" and "layers.1.mlp.up" in name:
            continue
        if fault == "weights" and "layers.1.mlp" in name:
            value = value[::-1].copy()
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if part in name and fault != "order":
                value = value.reshape(count, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        kind = np.float16 if outtype == "f16" and value.ndim > 1 else np.float32
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value.astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add_vocabulary(writer: Any, folder: Path, size: int, fault: str = "") -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    ids = sorted((index, token) for token, index in tokenizer["model"]["vocab"].items())
    ids = ids[:-1] if fault == "vocabulary" else ids
    sentencepiece = tokenizer["model"].get("byte_fallback")
    writer.add_tokenizer_model("llama" if sentencepiece else "gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for _, token in ids])
    if sentencepiece:
        writer.add_token_scores([-1000.0] * len(ids))
    writer.add_token_types([3 if index in special and fault != "types" else 1 for index, _ in ids])
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if settings.get("add_prefix_space") is not None:
        writer.add_add_space_prefix(settings["add_prefix_space"])
    vocabulary = gguf.SpecialVocab(folder, load_merges=not sentencepiece)
    if fault == "template":
        vocabulary.chat_template = "{{ messages }}"
    if fault == "eos":
        vocabulary.special_token_ids["eos"] += 1
    vocabulary.add_to_gguf(writer, quiet=True)


@pytest.fixture
def llama_cpp(tmp_path: Path) -> Path:
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    script = (
        f"import sys\nsys.path[:0] = {[str(Path(__file__).parent)]!r}\nimport test_gguf\ntest_gguf.fake_converter()\n"
    )
    (folder / "convert_hf_to_gguf.py").write_text(script)
    return folder


@pytest.fixture(scope="module")
def weights(caches_of_this_session: Path) -> Callable[[str], Path]:
    from recipe_kit.local_models import local_folder

    return lambda style: local_folder(f"tiny:{style}") or Path()


def values(file: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "llama.cpp")


# --- the file ---


@pytest.mark.slow
def test_an_export_is_the_trained_model_with_its_chat_template(
    tmp_path: Path, llama_cpp: Path, weights: Callable[[str], Path]
) -> None:
    """unsloth #3899, #695, #798, #1823, LLaMA-Factory #6320: the exported model talks nonsense, unnoticed."""
    said: list[str] = []
    written = export_module.export(
        weights("chatml"), tmp_path / "gguf", outtype="f32", llama_cpp=llama_cpp, name="helper", report=said.append
    )
    assert written == [tmp_path / "gguf" / "helper-f32.gguf", tmp_path / "gguf" / "Modelfile"]
    assert leftovers(tmp_path) == ["gguf"]
    assert leftovers(tmp_path / "gguf") == ["Modelfile", "helper-f32.gguf"]
    found = values(written[0])
    assert found["tokenizer.chat_template"] == (weights("chatml") / "chat_template.jinja").read_text()
    assert found["tokenizer.ggml.add_bos_token"] is False  # said, or llama.cpp and Ollama each guess
    assert any("16 of 16 greedy tokens" in text for text in said)
    assert written[1].read_text().startswith("# ollama create NAME -f Modelfile\nFROM ./helper-f32.gguf\nTEMPLATE ")


@pytest.mark.slow
def test_other_weights_are_found_by_their_answers_and_leave_no_file(
    tmp_path: Path, llama_cpp: Path, weights: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "order")  # the rows of q and k in the wrong order: every name and shape is right
    with pytest.raises(MergeError, match=r"is not kept: its logits are 1\.\d+% of their spread apart.*; update"):
        export_module.export(weights("llama3"), tmp_path / "gguf", outtype="f16", llama_cpp=llama_cpp)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("template", "its chat template is another one"),
        ("eos", "its eos token is 1, trained was 0"),
        ("types", "its token '<|im_end|>' is no control token"),
        ("vocabulary", "it has 767 tokens and 768 embeddings"),
        ("tensor", r"it lacks blk.1.ffn_up.weight \(1 in all\)"),
    ],
)
def test_a_file_that_is_not_the_model_is_named_for_what_differs(
    tmp_path: Path, weights: Callable[[str], Path], tiny_tokenizer: Any, fault: str, sentence: str
) -> None:
    file = write_gguf(weights("chatml"), tmp_path / "model.gguf", fault=fault)
    with pytest.raises(MergeError, match=sentence):
        check.compare(
            check.open_file(file), file, weights("chatml"), tiny_tokenizer("chatml"), kind="f32", report=print
        )


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("exit", "convert_hf_to_gguf.py cannot convert these weights: NotImplementedError: BPE pre-tokenizer was not"),
        ("half", r"model-f32.gguf: not a GGUF file \("),
        ("no file", "ended without an error and without a file; update llama.cpp"),
    ],
)
def test_a_failed_conversion_is_one_sentence_and_leaves_what_was_there(
    tmp_path: Path,
    llama_cpp: Path,
    weights: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    sentence: str,
) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model-f32.gguf").write_text("an earlier export")
    (tmp_path / ".gguf-f32.part").mkdir()  # of an export that was killed
    monkeypatch.setenv("FAULT", fault)
    with pytest.raises(MergeError, match=sentence) as error:
        export_module.export(weights("chatml"), tmp_path / "gguf", outtype="f32", llama_cpp=llama_cpp)
    assert "\n" not in str(error.value)
    assert leftovers(tmp_path) == ["gguf"]
    assert (tmp_path / "gguf" / "model-f32.gguf").read_text() == "an earlier export"


@pytest.mark.slow
def test_k_quants_are_made_by_llama_quantize(tmp_path: Path, llama_cpp: Path, weights: Callable[[str], Path]) -> None:
    (llama_cpp / "build" / "bin").mkdir(parents=True)
    program = llama_cpp / "build" / "bin" / "llama-quantize"
    program.write_text(f'#!/bin/sh\ncp "$1" "$2"\necho "$3" > {tmp_path}/asked\n')
    program.chmod(0o755)
    written = export_module.export(weights("chatml"), tmp_path / "gguf", outtype="q4_k_m", llama_cpp=llama_cpp)
    assert [path.name for path in written] == ["model-Q4_K_M.gguf", "Modelfile"]
    assert (tmp_path / "asked").read_text() == "Q4_K_M\n"


def test_a_missing_quantizer_names_the_types_that_need_none(llama_cpp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MergeError, match="llama-quantize, which is neither in .*/bin nor on PATH.* f32, f16, bf16"):
        export_module.find_tools("Q4_K_M", llama_cpp)


def test_an_unknown_type_names_the_nearest() -> None:
    with pytest.raises(MergeError, match="no type 'Q4_KM'; did you mean Q4_K_M"):
        export_module.find_tools("Q4_KM")


def test_the_converter_is_found_where_it_is_said_to_be(
    llama_cpp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = llama_cpp / "convert_hf_to_gguf.py"
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert export_module.find_converter(llama_cpp) == export_module.find_converter(script) == script
    with pytest.raises(MergeError, match=r"neither in \$LLAMA_CPP nor on PATH: `git clone .*`--llama-cpp llama.cpp`"):
        export_module.find_converter()
    with pytest.raises(MergeError, match="convert_hf_to_gguf.py, which is not in .*: `git clone"):
        export_module.find_converter(tmp_path)
    monkeypatch.setenv("PATH", f"/nowhere{os.pathsep}{llama_cpp}")
    assert export_module.find_converter() == script
    monkeypatch.setenv("LLAMA_CPP", str(llama_cpp))
    assert export_module.find_converter() == script


def test_without_the_gguf_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MergeError, match=r"pip install 'recipe-kit\[demo\]'"):
        export_module.find_tools("f16")


def test_a_folder_without_weights_is_refused(tmp_path: Path, llama_cpp: Path) -> None:
    with pytest.raises(MergeError, match="no config.json; expected a folder of full weights, as `recipe-kit merge`"):
        export_module.export(tmp_path, tmp_path / "gguf", outtype="f16", llama_cpp=llama_cpp)


# --- the tokens ---


@pytest.mark.parametrize(("style", "adds_bos"), [("tinyllama", False), ("llama2", True), ("llama3", True)])
def test_bos_is_added_only_where_the_chat_template_writes_it(
    tmp_path: Path, weights: Callable[[str], Path], tiny_tokenizer: Any, style: str, adds_bos: bool
) -> None:
    """A tokenizer that adds BOS by itself says so to the converter, whether or not training saw it."""
    folder = shutil.copytree(weights(style), tmp_path / "weights")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "add_bos_token": True, "add_eos_token": True})
    )
    file, said = write_gguf(folder, tmp_path / "model.gguf"), []
    reader = check.open_file(file)
    assert tokens.settle_flags(reader, tiny_tokenizer(style), said.append) is adds_bos
    del reader
    assert values(file)["tokenizer.ggml.add_bos_token"] is adds_bos
    assert values(file)["tokenizer.ggml.add_eos_token"] is False
    assert ("tokenizer.ggml.add_bos_token set to false, as the model was trained" in said) is not adds_bos


def test_a_file_always_says_whether_to_add_bos(weights: Callable[[str], Path], tiny_tokenizer: Any) -> None:
    assert tokens.tokenizer_settings(weights("llama3"), tiny_tokenizer("llama3")) == {"add_bos_token": False}


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of Llama 2's kind, learnt from a few lines: a space before the text, and none after `</s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace()
    lines = ["a an ant and the then them there", "low lower lowest new newer newest", "[INST] [/INST] other another"]
    trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(lines * 3, trainer)
    folder = tmp_path_factory.mktemp("sentencepiece")
    template = "{% for m in messages %}{{ bos_token ~ '[INST] ' ~ m.content ~ ' [/INST]' }}{% endfor %}"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    ).save_pretrained(folder)
    return folder


def joined_by_score(text: str, ids: dict[str, int], scores: list[float]) -> list[str]:
    """llama.cpp's SentencePiece: of all neighbours, those whose union scores best are joined first."""
    pieces = list(text.replace(" ", "▁"))
    while pairs := [(-scores[ids[a + b]], place) for place, (a, b) in enumerate(pairwise(pieces)) if a + b in ids]:
        place = min(pairs)[1]
        pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
    return pieces


def test_sentencepiece_words_are_cut_by_the_scores_of_merges(sentencepiece: Path, tmp_path: Path) -> None:
    """Llama 2 and TinyLlama, saved without tokenizer.model: the converter writes one score for all tokens."""
    from transformers import AutoTokenizer

    tokenizer, texts = AutoTokenizer.from_pretrained(sentencepiece), ["another newest lower", "then there [INST] low"]
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    add_vocabulary(writer, sentencepiece, 0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    def cut() -> list[list[str]]:
        found = values(tmp_path / "model.gguf")
        ids = {token: index for index, token in enumerate(found["tokenizer.ggml.tokens"])}
        return [joined_by_score(f" {text}", ids, found["tokenizer.ggml.scores"]) for text in texts]

    trained = [tokenizer.tokenize(text) for text in texts]
    assert cut() != trained
    tokens.settle_scores(check.open_file(tmp_path / "model.gguf"), sentencepiece, print)
    assert cut() == trained


def test_no_space_is_put_before_text_that_follows_a_control_token(sentencepiece: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sentencepiece)
    assert tokenizer.tokenize("the</s>the") == ["▁the", "</s>", "the"]
    assert tokens.space_prefix(tokenizer) == (True, False)
    assert tokens.tokenizer_settings(sentencepiece, tokenizer)["add_prefix_space"] is False


def test_the_first_word_keeps_the_space_that_the_tokenizer_gives_it(sentencepiece: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sentencepiece)
    assert modelfile.renderer(tokenizer, adds_bos=True)([user("low")], True) == "[INST] low [/INST]"
    tokenizer.chat_template = "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content }}{% endfor %}"
    assert modelfile.renderer(tokenizer, adds_bos=False)([user("low")], True) == " <|user|>low"


# --- the Modelfile ---

TEMPLATE_OF_CHATML = """\
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "system" }}<|im_start|>system
{{ .Content }}<|im_end|>
{{ else if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ if $last }}<|im_start|>assistant
{{ end }}
{{- else if eq .Role "assistant" }}<|im_start|>assistant
{{ .Content }}
{{- if not $last }}<|im_end|>
{{ end }}
{{- end }}
{{- end }}"""
STOPS = {
    "chatml": ["<|im_end|>", "<|im_start|>"],
    "llama2": ["</s>", "[INST]"],
    "llama3": ["<|eot_id|>", "<|end_header_id|>", "<|start_header_id|>"],
    "tinyllama": ["</s>", "<|assistant|>", "<|user|>", "<|system|>"],
}


def read_modelfile(text: str) -> dict[str, list[str]]:
    """A Modelfile as Ollama's parser reads it: a value ends at a line's end, where its quotes are closed, and
    characters that are not printed are left out."""
    found: dict[str, list[str]] = {}
    pending = ""
    for line in text.splitlines(keepends=True):
        if not pending and (line.startswith("#") or not line.strip()):
            continue
        pending += "".join(c for c in line if c.isprintable() or c in "\n\t")
        name, _, value = pending.partition(" ")
        value = value.strip()
        for quote in ('"""', '"'):
            if value.startswith(quote):
                closed = len(value) >= 2 * len(quote) and value.endswith(quote)
                value = value[len(quote) : -len(quote)]
                break
        else:
            closed = True
        if closed:
            found.setdefault(name, []).append(value)
            pending = ""
    assert not pending
    return found


def composed(
    tokenizer: Any, folder: Path = Path("/nowhere"), **options: Any
) -> tuple[dict[str, list[str]], list[str]]:
    said: list[str] = []
    options = {"adds_bos": False, "system": None, **options}
    return read_modelfile(modelfile.compose("m.gguf", folder, tokenizer, report=said.append, **options)), said


def test_the_template_of_chatml_reads_like_ollamas_own(tiny_tokenizer: Any) -> None:
    found, said = composed(tiny_tokenizer("chatml"))
    assert found["FROM"] == ["./m.gguf"]
    assert found["TEMPLATE"] == [TEMPLATE_OF_CHATML]
    assert said == []


@pytest.mark.parametrize("style", ["chatml", "llama2", "llama3", "tinyllama"])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_ollama_renders_what_was_trained(tiny_tokenizer: Any, style: str, adds_bos: bool) -> None:
    """unsloth #3899, #695, #798, #1823, LLaMA-Factory #6320: another template in Ollama than in training."""
    tokenizer = tiny_tokenizer(style)
    (template,) = composed(tokenizer, adds_bos=adds_bos)[0]["TEMPLATE"]
    for chat in CHATS:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        text = text.removeprefix(tokenizer.bos_token) if adds_bos and tokenizer.bos_token else text
        assert go_template.render(template, chat) == text


def test_llama_2_puts_the_system_message_into_the_first_turn(tiny_tokenizer: Any) -> None:
    (template,) = composed(tiny_tokenizer("llama2"), adds_bos=True)[0]["TEMPLATE"]
    chat = [system("Be brief."), user("Hi"), assistant("Hello"), user("Bye")]
    assert go_template.render(template, chat) == (
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST]"
    )


def test_an_answer_that_was_begun_is_gone_on_with(tiny_tokenizer: Any) -> None:
    (template,) = composed(tiny_tokenizer("chatml"))[0]["TEMPLATE"]
    text = go_template.render(template, [user("Hi"), assistant("Hel")])
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHel"


def test_a_default_system_prompt_of_the_chat_template_is_written(tiny_tokenizer: Any) -> None:
    """ms-swift #6267: one side adds a default system prompt, the other does not."""
    tokenizer = tiny_tokenizer("chatml")
    default = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are {kind}.<|im_end|>\n{% endif %}"
    tokenizer.chat_template = default + tokenizer.chat_template
    (template,) = composed(tokenizer)[0]["TEMPLATE"]
    assert go_template.render(template, [user("Hi")]).startswith(
        "<|im_start|>system\nYou are {kind}.<|im_end|>\n<|im_st"
    )
    assert go_template.render(template, [system("S"), user("Hi")]).startswith(
        "<|im_start|>system\nS<|im_end|>\n<|im_st"
    )


@pytest.mark.parametrize("style", STOPS)
def test_answers_stop_where_a_turn_ends_or_another_opens(
    tiny_tokenizer: Any, weights: Callable[[str], Path], style: str
) -> None:
    assert composed(tiny_tokenizer(style), weights(style))[0]["PARAMETER"] == [
        f'stop "{stop}"' for stop in STOPS[style]
    ]


def test_every_end_token_of_the_generation_config_is_a_stop(tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 1]}')
    assert modelfile.stops(tmp_path, tiny_tokenizer("chatml"), None) == ["<|im_end|>", "<|endoftext|>"]


@pytest.mark.parametrize("prompt", ["You are a bot.", 'Say "yes".\n\n  Or {{ no }}.\t', 'नमस्ते """ ठीक'])
def test_the_system_prompt_of_the_run_is_the_models(tiny_tokenizer: Any, prompt: str) -> None:
    found, _ = composed(tiny_tokenizer("chatml"), system=prompt)
    assert found["SYSTEM"] == [prompt]
    assert found["TEMPLATE"] == [TEMPLATE_OF_CHATML]


@pytest.mark.parametrize("style", ["chatml", "llama2", "llama3", "tinyllama"])
@pytest.mark.parametrize("prompt", ['Docs:\n"""\nquoted"""\nend', "क्\u200dष and a\u00a0space {{ x"])
def test_a_system_prompt_that_a_modelfile_cannot_hold_goes_into_the_template(
    tiny_tokenizer: Any, style: str, prompt: str
) -> None:
    tokenizer = tiny_tokenizer(style)
    found, _ = composed(tokenizer, system=prompt)
    assert "SYSTEM" not in found
    for chat in ([user("Hi"), assistant("Hello"), user("Bye")], [system("Own."), user("Hi")]):
        trained = chat if chat[0]["role"] == "system" else [system(prompt), *chat]
        text = tokenizer.apply_chat_template(trained, tokenize=False, add_generation_prompt=True)
        assert go_template.render(found["TEMPLATE"][0], chat) == text


def test_spaces_around_a_system_prompt_go_where_the_chat_template_takes_them_away(tiny_tokenizer: Any) -> None:
    assert composed(tiny_tokenizer("llama3"), system="Be brief.\n")[0]["SYSTEM"] == ["Be brief."]
    assert composed(tiny_tokenizer("chatml"), system="Be brief.\n")[0]["SYSTEM"] == ["Be brief.\n"]


def test_a_chat_template_that_trims_messages_is_remarked_on(tiny_tokenizer: Any) -> None:
    found, said = composed(tiny_tokenizer("llama3"))
    assert "TEMPLATE" in found
    assert said == [
        "Modelfile: the chat template takes away spaces around messages and Ollama's language cannot; "
        "send messages without them"
    ]


SHOUT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | upper }}<|im_end|>\n{% endfor %}"
LATER = "{% for m in messages %}{{ '<|im_end|>' if not loop.first }}{{ loop.index }}{{ m.content }}{% endfor %}"
CLOCK = "{{ strftime_now('%d %b') }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
LAST = (
    "{% for m in messages %}{% if m.role == 'user' %}[{% if loop.last and messages[0].role == 'system' %}"
    "{{ messages[0].content }}: {% endif %}{{ m.content }}]{% elif m.role == 'assistant' %}{{ m.content }}{% endif %}"
    "{% endfor %}"
)
LENGTHS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ '!' if '\n' in m.content }}</s>{% endfor %}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (SHOUT, "the chat template does not write the user message exactly once"),
        (LATER, "the chat template writes a later turn differently from an earlier one"),
        (CLOCK, "the chat template writes today's date"),
        (LAST, "the chat template"),
        (LENGTHS, "the chat template does more than write turns"),
    ],
    ids=["shout", "later", "clock", "last", "lengths"],
)
def test_what_is_no_sequence_of_turns_is_left_out_and_said(tiny_tokenizer: Any, template: str, reason: str) -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = template
    found, said = composed(tokenizer)
    assert "TEMPLATE" not in found
    assert said[0].startswith(f"Modelfile: no TEMPLATE, because {reason}")
    assert "compare `ollama show --template NAME` with the chat template" in said[0]


def test_a_chat_template_without_system_messages_is_expressed_without(tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer("chatml")
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    found, _ = composed(tokenizer)
    assert "system" not in found["TEMPLATE"][0]
    assert go_template.render(found["TEMPLATE"][0], [user("Hi")]).endswith("Hi<|im_end|>\n<|im_start|>assistant\n")


def test_a_model_without_chat_template_gets_its_prompts_as_they_are(tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = None
    assert composed(tokenizer)[0]["TEMPLATE"] == ["{{ .Prompt }}"]


def test_the_check_of_templates_takes_no_form_it_does_not_know() -> None:
    for template in ("{{ .Content", "{{ printf .System }}", "{{ if .System }}x", "x{{ end }}", "{{ eq 1 1 1 }}"):
        with pytest.raises((ValueError, KeyError, TypeError)):
            go_template.render(template, [user("Hi")])


@pytest.mark.reference
@pytest.mark.parametrize("name", ["smollm2", "llama2", "tinyllama", "llama3_2"])
def test_real_chat_templates_become_the_same_prompts(reference: Path, name: str) -> None:
    """unsloth #3899, #695, #798, #1823, LLaMA-Factory #6320: Llama-3.2-1B in Ollama talks nonsense."""
    from recipe_kit.modeling import load_tokenizer
    from recipe_kit.recipe import ModelSection

    tokenizer = load_tokenizer(ModelSection(id=str(reference / "tokenizers" / name)))
    adds_bos = tokens._wants_bos(tokenizer) is None
    (template,) = composed(tokenizer, adds_bos=adds_bos)[0]["TEMPLATE"]
    for chat in CHATS:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        text = text.removeprefix(tokenizer.bos_token) if adds_bos else text
        assert go_template.render(template, chat) == (" " if name == "tinyllama" else "") + text


GO = """
package main

import ("encoding/json"; "os"; "strings"; "text/template")

func main() {
	var job struct { Template string; Data map[string]any }
	json.NewDecoder(os.Stdin).Decode(&job)
	var out strings.Builder
	if err := template.Must(template.New("").Parse(job.Template)).Execute(&out, job.Data); err != nil { panic(err) }
	json.NewEncoder(os.Stdout).Encode(out.String())
}
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("go"), reason="no Go compiler on PATH")
def test_gos_own_templates_agree_with_ours(tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text(GO)
    subprocess.run(["go", "build", "-o", "render", "main.go"], cwd=tmp_path, check=True)
    for style in STOPS:
        (template,) = composed(tiny_tokenizer(style), system="a\u00a0b")[0]["TEMPLATE"]
        for chat in CHATS:
            said = "\n\n".join(message["content"] for message in chat if message["role"] == "system")
            messages = [{"Role": message["role"], "Content": message["content"]} for message in chat]
            job = json.dumps({"Template": template, "Data": {"System": said, "Messages": messages}})
            done = subprocess.run([tmp_path / "render"], input=job, capture_output=True, text=True, check=True)
            assert json.loads(done.stdout) == go_template.render(template, chat)


# --- llama.cpp's own converter ---


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.skipif(not os.environ.get("LLAMA_CPP"), reason="LLAMA_CPP names no llama.cpp folder")
@pytest.mark.parametrize(("name", "outtype"), [("smollm2", "bf16"), ("llama2", "f16"), ("tinyllama", "q8_0")])
def test_llama_cpps_converter_on_real_tokenizers(reference: Path, tmp_path: Path, name: str, outtype: str) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from recipe_kit.modeling import load_tokenizer
    from recipe_kit.recipe import ModelSection

    tokenizer = load_tokenizer(ModelSection(id=str(reference / "tokenizers" / name)))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    said: list[str] = []
    file, _ = export_module.export(tmp_path / "merged", tmp_path / "gguf", outtype=outtype, report=said.append)
    found = values(file)
    assert found["tokenizer.chat_template"] == tokenizer.chat_template
    assert found["tokenizer.ggml.add_bos_token"] is (name == "llama2")
    assert any("greedy tokens are those of merged" in text for text in said)
    if name != "smollm2":
        assert found["tokenizer.ggml.add_space_prefix"] is False
        assert len({*found["tokenizer.ggml.scores"]}) > 20_000
