from . import block as block
from . import caller as caller
from . import ring as ring
from . import server as server
from . import window as window

accelerated: bool
