"""The rules of front-ends, by subject. To import a module is to have its rules in `frontend_bench.FRONT_END`."""
