import os

# oneDNN reads this at its first operation. On matrix units (AMX) its sums depend on the number of
# rows, and torch's layers would have to go row by row to be exact.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
