"""Replace a folder or a file as a whole: it is written beside its place and renamed; a killed writer leaves what was there before."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.errors import InputError

IsOwn = Callable[[Path], bool]


@contextmanager
def replacing(out: Path, overwrite: bool, is_own: IsOwn, kind: str) -> Iterator[Path]:
    """Give a temporary folder that becomes `out` when the block ends well, and is removed when it raises.

    An `out` that exists and that `is_own` does not recognise is never touched (InputError); one of ours is replaced with `overwrite`.
    What a killed process left beside `out` is cleared first; if it died between the two renames, the old folder is put back. An
    OSError of the disk is about `out`.
    """
    out = check_place(out, overwrite, is_own, kind)
    temporary = out.parent / f"{_prefix(out)}{os.getpid()}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        install(temporary, out, overwrite, is_own, kind)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name(error, out, temporary)
        raise


@contextmanager
def replacing_file(out: Path, overwrite: bool, is_own: IsOwn, kind: str) -> Iterator[Path]:
    """Give the path of a temporary file that becomes the file `out` when the block ends well, under the same terms as `replacing`."""
    out = check_place(out, overwrite, is_own, kind)
    if out.is_dir():
        raise InputError(f"{out}: is a folder, a file is to be written; choose another place")
    temporary = out.parent / f"{_prefix(out)}{os.getpid()}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        check_place(out, overwrite, is_own, kind)
        temporary.replace(out)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        _name(error, out, temporary)
        raise


def _name(error: BaseException, out: Path, temporary: Path) -> None:
    """Make an error of the disk say where: a write that failed does not, and nobody knows the temporary place."""
    if isinstance(error, OSError) and (error.filename is None or str(error.filename).startswith(str(temporary))):
        error.filename = str(out)


def write_file(path: Path, content: str | bytes) -> None:
    """Write a small file beside its place, whose folders are made, and rename it there."""
    path = Path(os.path.realpath(path))  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name(error, path, temporary)
        raise


def check_place(out: Path, overwrite: bool, is_own: IsOwn, kind: str) -> Path:
    """The real path of `out`, cleared of what a killed process left beside it. InputError when it may not be written."""
    out = Path(os.path.realpath(out.expanduser()))
    _clear_leftovers(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return out
    if not is_own(out):
        raise InputError(f"{out}: exists and is not a {kind}; choose another place")
    if not overwrite:
        raise InputError(f"{out}: exists; choose another place, or replace it with --overwrite")
    return out


def install(temporary: Path, out: Path, overwrite: bool, is_own: IsOwn, kind: str) -> None:
    """Rename a finished folder to `out`, which a reader sees whole at any time, the old one or the new one."""
    # Again: it may have been written by another process meanwhile.
    out = check_place(out, overwrite, is_own, kind)
    if out.is_dir() and _exchange(temporary, out):
        shutil.rmtree(temporary, ignore_errors=True)
        return
    old = out.parent / f"{_prefix(out)}{os.getpid()}.old"
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in a single step, where the system can (Linux): there is no moment at which neither is there."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _prefix(out: Path) -> str:
    # With the host's name: a process id on a shared disk may be another machine's.
    return f".{out.name}.{socket.gethostname()}-"


def _clear_leftovers(out: Path) -> None:
    for path in sorted(out.parent.glob(f"{_prefix(out)}*")) if out.parent.is_dir() else ():
        pid, _, suffix = path.name.removeprefix(_prefix(out)).partition(".")
        if not pid.isdigit() or _alive(int(pid)):
            continue
        if suffix == "old" and not out.exists():
            path.rename(out)
        elif suffix in ("old", "partial") and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif suffix == "partial":
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
