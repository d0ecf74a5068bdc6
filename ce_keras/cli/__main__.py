"""`python -m ce_keras.cli`."""

import sys

from ce_keras.cli import main

sys.exit(main())
