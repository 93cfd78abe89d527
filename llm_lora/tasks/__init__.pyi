from . import image as image
from . import task as task
from .task import AnyPrepared as AnyPrepared
from .task import Task as Task
