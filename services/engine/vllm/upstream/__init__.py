"""All that touches vLLM, and all that may move between its versions.

Its model classes, attention metadata and kernels are used, and neither its scheduler nor its
workers: a step is rows, positions and block tables, and all of them are ours. constraints-vllm.txt
names the version that this is written for.
"""

import os

# vLLM reads these when it is imported. It asks nobody for a model's files, for they come from the
# store, tells nobody that it runs, and says what is an error.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
