"""A model to talk to: what a run learnt, a folder of weights or a Hub id, and the base it started from.

`load` finds the model (`target.py`), `reply` lets it answer (`replies.py`) as it does in `recipe-kit eval`: same
precision, same template, same stop tokens, and greedily unless a temperature is given. Nothing here reads a keyboard
or prints; `cli/chat.py` does.
"""

from recipe_kit.chat.replies import Answer as Answer
from recipe_kit.chat.replies import Decoding as Decoding
from recipe_kit.chat.replies import Message as Message
from recipe_kit.chat.replies import Pieces as Pieces
from recipe_kit.chat.replies import check_messages as check_messages
from recipe_kit.chat.replies import check_trainable as check_trainable
from recipe_kit.chat.replies import reply as reply
from recipe_kit.chat.target import Chat as Chat
from recipe_kit.chat.target import Which as Which
from recipe_kit.chat.target import load as load
