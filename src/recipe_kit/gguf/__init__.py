"""Full weights as one GGUF file for llama.cpp, with a Modelfile for Ollama.

llama.cpp's own script converts; what is ours is the proof afterwards that the file holds the model that was trained:
its chat template, its special tokens, its tensors, its answers (`check`), and that what Ollama renders from the
Modelfile is what the tokenizer's chat template renders (`turns`, `go_template`, `modelfile`).

Ollama itself is no Python package and is not run: the Modelfile keeps to `FROM`, `TEMPLATE`, `SYSTEM` and `PARAMETER
stop` of its documentation, and is read back by the rules of its parser.
"""

from __future__ import annotations

from recipe_kit.gguf.convert import OUTTYPES, Tools, export, find_converter, find_quantizer, find_tools

__all__ = ["OUTTYPES", "Tools", "export", "find_converter", "find_quantizer", "find_tools"]
