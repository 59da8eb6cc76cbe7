"""The compiled half: built where a compiler is, left out where none is (pyproject.toml says the rest)."""

from setuptools import Extension, setup


def extensions() -> list[Extension]:
    """The Cython modules, each optional: pure Python does the same, slower."""
    try:
        from Cython.Build import cythonize
    except ImportError:
        return []
    names = (
        "window",
        "server",
        "line",
        "caller",
        "chain",
        "walk",
        "guard",
        "handover",
        "ring",
        "packed",
        "transfer",
        "handler",
        "block",
        "opened",
        "files",
        "listing",
        "status",
        "passing",
    )
    modules = [
        Extension(
            f"vhostuser._native.{name}",
            [f"src/vhostuser/_native/{name}.pyx"],
            extra_compile_args=["-O2", "-std=gnu11"],
        )
        for name in names
    ]
    directives = {"language_level": 3, "boundscheck": False, "wraparound": False, "cdivision": True}
    compiled = list(cythonize(modules, compiler_directives=directives))
    for module in compiled:
        module.optional = True  # said here: cythonize makes new ones, and forgets it
    return compiled


setup(ext_modules=extensions())
