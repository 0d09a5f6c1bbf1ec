"""`robot-rl ...`: parses the command line into one dataclass of `robot_rl.commands`, runs it, and turns mistakes into one line.

Only standard-library, tyro and config modules are imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Generic, TypeVar

import tyro
from tyro import _errors

from data.errors import InputError
from robot_rl.arguments import REGISTRY, refuse
from robot_rl.commands.bench import BenchEvaluation, BenchSampling, BenchSim, BenchSteering
from robot_rl.commands.bench_data import BenchData
from robot_rl.commands.bench_serve import BenchServe
from robot_rl.commands.benchmark import Benchmark
from robot_rl.commands.collect import Collect
from robot_rl.commands.convert_policy import ConvertPolicy
from robot_rl.commands.data_convert import DataConvert
from robot_rl.commands.data_export import DataExport
from robot_rl.commands.data_label import DataLabel
from robot_rl.commands.data_quality import DataCheck, DataInspect
from robot_rl.commands.demo import Demo
from robot_rl.commands.evaluate import Evaluate
from robot_rl.commands.policies import Policies
from robot_rl.commands.serve import Serve
from robot_rl.commands.train import TrainCritic, TrainPolicy, TrainVision, train_policy_command

Commands = TypeVar("Commands")


@dataclass(frozen=True)
class Group(Generic[Commands]):
    command: Commands


@dataclass(frozen=True)
class Data:
    """Look at datasets, convert them for training, and label them."""

    command: (
        Annotated[DataInspect, tyro.conf.subcommand("inspect")]
        | Annotated[DataCheck, tyro.conf.subcommand("check")]
        | Annotated[DataConvert, tyro.conf.subcommand("convert")]
        | Annotated[DataExport, tyro.conf.subcommand("export")]
        | Annotated[DataLabel, tyro.conf.subcommand("label")]
    )


@dataclass(frozen=True)
class Bench:
    """Measure speed on this machine."""

    command: (
        Annotated[BenchSim, tyro.conf.subcommand("sim")]
        | Annotated[BenchSampling, tyro.conf.subcommand("sampling")]
        | Annotated[BenchSteering, tyro.conf.subcommand("steering")]
        | Annotated[BenchEvaluation, tyro.conf.subcommand("evaluation")]
        | Annotated[BenchServe, tyro.conf.subcommand("serve")]
        | Annotated[BenchData, tyro.conf.subcommand("data")]
    )


def _command(arguments: Sequence[str]) -> Any:
    """The type of everything that can be said, whose `train policy` has the settings of the family that is asked for."""
    train_policy: Any = train_policy_command(arguments)
    train: Any = (
        Annotated[TrainCritic, tyro.conf.subcommand("critic")]
        | Annotated[train_policy, tyro.conf.subcommand("policy")]
        | Annotated[TrainVision, tyro.conf.subcommand("vision")]
    )
    return (
        Annotated[Demo, tyro.conf.subcommand("demo")]
        | Annotated[Collect, tyro.conf.subcommand("collect")]
        | Annotated[Data, tyro.conf.subcommand("data")]
        | Annotated[
            Group[train],
            tyro.conf.subcommand("train", description="Train a critic, a policy or camera networks on a converted dataset."),
        ]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Benchmark, tyro.conf.subcommand("benchmark")]
        | Annotated[Policies, tyro.conf.subcommand("policies")]
        | Annotated[ConvertPolicy, tyro.conf.subcommand("convert-policy")]
        | Annotated[Serve, tyro.conf.subcommand("serve")]
        | Annotated[Bench, tyro.conf.subcommand("bench")]
    )


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 `data check` found something, 2 a mistake of the user's (one line on stderr), 130 or 143 stopped."""
    # Before torch is imported: threads that spin while they wait cost 10x on a machine that is busy otherwise.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _keep_freed_memory()
    arguments = sys.argv[1:] if arguments is None else arguments
    command: Any = None
    before: Any = signal.getsignal(signal.SIGTERM)
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _terminate)
    try:
        with _errors.on_parse_error(partial(refuse, arguments)):
            command = tyro.cli(
                _command(arguments),
                prog="robot-rl",
                args=arguments,
                description="A Q-function re-ranks and locally improves the actions of any robot policy.",
                registry=REGISTRY,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
            )
        while hasattr(command, "command"):
            command = command.command
        return int(command.run() or 0)
    except InputError as error:
        return _fail(str(error))
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise  # not about a file of the user's
        return _fail(
            f"{error.filename or 'disk'}: {error.strerror}; nothing that was complete is lost, make room or choose another path"
        )
    except KeyboardInterrupt as stop:
        resumes = isinstance(command, (Benchmark, Collect, DataConvert, Demo, Evaluate, TrainCritic, TrainPolicy, TrainVision))
        print("stopped; the same command resumes" if resumes else "stopped", file=sys.stderr)
        return 143 if stop.args else 130
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, before)


def _keep_freed_memory() -> None:
    """glibc hands large blocks back to the system whenever they are freed, and every tensor then pays for fresh pages: a fifth to a
    third of a training step with cameras.
    """
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for name, parameter, size in (("MALLOC_MMAP_THRESHOLD_", -3, 1 << 28), ("MALLOC_TRIM_THRESHOLD_", -1, (1 << 31) - 1)):
            if name not in os.environ:
                os.environ[name] = str(size)  # for worker processes
                mallopt(parameter, size)


def _terminate(*_: object) -> None:
    """Ended as by Ctrl-C: workers are stopped and what they share is let go of."""
    raise KeyboardInterrupt("terminated")


def _fail(message: str) -> int:
    print("robot-rl: " + " ".join(message.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
