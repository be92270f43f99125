"""Makes rank 1 of a test's launch a node of its own, where other files lie. Python imports it at its start."""

import os

if os.environ.get("RANK") == "1":
    os.environ["LOCAL_RANK"] = "0"
    os.environ["SLURMD_NODENAME"] = "node1"
    os.chdir(os.environ["TEST_OTHER_NODE"])
