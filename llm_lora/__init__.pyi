from .api.answers import Answer as Answer
from .api.answers import Chat as Chat
from .api.answers import Schema as Schema
from .api.answers import judge as judge
from .api.publishing import promote as promote
from .api.publishing import publish as publish
from .api.publishing import rollback as rollback
from .api.runs import Run as Run
from .api.runs import check_data as check_data
from .api.runs import load_recipe as load_recipe
from .api.runs import load_run as load_run
from .api.runs import train as train
from .api.server import Server as Server
from .api.server import serve as serve
from .errors import UserError as UserError
from .progress import Interrupted as Interrupted
from .progress import Progress as Progress
from .progress import Watcher as Watcher
from .schema.verdict import Reason as Reason
from .schema.verdict import Verdict as Verdict
from .store.published import Version as Version

__version__: str
