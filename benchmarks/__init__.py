"""One script a claim: `python -m benchmarks NAME [--quick]`.

`harness` measures side by side, `peers` runs what cannot share our environment.
"""
