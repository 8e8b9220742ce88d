"""Which tokens a model learns from: a conversation becomes token ids and labels.

The text is rendered once with the model's own chat template and tokenised once, so that training sees exactly the
tokens that serving will see. Each assistant turn is found as a span of characters in that text (`spans.py`;
`shapes.py` does the same for many rows). The trained tokens go through the special token that ends the turn, and no
further: a model that never learns it never stops. A message that holds the template's control text is refused
(`control.py`).
"""

from recipe_kit.labels.control import control_texts as control_texts
from recipe_kit.labels.encode import IGNORED as IGNORED
from recipe_kit.labels.encode import Encoded as Encoded
from recipe_kit.labels.encode import Labeller as Labeller
from recipe_kit.labels.encode import encode as encode
from recipe_kit.labels.encode import render_spans as render_spans
from recipe_kit.labels.spans import TrainOn as TrainOn
from recipe_kit.labels.spans import special_tokens as special_tokens
from recipe_kit.labels.spans import trained_turns as trained_turns
