from .judging import Judge as Judge
from .judging import Judged as Judged
from .judging import LineVerdict as LineVerdict
from .judging import Summary as Summary
from .judging import judge_blocks as judge_blocks
