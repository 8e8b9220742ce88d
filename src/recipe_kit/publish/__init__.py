"""From a run folder to a repository of the Hub that others can load: planned, checked, sent in one commit, compared.

plan     what would be sent, where, as whom, and every reason not to
push     carries a plan out; cut off anywhere, it is finished by pushing again
folder   the same files written to a folder, without a network
before   what can be known of all this before training
"""

from recipe_kit.publish.before import check_before_training
from recipe_kit.publish.contents import Contents, gather
from recipe_kit.publish.folder import write as write_folder
from recipe_kit.publish.plan import Plan, Wish, plan
from recipe_kit.publish.transaction import Published, push

__all__ = [
    "Contents",
    "Plan",
    "Published",
    "Wish",
    "check_before_training",
    "gather",
    "plan",
    "push",
    "write_folder",
]
