from . import caller as caller
from . import server as server
from . import window as window

accelerated: bool
