from . import text as text
from .text import SERVER_RANKS as SERVER_RANKS
from .text import server_rank as server_rank
