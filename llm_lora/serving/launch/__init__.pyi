from . import examining as examining
from . import launching as launching
from . import vllm as vllm
from .log import Line as Line
from .log import Tail as Tail
from .plans import AnyPlan as AnyPlan
from .plans import Wanted as Wanted
from .process import Server as Server
