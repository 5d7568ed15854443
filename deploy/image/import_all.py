"""Imports all of piggybank: bytecode is written for what is imported, and a module that needs what the image lacks fails the build."""

import pkgutil
from importlib import import_module

import piggybank

for module in pkgutil.walk_packages(piggybank.__path__, "piggybank."):
    if not module.name.endswith("__main__"):
        import_module(module.name)
