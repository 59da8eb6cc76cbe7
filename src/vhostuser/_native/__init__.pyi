from . import block as block
from . import caller as caller
from . import chain as chain
from . import files as files
from . import guard as guard
from . import handler as handler
from . import handover as handover
from . import line as line
from . import listing as listing
from . import opened as opened
from . import packed as packed
from . import passing as passing
from . import ring as ring
from . import server as server
from . import status as status
from . import transfer as transfer
from . import walk as walk
from . import window as window

accelerated: bool
