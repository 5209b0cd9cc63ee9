"""Storage formats: how numbers that rules work out in float32 are kept in fewer bytes.

A format is a pair of functions of one number, beside each other as a rule and its scalars are: what decodes it, and
what encodes it. Rules know nothing of formats: loops decode what they read, and encode what they write.
"""

from . import eight_bit, half, masters  # noqa: F401  # register theirs
from .registry import BLOCK as BLOCK
from .registry import FORMATS as FORMATS
from .registry import OWN as OWN
from .registry import Format as Format
