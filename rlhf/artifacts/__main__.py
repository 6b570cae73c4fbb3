"""`python -m rlhf.artifacts show PATH`"""

import sys

from rlhf.artifacts.lineage import main

sys.exit(main(sys.argv[1:]))
