"""`PATIENCE_S`: how long a test waits for what must happen. Long, as a busy machine takes its time, and free of cost,
as it ends when that has happened. Planted failures, of which some are noticed by waiting in vain, set less.
"""

import os

PATIENCE_S = float(os.environ.get("ABSWITCH_TEST_PATIENCE_S", "90"))
