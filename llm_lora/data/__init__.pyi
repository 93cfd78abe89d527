from . import qa_text as qa_text
from . import rows as rows
from .finding import Finding as Finding
from .rows import Row as Row
from .written import CHECK as CHECK
