from . import judging as judging
from . import requests as requests
from .asking import Asking as Asking
from .requests import read_object as read_object
