from . import channel as channel
from . import window as window

accelerated: bool
