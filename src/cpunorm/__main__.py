"""``python -m cpunorm``: the same as ``cpunorm``."""

import sys

from cpunorm.cli import main

sys.exit(main())
