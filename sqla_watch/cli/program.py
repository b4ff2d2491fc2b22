"""A Python program as `python` itself would run it: its `__main__`, arguments, search path and traceback.

What flows in is what stands on the command line, a script, directory, zip file or module; the program then runs in
this process and ends as it always does.
"""

from __future__ import annotations

import builtins
import importlib.util
import os
import pkgutil
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader, SourcelessFileLoader
from types import CodeType, TracebackType
from typing import Any

from sqla_watch.cli.errors import WrongInput

__all__ = ["Program", "ProgramError"]


class ProgramError(WrongInput):
    """There is no such program; the message names what was asked for."""


@dataclass(frozen=True, slots=True)
class Program:
    """What is to be run, as it stands on the command line."""

    target: str
    """Path of a script, directory or zip file, or name of a module."""
    arguments: tuple[str, ...] = ()
    is_module: bool = False

    @property
    def name(self) -> str:
        """How the program is called in a report: `export.py`, `shop.export`."""
        return self.target if self.is_module else os.path.basename(os.path.abspath(self.target))

    def check(self) -> None:
        """Look whether a script is there, before anything is run.

        Raises:
            ProgramError: It is not there, or cannot be read. A module is looked for when it is run, because that
                imports the packages it is in.
        """
        if self.is_module:
            if not self.target or self.target.startswith("."):
                raise ProgramError(f"{self.target!r} is no name of a module")
            return
        if not os.path.exists(self.target):
            raise ProgramError(f"there is no script {self.target!r}")
        if _is_container(self.target):
            _main_of_container(self.target)
        elif os.path.isdir(self.target) or not os.access(self.target, os.R_OK):
            raise ProgramError(f"the script {self.target!r} cannot be read")

    def run(self) -> None:
        """Run it as `__main__`; whatever it raises comes out, with a traceback that starts in its own code.

        Raises:
            ProgramError: There is no such module, or the package has no `__main__`.
        """
        try:
            code, module = self._load()
            sys.modules["__main__"] = module
            exec(code, module.__dict__)
        except (SystemExit, ProgramError):
            raise
        except BaseException as error:
            _show_from_program_on(error)
            raise

    def _load(self) -> tuple[CodeType, types.ModuleType]:
        """Set arguments and search path, and make the module that the code is to run in."""
        if self.is_module:
            sys.argv[:] = ["-m", *self.arguments]
            _search_first(os.getcwd())
            spec = _find_module(self.target)
            code = _code_of(spec)
            sys.argv[0] = spec.origin or self.target
            return code, _main_module(spec=spec)
        sys.argv[:] = [self.target, *self.arguments]
        path = os.path.join(os.getcwd(), self.target)
        if _is_container(self.target):
            _search_first(path, always=True)
            spec = _main_of_container(path)
            return _code_of(spec), _main_module(spec=spec)
        _search_first(os.path.dirname(os.path.realpath(path)))
        return _read_script(path), _main_module(file=path)


def _is_container(path: str) -> bool:
    """Whether a path holds a program in a `__main__` of its own: a directory, or a zip file."""
    return os.path.isdir(path) or type(pkgutil.get_importer(path)).__name__ == "zipimporter"


def _main_of_container(path: str) -> ModuleSpec:
    finder: Any = pkgutil.get_importer(path)
    spec: ModuleSpec | None = finder.find_spec("__main__") if finder is not None else None
    if spec is None or spec.loader is None:
        kind = "directory" if os.path.isdir(path) else "zip file"
        raise ProgramError(f"the {kind} {path!r} has no __main__.py to run")
    return spec


def _find_module(name: str) -> ModuleSpec:
    """Find a module, or the `__main__` of a package; importing the packages around it is part of the program."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a package around it lacks something else
        spec = None
    if spec is None:
        if name.endswith(".__main__"):
            package = name.removesuffix(".__main__")
            raise ProgramError(f"{package!r} is a package without a __main__, which cannot be run")
        raise ProgramError(f"there is no module {name!r}")
    if spec.submodule_search_locations is not None:
        return _find_module(f"{name}.__main__")
    return spec


def _code_of(spec: ModuleSpec) -> CodeType:
    loader: Any = spec.loader
    get_code: Callable[[str], CodeType | None] | None = getattr(loader, "get_code", None)
    code = get_code(spec.name) if get_code is not None else None
    if code is None:
        raise ProgramError(f"the module {spec.name!r} is not written in Python, and cannot be run")
    return code


def _read_script(path: str) -> CodeType:
    if path.endswith(".pyc"):
        compiled = SourcelessFileLoader("__main__", path).get_code("__main__")
        assert compiled is not None
        return compiled
    with open(path, "rb") as file:
        source = file.read()
    return compile(source, path, "exec", dont_inherit=True)


def _main_module(*, spec: ModuleSpec | None = None, file: str | None = None) -> types.ModuleType:
    """Make an empty `__main__` with the attributes which `python` gives it."""
    module = types.ModuleType("__main__")
    attributes: dict[str, Any] = vars(module)
    attributes["__builtins__"] = builtins
    if spec is not None:
        attributes.update(
            __file__=spec.origin,
            __cached__=spec.cached,
            __loader__=spec.loader,
            __package__=spec.parent,
            __spec__=spec,
        )
    elif file is not None:
        loader = SourcelessFileLoader if file.endswith(".pyc") else SourceFileLoader
        attributes.update(__file__=file, __cached__=None, __loader__=loader("__main__", file))
    return module


def _search_first(folder: str, *, always: bool = False) -> None:
    """Put the program's folder where `python` has it: in front, in place of this command's own."""
    if not sys.flags.safe_path:
        sys.path[0] = folder
    elif always:
        sys.path.insert(0, folder)


def _show_from_program_on(error: BaseException) -> None:
    """Have the traceback of an uncaught exception begin in the program, as if nobody had called it.

    The interpreter shows it through `sys.excepthook` once the frames of this package are unwound, too. It is left to
    the interpreter because it also knows how a process ends that was interrupted.
    """
    trace = error.__traceback__
    while trace is not None and _is_machinery(trace):
        trace = trace.tb_next
    shown = trace
    hook = sys.excepthook

    def show(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        if value is error:
            value.__traceback__ = trace = shown
        hook(kind, value, trace)

    sys.excepthook = show


def _is_machinery(trace: TracebackType) -> bool:
    filename = trace.tb_frame.f_code.co_filename
    return filename in (__file__, importlib.util.__file__) or filename.startswith("<frozen ")
