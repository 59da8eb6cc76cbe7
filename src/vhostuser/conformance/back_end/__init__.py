"""The rules of back-ends, by subject. To import a module is to have its rules in `backend_bench.BACK_END`."""
